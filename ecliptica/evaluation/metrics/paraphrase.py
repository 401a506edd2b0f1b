"""Paraphrase: what of a metric survives a rewording of the instruction, by (x, k): right under
every wording; the mean of the worst wording.

Right under every wording is the smallest of the wordings' values, 1, 0 or the share of a tie. A
model that takes the same instruction for every response, or sees none, is right for 1/J under all
of them; one that guesses anew under each wording for 1/J^W. The first, the higher, is given as the
chance level. The worst wording is chosen on the data, anew in every draw: its mean is a little
below that of a fixed one.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from ecliptica.evaluation.grid import Cross
from ecliptica.evaluation.metrics import HOW, Derived, Metric, column_accuracy, level

worst = HOW["lowest"]
WORDING, LANGUAGE = "wording_", "language_"  # what the names of columns begin with
PREFIXES = (WORDING, LANGUAGE)

# A unit: one prompt, crossed with the instructions in each of their wordings.
Reworded = Sequence[Cross]


def value(shares_WK: Sequence[Sequence[float]]) -> float:
    """Mean over k of the smallest value over the wordings W."""
    return float(np.min(shares_WK, axis=0).mean())


def metrics(base: Metric, wordings: int) -> tuple[Metric | Derived, ...]:
    """The columns for a metric of the grid that has parts: under all wordings, the worst, each."""

    def null(units, answers):
        return level(base.null, [unit[0] for unit in units], answers)

    def questions(unit: Reworded):
        for cross in unit:
            yield from base.questions(cross)

    def under_all(unit: Reworded, answers) -> float:
        return value([base.parts(cross, answers) for cross in unit])

    def under_one(number: int, unit: Reworded, answers) -> float:
        return float(np.mean(base.parts(unit[number], answers)))

    columns = [
        Metric(
            "all",
            f"{base.title} under every wording",
            null,
            base.blind_to,
            questions,
            under_all,
            reads="wordings",
        )
    ]
    for number in range(wordings):
        columns.append(
            Metric(
                f"{WORDING}{number + 1}",
                f"{base.title}, wording {number + 1}",
                null,
                base.blind_to,
                questions,
                partial(under_one, number),
                reads="wordings",
            )
        )
    each = tuple(column.name for column in columns[1:])
    title = f"{base.title}, worst wording"
    return (*columns, Derived("worst", title, null, base.blind_to, each, "lowest"))


def metrics_by_language(
    base: Metric, numbers: Mapping[str, Sequence[int]]
) -> tuple[Metric | Derived, ...]:
    """The columns where the wordings are of several languages: under all of them, the worst
    language, and each, the mean of its wordings.

    numbers: {language: which of a unit's crosses are in it}.
    """
    under_all, *_ = metrics(base, 0)

    def in_one(own: Sequence[int], unit: Reworded, answers) -> float:
        return float(np.mean([base.parts(unit[number], answers) for number in own]))

    columns = []
    for language, own in numbers.items():
        columns.append(
            Metric(
                f"{LANGUAGE}{language}",
                f"{base.title}, instructions in {language}",
                under_all.null,
                base.blind_to,
                under_all.questions,
                partial(in_one, own),
                reads="wordings",
            )
        )
    each = tuple(column.name for column in columns)
    title = f"{base.title}, worst language"
    lowest = Derived("worst", title, under_all.null, base.blind_to, each, "lowest")
    return under_all, *columns, lowest


METRICS = metrics(column_accuracy.METRICS[0], wordings=3)
