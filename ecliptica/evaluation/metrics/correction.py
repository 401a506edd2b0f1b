"""Correction: after an instruction I_a and an answer under it, the user gives I_b; whose response
does the model then take?

Over the K responses y_k of the prompt that is asked, the favourite is the one that the conversation
makes more likely than the bare prompt does, argmax_k log pi(y_k | conversation) - log pi(y_k | x):
length, fluency and what the model answers anyhow cancel, and a model that ignores the conversation
has K ties.

newest: the favourite is y_b; stays: it is y_a. Null 1/K of each. Both are means over four forms:
I_b bare or as a complaint, the same prompt again or another. after_n: y_b after n turns between
that say nothing. undone: y_a, when the correction was taken back.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ecliptica.evaluation.metrics import Metric, mean, top_share
from ecliptica.evaluation.questions import Question

BARE = ("bare, again", "bare, other")
COMPLAINT = ("complaint, again", "complaint, other")
AGAIN = (BARE[0], COMPLAINT[0])
OTHER = (BARE[1], COMPLAINT[1])
AFTER = ("after 1", "after 2", "after 3")
UNDONE = ("undone",)


@dataclass(frozen=True, eq=False)
class Form:
    """One conversation, and the K candidates at its end: each with its prior, the bare prompt."""

    questions: tuple[tuple[Question, Question], ...]


@dataclass(frozen=True, eq=False)
class Corrected:
    """A unit: one prompt, its old and its new instruction (numbers among the K), its forms."""

    old: int
    new: int
    candidates: int
    forms: Mapping[str, Form]


def _questions(names: Sequence[str], unit: Corrected) -> Iterator[Question]:
    for name in names:
        if name in unit.forms:
            for pair in unit.forms[name].questions:
                yield from pair


def _value(names: Sequence[str], side: str, unit: Corrected, answers) -> float:
    """Mean over the forms that the unit has; NaN where it has none."""
    shares = []
    for name in names:
        if name not in unit.forms:
            continue
        pairs = unit.forms[name].questions
        gains = [answers[question] - answers[prior] for question, prior in pairs]
        shares.append(top_share(gains, getattr(unit, side)))
    return mean(shares)


def _null(units: Sequence[Corrected], answers: Sequence) -> float:
    return mean([1 / unit.candidates for unit in units])


def _metric(name: str, title: str, names: Sequence[str], side: str) -> Metric:
    return Metric(
        name,
        title,
        _null,
        blind_to="",
        questions=partial(_questions, names),
        value=partial(_value, names, side),
        reads="corrected",
    )


METRICS = (
    _metric("newest", "the newest instruction decides", BARE + COMPLAINT, "new"),
    _metric("stays", "the old instruction decides", BARE + COMPLAINT, "old"),
    _metric("bare", "newest: given bare", BARE, "new"),
    _metric("complaint", "newest: given as a complaint", COMPLAINT, "new"),
    _metric("again", "newest: the same prompt again", AGAIN, "new"),
    _metric("other", "newest: another prompt", OTHER, "new"),
    _metric("after_1", "newest: 1 turn later", AFTER[:1], "new"),
    _metric("after_2", "newest: 2 turns later", AFTER[1:2], "new"),
    _metric("after_3", "newest: 3 turns later", AFTER[2:], "new"),
    _metric("undone", "taken back: the first decides", UNDONE, "old"),
)
