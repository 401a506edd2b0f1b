"""The report's figures: each takes results and gives a matplotlib Figure. matplotlib is loaded
when one is drawn.

Made for 2 to 100 instructions, 1 to 6 systems, long labels, values that are None (left out). The
control is always grey. What they share is here; bars, heatmaps, radar, curves beside it.
"""

import textwrap
from collections.abc import Sequence

import numpy as np

from model.errors import InputError

# Control, trained, others.
COLOURS = ("#9299a3", "#d9722e", "#2f6db3", "#3a8f6b", "#7d5ba6", "#b8922c")
INK, GRID, PALE = "#22262b", "#d8dce2", "#5a616b"
DASHES = (0, (2, 1.5))
FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "Noto Sans",
    "Noto Sans Arabic",
    "Noto Sans Devanagari",
)


def style():
    """matplotlib's settings for every figure here. Raises InputError if it is not installed."""
    try:
        import matplotlib
        from matplotlib import font_manager
    except ImportError as error:
        raise InputError(
            f"the report's plots need matplotlib ({error}): pip install matplotlib"
        ) from error
    installed = set(font_manager.get_font_names())
    return matplotlib.rc_context(
        {
            "font.family": [name for name in FONTS if name in installed],
            "font.size": 10,
            "text.parse_math": False,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": "#8a8f98",
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "axes.axisbelow": True,
            "grid.color": GRID,
            "legend.frameon": False,
            "savefig.facecolor": "white",
        }
    )


def new_figure(width: float, height: float):
    """Inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def short(label: str, limit: int = 26) -> str:
    return label if len(label) <= limit else label[: limit - 1] + "…"


def wrapped(label: str, width: int = 16) -> str:
    return textwrap.fill(short(label, 3 * width), width)


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def numbers(cells: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Of intervals: value [N], and [2, N] how far they reach below and above it; NaN for None."""

    def column(name: str) -> np.ndarray:
        values = [None if cell is None else getattr(cell, name) for cell in cells]
        return np.array([np.nan if value is None else value for value in values], dtype=float)

    value = column("value")
    return value, np.array([value - column("low"), column("high") - value])


def legend(figure, labels: Sequence[str], drawn: Sequence, chance=None) -> None:
    """Above the figure: the systems, and the line of chance if one was drawn."""
    handles = [*drawn]
    names = [short(label, 34) for label in labels]
    if chance:
        handles.append(chance)
        names.append("chance")
    columns = min(4, len(names))
    figure.legend(handles, names, loc="outside upper center", ncols=columns, fontsize=9.5)
