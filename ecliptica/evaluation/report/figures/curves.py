"""Training curves."""

from collections.abc import Sequence

from ecliptica.evaluation.report.figures import COLOURS, new_figure

# Title, columns of metrics.jsonl, unit.
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


def training_curves(steps: Sequence[dict]):
    """steps: the lines of metrics.jsonl. A column that none of them has says so."""
    figure = new_figure(11, 5.6)
    for axes, (title, names, unit) in zip(figure.subplots(2, 3).flat, CURVES):
        recorded = False
        for number, name in enumerate(names):
            there = [step for step in steps if step.get(name) is not None]
            recorded |= bool(there)
            axes.plot(
                [step["step"] for step in there],
                [step[name] for step in there],
                color=(COLOURS[2], COLOURS[1])[number],
                linewidth=1.7,
                marker="o" if len(there) == 1 else None,
                label=name,
            )
        if not recorded:
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
