"""The report's figures: each takes what a suite's results.json holds and gives a matplotlib Figure. matplotlib is loaded when one is drawn.

Made for 2 to 100 instructions, 1 to 6 systems, long labels, values that are None (left out). The control is always grey.
"""

import math
import textwrap

import numpy as np

from model.errors import InputError

COLOURS = (
    "#9299a3",
    "#d9722e",
    "#2f6db3",
    "#3a8f6b",
    "#7d5ba6",
    "#b8922c",
)  # control, trained, others
INK, GRID = "#22262b", "#d8dce2"
FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "Noto Sans",
    "Noto Sans Arabic",
    "Noto Sans Devanagari",
)
CURVES = (
    ("loss", ("loss",), "per preference"),
    ("margin", ("rewards/margins",), "beta (s+ - s-), mean"),
    ("accuracy and saturation", ("rewards/accuracies", "saturated"), "share of preferences"),
    ("exact KL to the reference", ("kl",), "nats per preference"),
    (
        "log-prob since step 0",
        ("logps/chosen_change", "logps/rejected_change"),
        "nats per response",
    ),
    ("gradient norm", ("grad_norm",), "before clipping"),
)
HEADLINES = 3  # metrics that get a panel of their own where systems are many


def style():
    """matplotlib's settings for every figure here. Raises InputError if it is not installed."""
    try:
        import matplotlib
        from matplotlib import font_manager
    except ImportError as error:
        raise InputError(
            f"the report's plots need matplotlib ({error}): pip install matplotlib"
        ) from error
    there = set(font_manager.get_font_names())
    return matplotlib.rc_context(
        {
            "font.family": [name for name in FONTS if name in there],
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


def new_figure(width, height):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def short(label, limit=26):
    return label if len(label) <= limit else label[: limit - 1] + "…"


def wrapped(label, width=16):
    return textwrap.fill(short(label, 3 * width), width)


def colour(n):
    return COLOURS[n % len(COLOURS)]


def numbers(cells):
    """value [N], and [2, N] how far the interval reaches below and above it; NaN for None."""
    value, low, high = (
        np.array(
            [np.nan if cell is None or cell[key] is None else cell[key] for cell in cells],
            dtype=float,
        )
        for key in ("value", "low", "high")
    )
    return value, np.array([value - low, high - value])


def legend(figure, labels, drawn, extra=()):
    handles, names = (
        [*drawn, *(handle for handle, _ in extra)],
        [*(short(label, 34) for label in labels), *(name for _, name in extra)],
    )
    figure.legend(
        handles, names, loc="outside upper center", ncols=min(4, len(names)), fontsize=9.5
    )


def shares(results):
    """The metrics that fit one axis of shares: every number known lies in [-1, 1]."""

    def fits(name):
        known = [
            v
            for by_name in results["systems"].values()
            for v in by_name[name].values()
            if v is not None
        ]
        return bool(known) and max(map(abs, known)) <= 1

    return [name for name in results["metrics"] if fits(name)]


def bars(results):
    """Every system's value of every metric that is a share, side by side, with its interval and the chance level."""
    names, systems = shares(results), results["systems"]
    figure = new_figure(max(9.5, min(12, 1.2 + len(names) * max(1.5, 0.42 * len(systems)))), 4.2)
    axes, drawn, width, lowest, highest, chance = (
        figure.subplots(),
        [],
        0.8 / len(systems),
        0.0,
        0.0,
        None,
    )
    crowded = len(systems) > 3
    for n, by_name in enumerate(systems.values()):
        value, reach = numbers([by_name[name] for name in names])
        at = np.arange(len(names)) + (n - (len(systems) - 1) / 2) * width
        drawn.append(
            axes.bar(
                at,
                value,
                width * 0.9,
                color=colour(n),
                yerr=reach,
                capsize=3,
                error_kw={"linewidth": 1.1, "ecolor": INK},
            )
        )
        for x, v, up in zip(at, value, reach[1]):
            if not math.isnan(v):
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
        lowest, highest = (
            np.nanmin([lowest, *(value - reach[0])]),
            np.nanmax([highest, *(value + reach[1])]),
        )
    for i, name in enumerate(names):
        if (level := results["metrics"][name]["chance"]) is not None:
            chance = axes.hlines(
                level,
                i - 0.46,
                i + 0.46,
                color="black",
                linestyle=(0, (2, 1.5)),
                linewidth=1.4,
                zorder=4,
            )
    axes.axhline(0, color="#8a8f98", linewidth=0.8)
    axes.set_xticks(
        range(len(names)), [wrapped(results["metrics"][name]["title"]) for name in names]
    )
    axes.set_ylim(
        lowest - 0.05 if lowest < 0 else 0, min(1.0, highest) + (0.18 if crowded else 0.12)
    )
    axes.set_ylabel(f"mean over {results['unit']}")
    axes.grid(axis="y", linewidth=0.6)
    legend(figure, systems, drawn, [(chance, "chance")] if chance else [])
    return figure


def differences(results):
    """The first metrics' paired difference to the control, a row a system: several seeds or systems at a glance."""
    names, rows = list(results["metrics"])[:HEADLINES], results["difference"]
    control = next(iter(results["systems"]))
    figure = new_figure(10.5, 1.5 + 0.34 * len(rows))
    for axes, name in zip(figure.subplots(1, len(names), sharey=True, squeeze=False)[0], names):
        value, reach = numbers([by_name[name] for by_name in rows.values()])
        for n in range(len(rows)):
            axes.errorbar(
                value[n],
                n,
                xerr=reach[:, n : n + 1],
                fmt="o",
                color=colour(n + 1),
                capsize=3,
                markersize=6,
            )
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_title(short(results["metrics"][name]["title"], 34))
        axes.set_xlabel(f"minus {short(control)}")
        axes.set_yticks(range(len(rows)), [short(label, 30) for label in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="x", linewidth=0.6)
    return figure


def instruction_bars(results):
    """Each instruction by itself: bars with intervals, the instruction with the best trained value on top."""
    systems = results["by_instruction"]
    metrics = [name for name in next(iter(systems.values())) if name in results["metrics"]]
    last = list(systems)[min(1, len(systems) - 1)]
    names = list(systems[last][metrics[0]])
    known = {name: systems[last][metrics[0]][name]["value"] for name in names}
    names.sort(key=lambda name: -math.inf if known[name] is None else known[name], reverse=True)
    pitch = max(0.36, 0.15 * len(systems)) if len(names) <= 30 else max(0.22, 0.1 * len(systems))
    figure = new_figure(10.5, 1.5 + pitch * len(names))
    width, drawn, chance = 0.8 / len(systems), [], None
    for axes, metric in zip(
        figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0], metrics
    ):
        drawn = []
        for n, by_metric in enumerate(systems.values()):
            value, reach = numbers([by_metric[metric].get(name) for name in names])
            at = np.arange(len(names)) + (n - (len(systems) - 1) / 2) * width
            drawn.append(
                axes.barh(
                    at,
                    value,
                    width * 0.92,
                    color=colour(n),
                    xerr=reach,
                    capsize=0 if len(names) > 30 else 1.5,
                    error_kw={"linewidth": 0.9, "ecolor": "#4a515b"},
                )
            )
        if (level := results["metrics"][metric]["chance"]) is not None:
            chance = axes.axvline(
                level, color="black", linestyle=(0, (2, 1.5)), linewidth=1.2, zorder=4
            )
        axes.set_title(results["metrics"][metric]["title"])
        axes.set_xlabel(f"mean over {results['unit']}")
        axes.set_yticks(
            range(len(names)),
            [short(name) for name in names],
            fontsize=9 if len(names) <= 30 else 7.5,
        )
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, 1.02)
        axes.tick_params(labeltop=len(names) > 30)
        axes.grid(axis="x", linewidth=0.6)
    legend(figure, systems, drawn, [(chance, "chance")] if chance else [])
    return figure


def heatmaps(results):
    """Interaction of instruction (row) and response (column): log-prob with row and column means taken out. A red diagonal is switching."""
    from matplotlib.patches import Rectangle

    names = results["instructions"]
    matrices = {
        label: np.array(matrix, dtype=float) for label, matrix in results["interaction"].items()
    }
    limit = (
        max((np.nanmax(np.abs(m)) for m in matrices.values() if not np.isnan(m).all()), default=0)
        or 1.0
    )
    columns = 1 if len(names) > 20 else min(2, len(matrices))
    rows = math.ceil(len(matrices) / columns)
    side = (
        min(4.4, 1.6 + 0.6 * len(names))
        if len(names) <= 12
        else min(15, 0.8 + 0.3 * len(names) if len(names) <= 20 else 1.5 + 0.15 * len(names))
    )
    font = 9 if len(names) <= 12 else 8 if len(names) <= 40 else 6.5
    figure = new_figure(columns * side + 2.4, rows * (side + 1) + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False)
    for n, axes in enumerate(grid.flat):
        if n >= len(matrices):
            axes.set_axis_off()
            continue
        label, matrix = list(matrices.items())[n]
        image = axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
        for i in range(len(names)):
            axes.add_patch(
                Rectangle(
                    (i - 0.5, i - 0.5),
                    1,
                    1,
                    fill=False,
                    edgecolor=INK,
                    linewidth=1.1 if len(names) <= 20 else 0.4,
                )
            )
        if len(names) <= 12:
            for (row, column), v in np.ndenumerate(matrix):
                if not math.isnan(v):
                    axes.text(
                        column,
                        row,
                        f"{round(v, 0 if limit >= 10 else 1) + 0.0:.{0 if limit >= 10 else 1}f}",
                        ha="center",
                        va="center",
                        fontsize=7.5,
                        color="white" if abs(v) > 0.6 * limit else INK,
                    )
        axes.set_xticks(
            range(len(names)),
            [short(name, 20) for name in names],
            rotation=90 if len(names) > 12 else 45,
            fontsize=font,
            ha="center" if len(names) > 12 else "right",
            rotation_mode="default" if len(names) > 12 else "anchor",
        )
        axes.set_yticks(
            range(len(names)),
            [short(name, 20) for name in names] if n % columns == 0 else [],
            fontsize=font,
        )
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xlabel("response written for")
        if n % columns == 0:
            axes.set_ylabel("instruction given")
        axes.set_title(short(label, 40))
    for row in grid:
        figure.colorbar(image, ax=list(row), label="nats, means removed", shrink=0.8, aspect=30)
    return figure


def radar_axes(all_results):
    """[(results, metric)]: each suite's first metric that has a chance level below 1; if they are fewer than three, all such metrics."""

    def usable(results):
        return [
            name
            for name in shares(results)
            if (level := results["metrics"][name]["chance"]) is not None and level < 1
        ]

    first = [(results, name) for results in all_results for name in usable(results)[:1]]
    return (
        first
        if len(first) >= 3
        else [(results, name) for results in all_results for name in usable(results)]
    )


def radar(spokes):
    """(value - chance) / (1 - chance) on every spoke: 0, the heavy ring, is chance; 1, the rim, is perfect. Below -0.25 is drawn at the centre."""
    labels = list(dict.fromkeys(label for results, _ in spokes for label in results["systems"]))
    several = len({id(results) for results, _ in spokes}) > 1
    figure = new_figure(7.6, 6.4)
    axes, angles = (
        figure.add_subplot(projection="polar"),
        np.linspace(0, 2 * np.pi, len(spokes), endpoint=False),
    )
    drawn = []
    for n, label in enumerate(labels):
        cells = [results["systems"].get(label, {}).get(name) for results, name in spokes]
        chance = np.array([results["metrics"][name]["chance"] for results, name in spokes])
        value = np.maximum((numbers(cells)[0] - chance) / (1 - chance), -0.25)
        whole = not np.isnan(value).any()
        drawn += axes.plot(
            np.append(angles, angles[0]),
            np.append(value, value[0]),
            color=colour(n),
            linewidth=2,
            marker="o",
            markersize=5,
        )
        if whole:
            axes.fill(angles, value, color=colour(n), alpha=0.08)
    axes.plot(
        np.linspace(0, 2 * np.pi, 200),
        np.zeros(200),
        color=INK,
        linewidth=1.4,
        linestyle=(0, (2, 1.5)),
    )
    axes.set_theta_offset(np.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_ylim(-0.25, 1)
    axes.set_yticks(
        [0, 0.25, 0.5, 0.75, 1], ["chance", "0.25", "0.5", "0.75", "1"], fontsize=8, color="#5a616b"
    )
    axes.set_rlabel_position(180 / len(spokes))
    axes.set_xticks(
        angles,
        [
            wrapped(
                (f"{results['suite']}: " if several else "") + results["metrics"][name]["title"], 18
            )
            for results, name in spokes
        ],
        fontsize=9.5,
    )
    for angle, said in zip(
        angles, axes.get_xticklabels()
    ):  # away from the rim, whatever its length
        said.set_horizontalalignment(
            "center" if abs(math.sin(angle)) < 0.1 else "left" if math.sin(angle) > 0 else "right"
        )
        said.set_verticalalignment(
            "center" if abs(math.cos(angle)) < 0.1 else "bottom" if math.cos(angle) > 0 else "top"
        )
    axes.tick_params(axis="x", pad=2)
    axes.spines["polar"].set_color(GRID)
    legend(figure, labels, drawn)
    return figure


def training_curves(rows):
    figure = new_figure(11, 5.6)
    for axes, (title, names, unit) in zip(figure.subplots(2, 3).flat, CURVES):
        for n, name in enumerate(names):
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            axes.plot(
                *zip(*points) if points else ([], []),
                color=(COLOURS[2], COLOURS[1])[n],
                linewidth=1.7,
                marker="o" if len(points) == 1 else None,
                label=name,
            )
        if not any(row.get(name) is not None for row in rows for name in names):
            axes.text(
                0.5, 0.5, "not recorded", ha="center", transform=axes.transAxes, color="#6b727c"
            )
        axes.set_title(title)
        axes.set_ylabel(unit, fontsize=9)
        axes.set_xlabel("optimizer step", fontsize=9)
        axes.grid(linewidth=0.6)
        if len(names) > 1:
            axes.legend(fontsize=8.5)
    return figure
