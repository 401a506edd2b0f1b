"""Instruction against response as a heatmap a system."""

import math

import numpy as np

from ecliptica.evaluation.report.figures import INK, new_figure, short

FEW, SOME, MANY = 12, 20, 40  # instructions: up to which numbers are written, labels are level, ...


def heatmaps(results):
    """Interaction of instruction (row) and response (column): log-prob with row and column means
    taken out. A red diagonal is switching."""
    names = results.details["instructions"]
    matrices = {
        label: np.array(matrix, dtype=float)
        for label, matrix in results.details["interaction"].items()
    }
    limit = _limit(matrices.values())
    columns = 1 if len(names) > SOME else min(2, len(matrices))
    rows = math.ceil(len(matrices) / columns)
    side = _side(len(names))
    figure = new_figure(columns * side + 2.4, rows * (side + 1) + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False)
    for number, axes in enumerate(panels.flat):
        if number >= len(matrices):
            axes.set_axis_off()
            continue
        label, matrix = list(matrices.items())[number]
        image = _draw(axes, matrix, limit)
        _label(axes, names, first_of_row=number % columns == 0)
        axes.set_title(short(label, 40))
    for row in panels:
        figure.colorbar(image, ax=list(row), label="nats, means removed", shrink=0.8, aspect=30)
    return figure


def _limit(matrices) -> float:
    """The end of the colour scale: the same for all systems."""
    known = [np.nanmax(np.abs(matrix)) for matrix in matrices if not np.isnan(matrix).all()]
    return max(known, default=0) or 1.0


def _side(count: int) -> float:
    """Inches of one heatmap."""
    if count <= FEW:
        return min(4.4, 1.6 + 0.6 * count)
    if count <= SOME:
        return min(15, 0.8 + 0.3 * count)
    return min(15, 1.5 + 0.15 * count)


def _draw(axes, matrix: np.ndarray, limit: float):
    """The colours, the outlined diagonal, and the numbers where there is room."""
    from matplotlib.patches import Rectangle

    count = len(matrix)
    image = axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
    width = 1.1 if count <= SOME else 0.4
    for at in range(count):
        corner = (at - 0.5, at - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=INK, linewidth=width))
    if count <= FEW:
        digits = 0 if limit >= 10 else 1
        for (row, column), value in np.ndenumerate(matrix):
            if math.isnan(value):
                continue
            text = f"{round(value, digits) + 0.0:.{digits}f}"
            pale = abs(value) > 0.6 * limit
            axes.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                fontsize=7.5,
                color="white" if pale else INK,
            )
    return image


def _label(axes, names: list[str], first_of_row: bool) -> None:
    labels = [short(name, 20) for name in names]
    font = 6.5
    if len(names) <= FEW:
        font = 9
    elif len(names) <= MANY:
        font = 8
    upright = len(names) > FEW
    axes.set_xticks(
        range(len(names)),
        labels,
        rotation=90 if upright else 45,
        fontsize=font,
        ha="center" if upright else "right",
        rotation_mode="default" if upright else "anchor",
    )
    axes.set_yticks(range(len(names)), labels if first_of_row else [], fontsize=font)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel("response written for")
    if first_of_row:
        axes.set_ylabel("instruction given")
