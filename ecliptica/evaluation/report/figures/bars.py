"""Bars with intervals: every metric, every instruction; and differences as points."""

import math
from collections.abc import Sequence

import numpy as np

from ecliptica.evaluation.report.figures import (
    DASHES,
    INK,
    colour,
    legend,
    new_figure,
    numbers,
    short,
    wrapped,
)

HEADLINES = 3  # metrics that get a panel of their own where systems are many
MANY_INSTRUCTIONS = 30
BARS = 0.8  # of the space between two places that bars fill


def shares(results) -> list[str]:
    """The metrics that fit one axis of shares: every number known lies in [-1, 1]."""

    def fits(name: str) -> bool:
        known = []
        for by_name in results.systems.values():
            cell = by_name[name]
            known += [value for value in (cell.value, cell.low, cell.high) if value is not None]
        return bool(known) and max(map(abs, known)) <= 1

    return [name for name in results.metrics if fits(name)]


def places(count: int, number: int, systems: int) -> np.ndarray:
    """Where the bars of one system stand, beside those of the others, around 0, 1, 2, ..."""
    return np.arange(count) + (number - (systems - 1) / 2) * BARS / systems


def bars(results):
    """Every system's value of every metric that is a share, side by side, with its interval and
    the chance level."""
    names = shares(results)
    systems = results.systems
    room = len(names) * max(1.5, 0.42 * len(systems))
    figure = new_figure(max(9.5, min(12, 1.2 + room)), 4.2)
    axes = figure.subplots()
    crowded = len(systems) > 3

    # The bars, with their numbers above them.
    drawn, lowest, highest = [], 0.0, 0.0
    for number, by_name in enumerate(systems.values()):
        value, reach = numbers([by_name[name] for name in names])
        at = places(len(names), number, len(systems))
        drawn.append(
            axes.bar(
                at,
                value,
                BARS / len(systems) * 0.9,
                color=colour(number),
                yerr=reach,
                capsize=3,
                error_kw={"linewidth": 1.1, "ecolor": INK},
            )
        )
        _write_numbers(axes, at, value, reach[1], crowded)
        lowest = np.nanmin([lowest, *(value - reach[0])])
        highest = np.nanmax([highest, *(value + reach[1])])

    # The chance levels, and the axes.
    chance = _chance_lines(axes, [results.metrics[name].chance for name in names])
    axes.axhline(0, color="#8a8f98", linewidth=0.8)
    axes.set_xticks(range(len(names)), [wrapped(results.metrics[name].title) for name in names])
    bottom = lowest - 0.05 if lowest < 0 else 0
    axes.set_ylim(bottom, min(1.0, highest) + (0.18 if crowded else 0.12))
    axes.set_ylabel(f"mean over {results.unit}")
    axes.grid(axis="y", linewidth=0.6)
    legend(figure, systems, drawn, chance)
    return figure


def _write_numbers(axes, at, value, above, crowded: bool) -> None:
    for x, v, up in zip(at, value, above):
        if math.isnan(v):
            continue
        axes.text(
            x,
            max(v + up, 0) + 0.02,
            f"{v:.2f}",
            ha="center",
            va="bottom",
            fontsize=8 if crowded else 9,
            rotation=90 if crowded else 0,
            zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6},
        )


def _chance_lines(axes, levels: Sequence[float | None]):
    """A short line across each place that has a level; the last one, for the legend."""
    line = None
    for place, level in enumerate(levels):
        if level is not None:
            ends = place - 0.46, place + 0.46
            line = axes.hlines(
                level, *ends, color="black", linestyle=DASHES, linewidth=1.4, zorder=4
            )
    return line


def differences(results):
    """The first metrics' paired difference to the control, a row a system: several seeds or
    systems at a glance."""
    names = list(results.metrics)[:HEADLINES]
    rows = results.difference
    figure = new_figure(10.5, 1.5 + 0.34 * len(rows))
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names):
        value, reach = numbers([by_name[name] for by_name in rows.values()])
        for number in range(len(rows)):
            axes.errorbar(
                value[number],
                number,
                xerr=reach[:, number : number + 1],
                fmt="o",
                color=colour(number + 1),
                capsize=3,
                markersize=6,
            )
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_title(short(results.metrics[name].title, 34))
        axes.set_xlabel(f"minus {short(results.control)}")
        axes.set_yticks(range(len(rows)), [short(label, 30) for label in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="x", linewidth=0.6)
    return figure


def instruction_bars(results):
    """Each instruction by itself: bars with intervals, the instruction with the best trained value
    on top."""
    systems = results.by_instruction
    metrics = [name for name in next(iter(systems.values())) if name in results.metrics]
    names = _best_first(systems, metrics[0])
    many = len(names) > MANY_INSTRUCTIONS
    pitch = max(0.22, 0.1 * len(systems)) if many else max(0.36, 0.15 * len(systems))
    figure = new_figure(10.5, 1.5 + pitch * len(names))
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]

    chance = None
    for axes, metric in zip(panels, metrics):
        drawn = []
        for number, by_metric in enumerate(systems.values()):
            value, reach = numbers([by_metric[metric].get(name) for name in names])
            drawn.append(
                axes.barh(
                    places(len(names), number, len(systems)),
                    value,
                    BARS / len(systems) * 0.92,
                    color=colour(number),
                    xerr=reach,
                    capsize=0 if many else 1.5,
                    error_kw={"linewidth": 0.9, "ecolor": "#4a515b"},
                )
            )
        level = results.metrics[metric].chance
        if level is not None:
            chance = axes.axvline(level, color="black", linestyle=DASHES, linewidth=1.2, zorder=4)
        axes.set_title(results.metrics[metric].title)
        axes.set_xlabel(f"mean over {results.unit}")
        labels = [short(name) for name in names]
        axes.set_yticks(range(len(names)), labels, fontsize=7.5 if many else 9)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, 1.02)
        axes.tick_params(labeltop=many)
        axes.grid(axis="x", linewidth=0.6)
    legend(figure, systems, drawn, chance)
    return figure


def _best_first(systems: dict, metric: str) -> list[str]:
    """The instructions by the value of the first trained system, or of the only one."""
    labels = list(systems)
    cells = systems[labels[min(1, len(labels) - 1)]][metric]

    def value(name: str) -> float:
        known = cells[name].value
        return -math.inf if known is None else known

    return sorted(cells, key=value, reverse=True)
