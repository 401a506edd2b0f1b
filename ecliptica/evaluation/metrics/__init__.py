"""One file, one metric. A file that is dropped in is there: it has a docstring with the definition
and METRICS, the columns of a table that it stands for, each a Metric or a Derived.

s_JK[j, k] = s(j, k, x) = log pi(y_{x,k} | I_j, x), response tokens only, for one prompt x.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ecliptica.evaluation.questions import Question
from ecliptica.registry import Folder

FOLDER = Folder(__name__, __path__, "metric")
NAN = float("nan")

# A unit is what intervals resample: a prompt in a grid, a request, a text. Answers are those of
# one system: answers[question] is a number, or the line of a generated text.
Unit = Any
Answers = Any
Null = float | None | Callable[[Sequence[Unit], Sequence[Answers]], float]


def nothing(unit: Unit) -> tuple[Question, ...]:
    """The questions of a metric that reads what others ask, or no answer of a system at all."""
    return ()


@dataclass(frozen=True)
class Metric:
    """One number of one unit of one system, and its mean over units.

    null: the value of a model that ignores what the metric is about; None where there is none; or
    null(units, the answers of every system, the control first) where it depends on the run.
    reads: the kind of unit; a suite takes all metrics that read its units. parts: of a metric that
    falls apart by instruction, the value of each; the metric is their mean.
    """

    name: str
    title: str
    null: Null
    blind_to: str  # what a model could ignore and still be right; "" for nothing
    questions: Callable[[Unit], Iterable[Question]]
    value: Callable[[Unit, Answers], float]  # NaN: the unit has none
    reads: str = ""
    parts: Callable[[Unit, Answers], Sequence[float]] | None = None
    against_control: bool = False  # only in a table that has another system than the control
    shown: bool = True  # False: a column that a Derived reads, and no row of the table


# How a Derived is made of the means of its columns. By name, so that results that are read from a
# file can be pooled too.
HOW: dict[str, Callable[..., Any]] = {
    "ratio": np.divide,
    "exp of ratio": lambda above, below: np.exp(np.divide(above, below)),
    "lowest": lambda *means: np.min(means, axis=0),
}


@dataclass(frozen=True)
class Derived:
    """A number made of the means of several metrics, such as their ratio, anew in every draw of
    the bootstrap. Its p swaps the two systems within units."""

    name: str
    title: str
    null: Null
    blind_to: str
    of: tuple[str, ...]  # names of metrics, shown or not
    how: str = "ratio"  # a key of HOW
    against_control: bool = False


def all_of() -> dict[str, Metric | Derived]:
    """{name: metric} of every file, those of one file together."""
    return {metric.name: metric for file in FOLDER.all().values() for metric in file.METRICS}


def reading(kind: str) -> dict[str, Metric]:
    """The metrics that read one kind of unit."""
    return {
        name: metric
        for name, metric in all_of().items()
        if isinstance(metric, Metric) and metric.reads == kind
    }


def level(null: Null, units: Sequence[Unit], answers: Sequence[Answers]) -> float | None:
    """The null value in one run."""
    return null(units, answers) if callable(null) else null


# What several metrics share


def top_share(values: Sequence[float], index: int) -> float:
    """1 if `index` is the maximum, 1/n if it shares it with n - 1 others, else 0: a blind model
    gets chance, not luck of the order. NaN if a value is: that is no wrong answer."""
    values = np.asarray(values)
    if np.isnan(values).any():
        return NAN
    top = values == values.max()
    return float(top[index] / top.sum())


def preference(first: float, second: float) -> float:
    """1 if the first is greater, 0 if the second is, 0.5 on a tie; NaN if one is."""
    if math.isnan(first) or math.isnan(second):
        return NAN
    return 0.5 + 0.5 * ((first > second) - (first < second))


def mean(values: Sequence[float]) -> float:
    """Of those that are there; NaN where none is."""
    values = np.asarray(values, dtype=np.float64)
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else NAN
