"""Distribution shift: mean token JSD between pi(. | I_a, x) and pi(. | I_b, x) along y_a and y_b, over the same for two wordings of one
instruction. Null 1: instructions move the model no more than rewording one does. JSD is in nats, 0 to ln 2, over the whole vocabulary.

Along fixed texts, so no sampling noise enters; blind to whether the shift goes the right way.
"""

import math

import torch


def token_jsd(first_RV, second_RV):
    """Jensen-Shannon divergence of two rows of logits each, [R] float32 nats."""
    p, q = first_RV.float().log_softmax(-1), second_RV.float().log_softmax(-1)
    middle = torch.logaddexp(p, q) - math.log(2)
    return 0.5 * ((p.exp() * (p - middle)).sum(-1) + (q.exp() * (q - middle)).sum(-1)).clamp_min(0)
