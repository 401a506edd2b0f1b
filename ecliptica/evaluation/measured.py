"""From every unit's value to intervals, and differences to the control with their p."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ecliptica.evaluation import statistics
from ecliptica.evaluation.metrics import HOW

Values = list[float | None]  # of every unit; None: it has none


@dataclass(frozen=True)
class Interval:
    """A mean over units with its 95 % interval; None where no unit has a value."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Change(Interval):
    """A difference to the control; p of none, as it is and Holm-adjusted over the table."""

    p: float
    p_holm: float


@dataclass(frozen=True)
class Column:
    """A metric as a reader sees it."""

    title: str
    chance: float | None  # None: there is none


@dataclass(frozen=True)
class Made:
    """How a number is made of the means of others: the names of these, and a key of
    metrics.HOW."""

    of: tuple[str, ...]
    how: str


@dataclass(frozen=True)
class Measured:
    """Every unit's value of every system, before any interval. `rows` are the metrics of the
    table, shown or derived, in its order."""

    rows: dict[str, Column]
    per_unit: dict[str, dict[str, Sequence[float]]]
    parts: dict[str, dict[str, Sequence[float]]]
    derived: dict[str, Made]

    def column(self, label: str, name: str) -> Sequence[float]:
        own = self.per_unit[label]
        return own[name] if name in own else self.parts[label][name]

    def columns(self, label: str, name: str) -> list[Sequence[float]]:
        """Of a derived metric: what it is made of."""
        return [self.column(label, of) for of in self.derived[name].of]

    def how(self, name: str):
        return HOW[self.derived[name].how]


def intervals(measured: Measured, drawn: np.ndarray) -> dict[str, dict[str, Interval]]:
    """{label: {metric: interval}}."""
    systems = {}
    for label in measured.per_unit:
        systems[label] = {}
        for name in measured.rows:
            if name in measured.derived:
                columns = measured.columns(label, name)
                numbers = statistics.combined(measured.how(name), columns, drawn)
            else:
                numbers = statistics.summary(measured.per_unit[label][name], drawn)
            systems[label][name] = Interval(**numbers)
    return systems


def changes(measured: Measured, drawn: np.ndarray, seeds: int = 1) -> dict[str, dict[str, Change]]:
    """{label: {metric: difference to the control}} of the others: paired by unit. Of several
    seeds p comes from the draws, since units of one seed are not units of the next."""
    control, *others = measured.per_unit
    numbers, p = {}, {}
    for label in others:
        for name in measured.rows:
            if name in measured.derived:
                mine, own = (measured.columns(side, name) for side in (label, control))
                how = measured.how(name)
            else:
                mine, own = ([measured.per_unit[side][name]] for side in (label, control))
                how = None
            numbers[label, name], p[label, name] = _change(how, mine, own, drawn, seeds)
    adjusted = dict(zip(p, statistics.holm(list(p.values()))))
    return {
        label: {
            name: Change(**numbers[label, name], p=p[label, name], p_holm=adjusted[label, name])
            for name in measured.rows
        }
        for label in others
    }


def detectable(measured: Measured, drawn: np.ndarray) -> dict[str, dict[str, float | None]]:
    """{label: {metric: the smallest difference to the control that this table could have shown}},
    from its own spread between units (statistics.detectable). Of a system that stands alone: the
    smallest distance from a fixed value, such as chance."""
    control, *others = measured.per_unit
    table = {}
    for label in others or [control]:
        table[label] = {}
        for name in measured.rows:
            how, mine = _made_of(measured, label, name)
            columns = list(mine)
            if label != control:
                columns += _made_of(measured, control, name)[1]
                how = _minus(how, len(mine))
            units = len(columns[0])
            table[label][name] = statistics.detectable(how, columns, drawn, units)
    return table


def _made_of(measured: Measured, label: str, name: str):
    """(how, columns) of a row of the table: of a plain metric its own mean."""
    if name in measured.derived:
        return measured.how(name), measured.columns(label, name)
    return (lambda mean: mean), [measured.per_unit[label][name]]


def _minus(how, count: int):
    """how of the first `count` means minus how of the others."""
    return lambda *means: how(*means[:count]) - how(*means[count:])


def _change(how, mine, own, drawn: np.ndarray, seeds: int) -> tuple[dict, float]:
    """(interval of the difference, p). how None: of one column."""
    if how is None:
        paired = np.subtract(mine[0], own[0])
        numbers = statistics.summary(paired, drawn)
        if seeds > 1:
            return numbers, statistics.bootstrap_p(lambda mean: mean, [paired], drawn)
        return numbers, statistics.sign_flip(paired)
    numbers = statistics.change(how, mine, own, drawn)
    if seeds > 1:
        both = [*mine, *own]
        return numbers, statistics.bootstrap_p(_minus(how, len(mine)), both, drawn)
    return numbers, statistics.swap_test(how, mine, own)


def listed(values: Sequence[float]) -> Values:
    """As JSON has it: None for NaN."""
    return [None if math.isnan(value) else float(value) for value in values]
