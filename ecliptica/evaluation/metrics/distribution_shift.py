"""Distribution shift: mean token JSD between pi(. | I_a, x) and pi(. | I_b, x) along y_a and y_b,
over the same for two wordings of one instruction along the same texts. Null 1: instructions move
the model no more than rewording one does. JSD is in nats, 0 to ln 2, over the whole vocabulary.

Along fixed texts, so no sampling noise enters; blind to whether the shift goes the right way. A
model that ignores instructions has 0 over 0: no value.
"""

import math
from collections.abc import Sequence
from functools import partial

from ecliptica.evaluation.metrics import Derived, Metric, mean
from ecliptica.evaluation.questions import Question

INSTRUCTIONS, WORDINGS = "instructions", "wordings"

# A unit: one prompt, with the questions of each column.
Pairs = dict[str, Sequence[Question]]


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
