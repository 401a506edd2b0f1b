"""Prompt match: share of instructions j under which log pi(y_{x,j} | I_j, x') over x and N
distractor prompts x' is highest at x.

The same string under every prompt, so response length plays no part. Chance 1/(N + 1). Blind to
the instruction. In an incomplete design (design.py) j runs over the asked responses.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from ecliptica.evaluation.grid import Cross
from ecliptica.evaluation.metrics import Metric, top_share
from ecliptica.evaluation.questions import Question

TITLE = "prompt match"


def value(own_J: Sequence[float], others_JN: Sequence[Sequence[float]]) -> float:
    shares = [top_share([own, *others], 0) for own, others in zip(own_J, others_JN)]
    return float(np.mean(shares))


def chance(distractors: int) -> float:
    return 1 / (distractors + 1)


def questions(cross: Cross) -> Iterator[Question]:
    """y_{x,j} under I_j, at its own prompt and at every distractor."""
    for j in cross.asked:
        yield cross.question(j, cross.entry, j)
        yield from _at_distractors(cross, j)


def of_cross(cross: Cross, answers) -> float:
    own_J = [answers[cross.question(j, cross.entry, j)] for j in cross.asked]
    others_JN = [[answers[asked] for asked in _at_distractors(cross, j)] for j in cross.asked]
    return value(own_J, others_JN)


def null(crosses: Sequence[Cross], answers: Sequence) -> float:
    return float(np.mean([chance(len(cross.distractors)) for cross in crosses]))


def _at_distractors(cross: Cross, j: str) -> list[Question]:
    return [cross.question(j, cross.entry, j, at=other) for other in cross.distractors]


METRICS = (
    Metric(
        "prompt_match",
        TITLE,
        null,
        blind_to="the instruction",
        questions=questions,
        value=of_cross,
        reads="grid",
    ),
)
