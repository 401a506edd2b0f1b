"""python benchmarks/plot.py OUT.png RESULT.json ...: speed of every system in results of
benchmarks/training.py and benchmarks/generation.py, a panel each."""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402

UNITS = {"preferences_per_cpu_second": "preferences", "tokens_per_cpu_second": "tokens"}


def panels(path: Path) -> list[tuple[str, str, dict[str, float]]]:
    """(title, unit, {system: rate}) of each comparison in a result."""
    systems = json.loads(path.read_text())["systems"]
    groups = {"": systems}
    if not any(key in next(iter(systems.values())) for key in UNITS):
        groups = systems
    drawn = []
    for name, group in groups.items():
        key = next(key for key in UNITS if key in next(iter(group.values())))
        title = f"{path.stem} {name}".strip()
        drawn.append((title, UNITS[key], {system: each[key] for system, each in group.items()}))
    return drawn


def main(argv: list[str]) -> None:
    out, *paths = argv
    drawn = [panel for path in paths for panel in panels(Path(path))]
    figure, axes = plt.subplots(1, len(drawn), figsize=(4 * len(drawn), 2.6), squeeze=False)
    for axis, (title, unit, rates) in zip(axes[0], drawn):
        names = list(rates)
        bars = axis.barh(names, list(rates.values()), color=["#2b6cb0"] + ["#a0aec0"] * len(names))
        axis.bar_label(bars, fmt="%.3g", padding=2)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel(f"{unit} a processor second", fontsize=8)
        axis.invert_yaxis()
        axis.margins(x=0.2)
    figure.tight_layout()
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    main(sys.argv[1:])
