"""Scale: column accuracy of the responses among more and more candidate instructions, which have
no responses of their own and compete for these. Chance 1/candidates.

Beside it where the responses go: for one prompt, the share of its responses whose most favourable
instruction is of each group: the response's own instruction; another of the first ones; each axis
of the further ones. A tie is dealt out evenly. A model that ignores instructions gives each group
its share of the candidates.
"""

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np

from ecliptica.evaluation.metrics import Metric, column_accuracy
from ecliptica.evaluation.questions import Question

OWN, OTHER = "own", "another of the first"
SIZES = (10, 20, 50, 100)


class Contested(Protocol):
    """A unit: one prompt with the questions of every candidate (row) and response (column)."""

    questions_JK: Sequence[Sequence[Question]]


def shares(s_JK: np.ndarray, groups_J: Sequence[str | None]) -> dict[str, float]:
    """{group: share}. s_JK: more rows than columns, response k's own instruction in row k;
    groups_J: the group of each row, None for the first ones."""
    share_of = dict.fromkeys([OWN, OTHER, *filter(None, groups_J)], 0.0)
    responses = s_JK.shape[1]
    top_JK = s_JK == s_JK.max(0)
    for (j, k), top in np.ndenumerate(top_JK):
        if not top:
            continue
        group = OWN if j == k else groups_J[j] or OTHER
        share_of[group] += 1 / top_JK[:, k].sum() / responses
    return share_of


def read_scores(unit: Contested, answers) -> np.ndarray:
    """s_JK of one prompt, a row a candidate."""
    return np.array([[answers[question] for question in row] for row in unit.questions_JK])


def _questions(unit: Contested):
    for row in unit.questions_JK:
        yield from row


def _value(size: int, unit: Contested, answers) -> float:
    return column_accuracy.value(read_scores(unit, answers)[:size])


def metrics(sizes: Sequence[int]) -> tuple[Metric, ...]:
    """A column for each number of candidates."""
    return tuple(
        Metric(
            f"candidates_{size}",
            f"column accuracy of {size}",
            column_accuracy.chance(size),
            blind_to="the prompt",
            questions=_questions,
            value=partial(_value, size),
            reads="candidates",
        )
        for size in sizes
    )


METRICS = metrics(SIZES)
