"""Strict switch: share of pairs a < b where each instruction prefers its own response outright,
s_aa > s_ab and s_bb > s_ba.

Response length and prior do not cancel, so its chance level is that of these very scores with the
responses' labels permuted. In an incomplete design (design.py) the pairs, and the labels, are
those of the asked responses.
"""

from collections.abc import Sequence

import numpy as np

from ecliptica.evaluation.grid import read_square, square
from ecliptica.evaluation.metrics import NAN, Metric

TITLE = "strict switch"
PERMUTATIONS = 100


def value(s_JK: np.ndarray) -> float:
    if np.isnan(s_JK).any():
        return NAN
    wins_JK = np.diag(s_JK)[:, None] > s_JK
    both_JK = wins_JK & wins_JK.T
    return float(np.mean(both_JK[np.triu_indices(len(s_JK), 1)]))


def chance(s_JK: np.ndarray, generator: np.random.Generator, permutations=PERMUTATIONS) -> float:
    """The mean value of one prompt's scores under random labels of the responses."""
    orders = [generator.permutation(len(s_JK)) for _ in range(permutations)]
    return float(np.mean([value(s_JK[:, order]) for order in orders]))


def null(crosses: Sequence, answers: Sequence) -> float:
    """Of the control, whose labels mean as little as any; of the next system where that is 0."""
    for own in answers:
        generator = np.random.default_rng(0)
        levels = [chance(read_square(cross, own), generator) for cross in crosses]
        level = float(np.mean(levels))
        if level:
            return level
    return 0.0


METRICS = (
    Metric(
        "strict_switch",
        TITLE,
        null,
        blind_to="the prompt",
        questions=square,
        value=lambda cross, answers: value(read_square(cross, answers)),
        reads="grid",
    ),
)
