"""All suites at a glance: one spoke a metric, chance as a ring."""

import math
from collections.abc import Sequence

import numpy as np

from ecliptica.evaluation.report.figures import (
    DASHES,
    GRID,
    INK,
    PALE,
    colour,
    legend,
    new_figure,
    numbers,
    wrapped,
)
from ecliptica.evaluation.report.figures.bars import shares

LOWEST = -0.25  # what lies below is drawn at the centre
Spoke = tuple  # (results, name of a metric)


def spokes(all_results: Sequence) -> list[Spoke]:
    """Each suite's first metric that has a chance level below 1; if they are fewer than three, all
    such metrics."""
    usable = [(results, name) for results in all_results for name in _usable(results)]
    first = [(results, name) for results in all_results for name in _usable(results)[:1]]
    return first if len(first) >= 3 else usable


def _usable(results) -> list[str]:
    names = []
    for name in shares(results):
        chance = results.metrics[name].chance
        if chance is not None and chance < 1:
            names.append(name)
    return names


def radar(spokes: Sequence[Spoke]):
    """(value - chance) / (1 - chance) on every spoke: 0, the heavy ring, is chance; 1, the rim, is
    perfect."""
    labels = list(dict.fromkeys(label for results, _ in spokes for label in results.systems))
    figure = new_figure(7.6, 6.4)
    axes = figure.add_subplot(projection="polar")
    angles = np.linspace(0, 2 * np.pi, len(spokes), endpoint=False)
    drawn = []
    for number, label in enumerate(labels):
        value = _heights(spokes, label)
        closed = np.append(angles, angles[0]), np.append(value, value[0])
        own = colour(number)
        drawn += axes.plot(*closed, color=own, linewidth=2, marker="o", markersize=5)
        if not np.isnan(value).any():
            axes.fill(angles, value, color=own, alpha=0.08)
    ring = np.linspace(0, 2 * np.pi, 200)
    axes.plot(ring, np.zeros(200), color=INK, linewidth=1.4, linestyle=DASHES)
    _dress(axes, spokes, angles)
    legend(figure, labels, drawn)
    return figure


def _heights(spokes: Sequence[Spoke], label: str) -> np.ndarray:
    """How far one system stands out on each spoke."""
    cells = [results.systems.get(label, {}).get(name) for results, name in spokes]
    chance = np.array([results.metrics[name].chance for results, name in spokes])
    return np.maximum((numbers(cells)[0] - chance) / (1 - chance), LOWEST)


def _dress(axes, spokes: Sequence[Spoke], angles: np.ndarray) -> None:
    """The first spoke on top, clockwise; the scale between two spokes; labels outside the rim."""
    axes.set_theta_offset(np.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_ylim(LOWEST, 1)
    heights = ["chance", "0.25", "0.5", "0.75", "1"]
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], heights, fontsize=8, color=PALE)
    axes.set_rlabel_position(180 / len(spokes))

    several = len({id(results) for results, _ in spokes}) > 1
    titles = []
    for results, name in spokes:
        suite = f"{results.suite}: " if several else ""
        titles.append(wrapped(suite + results.metrics[name].title, 18))
    axes.set_xticks(angles, titles, fontsize=9.5)
    # Away from the rim, whatever their length.
    for angle, label in zip(angles, axes.get_xticklabels()):
        label.set_horizontalalignment(_side(math.sin(angle), "left", "right"))
        label.set_verticalalignment(_side(math.cos(angle), "bottom", "top"))
    axes.tick_params(axis="x", pad=2)
    axes.spines["polar"].set_color(GRID)


def _side(offset: float, above: str, below: str) -> str:
    if abs(offset) < 0.1:
        return "center"
    return above if offset > 0 else below
