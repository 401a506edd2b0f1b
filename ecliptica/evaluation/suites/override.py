"""Does the instruction hold when the prompt says to ignore it? Column accuracy (or joint) with an
override suffix over that with a harmless one as long.

Three strengths: mild, medium, strong. The n-th prompt gets the n-th pair of suffixes of each
strength, in turn. See metrics/contract_kept.py.
"""

from dataclasses import dataclass

from ecliptica.config import option
from ecliptica.evaluation.banks import (
    METRIC_HELP,
    WordedOptions,
    falling_apart,
    in_one_wording,
    load_crossed,
)
from ecliptica.evaluation.grid import Grid
from ecliptica.evaluation.metrics import contract_kept
from ecliptica.evaluation.suites import Study, Suite
from ecliptica.isd.sets import SETS, STRENGTHS, Override, load_override
from model.errors import InputError


@dataclass(frozen=True)
class Options(WordedOptions):
    data: str = option(
        str(SETS / "override.jsonl"),
        "JSON lines: id, strength, attack, harmless",
        default_text="the shipped ones",
    )
    metric: str = option("column_accuracy", f"what the contract is measured by: {METRIC_HELP}")


def prepare(options: Options) -> Study:
    base = falling_apart(options.metric)
    crossed = load_crossed(options)
    pairs = by_strength(options.data)
    wording = in_one_wording(options, crossed.instructions)
    units = []
    for number, entry in enumerate(crossed.entries):
        unit = {}
        for strength in reversed(STRENGTHS):
            pair = pairs[strength][number % len(pairs[strength])]
            for side in contract_kept.SIDES:
                suffix = " " + getattr(pair, side)
                grid = Grid(crossed.bank, [entry], wording, suffix=suffix)
                unit[strength, side] = grid.crosses[0]
        units.append(unit)
    return Study(units=units, metrics=contract_kept.metrics(base), headline="kept_strong")


def by_strength(path: str) -> dict[str, list[Override]]:
    """{strength: pairs of suffixes}. InputError for a strength without one."""
    pairs = {strength: [] for strength in STRENGTHS}
    for pair in load_override(path):
        pairs[pair.strength].append(pair)
    for strength in reversed(STRENGTHS):
        if not pairs[strength]:
            raise InputError(
                f"{path}: no pair of the strength {strength!r}; each of {', '.join(STRENGTHS)} "
                "needs one"
            )
    return pairs


SUITE = Suite("override", Options, prepare, lambda: contract_kept.METRICS)
