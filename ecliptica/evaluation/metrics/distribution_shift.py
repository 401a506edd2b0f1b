"""Distribution shift: mean token JSD between pi(. | I_a, x) and pi(. | I_b, x) along y_a and y_b, over the same for two wordings of one
instruction along the same texts. Null 1: instructions move the model no more than rewording one does. JSD is in nats, 0 to ln 2, over the whole vocabulary.

Along fixed texts, so no sampling noise enters; blind to whether the shift goes the right way. A model that ignores instructions has 0 over 0: no value.
"""

import math

from torch.nn.functional import softplus


def token_jsd(first_RV, second_RV):
    """Jensen-Shannon divergence of two rows of logits each, [R] float32 nats."""
    p, q = first_RV.float().log_softmax(-1), second_RV.float().log_softmax(-1)
    d = (
        q - p
    )  # log((p + q) / 2 / p) = softplus(d) - ln 2: the rounding of large logits cancels where the two agree
    return 0.5 * (
        p.exp() * (math.log(2) - softplus(d)) + q.exp() * (math.log(2) - softplus(-d))
    ).sum(-1).clamp_min(0)


def share(nats):
    """Of the most that two distributions can differ by, ln 2."""
    return nats / math.log(2)
