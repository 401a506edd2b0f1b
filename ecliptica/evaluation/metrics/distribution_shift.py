"""Distribution shift: mean token JSD between pi(. | I_a, x) and pi(. | I_b, x) along y_a and y_b,
over the same for two wordings of one instruction along the same texts. Null 1: instructions move
the model no more than rewording one does. JSD is in nats, 0 to ln 2, over the whole vocabulary.

Along fixed texts, so no sampling noise enters; blind to whether the shift goes the right way. A
model that ignores instructions has 0 over 0: no value.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch.nn.functional import softplus

from ecliptica.evaluation.metrics import Derived, Metric, mean
from ecliptica.evaluation.questions import Question

INSTRUCTIONS, WORDINGS = "instructions", "wordings"

# A unit: one prompt, with the questions of each column.
Pairs = dict[str, Sequence[Question]]


def token_jsd(first_RV: torch.Tensor, second_RV: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergence of two rows of logits each, [R] float32 nats."""
    p_RV = first_RV.float().log_softmax(-1)
    q_RV = second_RV.float().log_softmax(-1)
    # log((p + q) / 2 / p) = softplus(d) - ln 2: the rounding of large logits cancels where the two
    # agree.
    d_RV = q_RV - p_RV
    of_p_RV = p_RV.exp() * (math.log(2) - softplus(d_RV))
    of_q_RV = q_RV.exp() * (math.log(2) - softplus(-d_RV))
    return 0.5 * (of_p_RV + of_q_RV).sum(-1).clamp_min(0)


def share(nats: float) -> float:
    """Of the most that two distributions can differ by, ln 2."""
    return nats / math.log(2)


def _questions(column: str, unit: Pairs) -> Sequence[Question]:
    return unit[column]


def _value(column: str, unit: Pairs, answers) -> float:
    return mean([answers[question] for question in unit[column]])


def _column(name: str) -> Metric:
    return Metric(
        name,
        f"JSD between {name} (nats a token)",
        None,
        blind_to="the direction",
        questions=partial(_questions, name),
        value=partial(_value, name),
        reads="pairs",
    )


METRICS = (
    _column(INSTRUCTIONS),
    _column(WORDINGS),
    Derived(
        "ratio",
        "distribution shift: instructions over wordings",
        1.0,
        blind_to="the direction",
        of=(INSTRUCTIONS, WORDINGS),
    ),
)
