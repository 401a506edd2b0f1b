"""Column accuracy: share of responses k whose most favourable instruction is their own,
argmax_j s(j, k, x) = k.

The same string under every instruction, so response length plays no part. Chance 1/J for J
instructions. Blind to the prompt. In an incomplete design (design.py) the share is of the asked
responses, each among all J instructions.
"""

from collections.abc import Sequence

import numpy as np

from ecliptica.evaluation.grid import columns, read_columns
from ecliptica.evaluation.metrics import Metric, top_share

TITLE = "column accuracy"


def value(s_JK: np.ndarray, own: Sequence[int] | None = None) -> float:
    return float(np.mean(by_response(s_JK, own)))


def by_response(s_JK: np.ndarray, own: Sequence[int] | None = None) -> list[float]:
    """[share of response k]. own: for each column, the row of its own instruction (None: square,
    k). More rows than columns: the scale test."""
    if own is None:
        own = range(s_JK.shape[1])
    return [top_share(s_JK[:, k], j) for k, j in enumerate(own)]


def of_asked(cross, answers) -> list[float]:
    """[share of response k] of the asked responses of one prompt."""
    return by_response(read_columns(cross, answers), cross.rows_of_asked())


def chance(instructions: int) -> float:
    return 1 / instructions


def null(crosses: Sequence, answers: Sequence) -> float:
    return chance(len(crosses[0].names))


METRICS = (
    Metric(
        "column_accuracy",
        TITLE,
        null,
        blind_to="the prompt",
        questions=columns,
        value=lambda cross, answers: float(np.mean(of_asked(cross, answers))),
        reads="grid",
        parts=lambda cross, answers: cross.spread(of_asked(cross, answers)),
    ),
)
