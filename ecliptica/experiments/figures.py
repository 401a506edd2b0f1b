"""The figures of an ablation: the headline of every arm with its seeds, and the front, metric
against KL, cells of one sweep joined."""

from collections.abc import Sequence
from dataclasses import dataclass

from ecliptica.evaluation import pooling
from ecliptica.evaluation.measured import Interval
from ecliptica.evaluation.report.figures import DASHES, INK, PALE, colour, new_figure, short
from ecliptica.evaluation.results import Results
from ecliptica.experiments.ablation import Ablation
from ecliptica.experiments.cells import CONTROL, Grid, as_name


@dataclass(frozen=True)
class Point:
    """One arm in a figure. family: cells of one family are joined."""

    arm: str
    family: str
    value: Interval
    kl: Interval
    seeds: tuple[float | None, ...]


def points(grid: Grid, arms: dict[str, list[Results]], metric: str) -> list[Point]:
    """A point an arm, in the order of the table."""
    pooled = pooling.table(arms, [metric])
    return [
        Point(
            arm=arm,
            family=family_of(grid.ablation, arm),
            value=pooled[arm][metric].value,
            kl=pooling.kl(seeds),
            seeds=pooled[arm][metric].seeds,
        )
        for arm, seeds in arms.items()
    ]


def family_of(ablation: Ablation, arm: str) -> str:
    """What is joined: the cells of a named arm along its axes; of a plain sweep all of them."""
    for one in sorted(ablation.arms, key=lambda one: -len(one.name)):
        if arm == as_name(one.name) or arm.startswith(f"{as_name(one.name)},"):
            return one.name
    if not ablation.axes or "=" not in arm:
        return arm
    *all_but_last, _ = arm.split(",")
    return ",".join(all_but_last) or "sweep"


def reach(cell: Interval) -> list[list[float]]:
    """How far an interval reaches below and above its value."""
    return [[cell.value - cell.low], [cell.high - cell.value]]


def arms(points: Sequence[Point], title: str, base: Interval):
    """A row an arm: its value with the interval, and its seeds."""
    there = [point for point in points if point.value.value is not None]
    figure = new_figure(9.5, 1.3 + 0.36 * len(there))
    axes = figure.subplots()
    for row, point in enumerate(there):
        axes.errorbar(
            point.value.value,
            row,
            xerr=reach(point.value),
            fmt="o",
            color=colour(1),
            capsize=3,
            markersize=6,
        )
        own = [seed for seed in point.seeds if seed is not None]
        axes.plot(own, [row] * len(own), "|", color=INK, markersize=10)
    if base.value is not None:
        axes.axvline(base.value, color=PALE, linestyle=DASHES, linewidth=1.2)
    axes.set_yticks(range(len(there)), [short(point.arm, 40) for point in there])
    axes.set_ylim(len(there) - 0.5, -0.5)
    axes.set_xlabel(f"{title}; dashed: {CONTROL}")
    axes.grid(axis="x", linewidth=0.6)
    return figure


def front(points: Sequence[Point], title: str, base: Interval):
    """Metric against exact KL, nats a token; the control stands at KL 0."""
    there = [p for p in points if p.kl.value is not None and p.value.value is not None]
    figure = new_figure(9.5, 5.2)
    axes = figure.subplots()
    families = list(dict.fromkeys(point.family for point in there))
    for number, family in enumerate(families, start=1):
        own = sorted((p for p in there if p.family == family), key=lambda point: point.kl.value)
        axes.plot(
            [point.kl.value for point in own],
            [point.value.value for point in own],
            color=colour(number),
            linewidth=1.3,
        )
        for point in own:
            axes.errorbar(
                point.kl.value,
                point.value.value,
                xerr=reach(point.kl),
                yerr=reach(point.value),
                fmt="o",
                color=colour(number),
                elinewidth=0.8,
            )
            place = (point.kl.value, point.value.value)
            axes.annotate(
                short(point.arm, 30), place, (5, 5), textcoords="offset points", fontsize=8
            )
    if base.value is not None:
        axes.plot(0, base.value, "s", color=colour(0))
        axes.annotate(CONTROL, (0, base.value), (5, -12), textcoords="offset points", fontsize=8)
    axes.set_xlabel("exact KL to the base, nats a token")
    axes.set_ylabel(title)
    axes.grid(linewidth=0.6)
    return figure
