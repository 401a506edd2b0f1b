"""Joint (headline): share of instructions j under which y_{x,j} beats, in its own context
(I_j, x), every response to another instruction (x, k), to another prompt (x', j), and to both
(x', k): its `rivals`, by PMI against a content-free context (evaluation/pmi.py).

Right instruction *and* right prompt are needed: a model that ignores either is at chance among the
candidates that it cannot tell apart. Chance 1/(1 + number of rivals), stated per run.

In an incomplete design (design.py) the share is of the instructions whose own response is asked;
each still has to beat all of its rivals, the unasked siblings too, so chance stays what it is and
little is saved: leave joint to the complete design.
"""

from collections.abc import Iterator, Sequence
from itertools import cycle

import numpy as np

from ecliptica.evaluation import pmi
from ecliptica.evaluation.grid import Cross, square
from ecliptica.evaluation.metrics import Metric, top_share
from ecliptica.evaluation.questions import Question
from ecliptica.isd.bank import Entry

TITLE = "joint"


def value(own_J: Sequence[float], rivals_JC: Sequence[Sequence[float]]) -> float:
    return float(np.mean(by_instruction(own_J, rivals_JC)))


def by_instruction(own_J: Sequence[float], rivals_JC: Sequence[Sequence[float]]) -> list[float]:
    """[share of instruction j]. own_J: PMI of y_{x,j} in (I_j, x). rivals_JC: PMI, in that same
    context, of everything it has to beat."""
    return [top_share([own, *rivals], 0) for own, rivals in zip(own_J, rivals_JC)]


def chance(count: int) -> float:
    """Of one response among itself and `count` rivals."""
    return 1 / (count + 1)


def rivals(cross: Cross, j: str) -> list[tuple[Entry, str]]:
    """Whom y_{x,j} must beat, as (whose response, to which instruction).

    The responses to the same prompt under every other instruction; those of four other prompts
    under the same instruction; and those of the same four under another one: the first takes the
    instruction after j, the second the next, around the circle and past j.
    """
    at = cross.names.index(j)
    others = cross.names[at + 1 :] + cross.names[:at]
    same_prompt = [(cross.entry, k) for k in cross.names if k != j]
    same_instruction = [(other, j) for other in cross.rival_prompts]
    neither = list(zip(cross.rival_prompts, cycle(others)))
    return [*same_prompt, *same_instruction, *neither]


def questions(cross: Cross) -> Iterator[Question]:
    """The responses to this prompt under every instruction; then, instruction by instruction, the
    rivals, and every response in the context that says nothing."""
    yield from square(cross)
    for j in cross.asked:
        for owner, k in [(cross.entry, j), *rivals(cross, j)]:
            yield from pmi.questions(cross.question(j, owner, k))


def read(cross: Cross, answers) -> tuple[list[float], list[list[float]]]:
    """(PMI of y_{x,j}, PMI of its rivals) in (I_j, x), by instruction j of the asked ones."""
    own_J, rivals_JC = [], []
    for j in cross.asked:
        own_J.append(pmi.pmi(answers, cross.question(j, cross.entry, j)))
        asked = [cross.question(j, owner, k) for owner, k in rivals(cross, j)]
        rivals_JC.append([pmi.pmi(answers, question) for question in asked])
    return own_J, rivals_JC


def null(crosses: Sequence[Cross], answers: Sequence) -> float:
    levels = [chance(len(rivals(cross, j))) for cross in crosses for j in cross.names]
    return float(np.mean(levels))


METRICS = (
    Metric(
        "joint",
        TITLE,
        null,
        blind_to="",
        questions=questions,
        value=lambda cross, answers: value(*read(cross, answers)),
        reads="grid",
        parts=lambda cross, answers: cross.spread(by_instruction(*read(cross, answers))),
    ),
)
