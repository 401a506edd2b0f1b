"""Does a rewording change the answer? Column accuracy (or joint) under every wording of the
instructions: right under all, the worst, each."""

from dataclasses import dataclass

import numpy as np

from ecliptica.config import option
from ecliptica.evaluation.banks import (
    METRIC_HELP,
    BankOptions,
    at_least_two_wordings,
    falling_apart,
    load_crossed,
)
from ecliptica.evaluation.grid import Grid
from ecliptica.evaluation.metrics import paraphrase
from ecliptica.evaluation.suites import Asked, Details, Study, Suite


@dataclass(frozen=True)
class Options(BankOptions):
    metric: str = option("column_accuracy", f"what is right under a wording: {METRIC_HELP}")


def prepare(options: Options) -> Study:
    base = falling_apart(options.metric)
    crossed = load_crossed(options)
    count = at_least_two_wordings(options, crossed, "this suite compares at least two of each")
    grids = []
    for number in range(count):
        wording = {name: texts[number] for name, texts in crossed.instructions.items()}
        grids.append(Grid(crossed.bank, crossed.entries, wording))
    return Study(
        units=list(zip(*(grid.crosses for grid in grids))),
        metrics=paraphrase.metrics(base, count),
        headline="all",
        details=details,
    )


def details(asked: Asked) -> Details:
    """Which wording is the worst of each system."""
    worst = {}
    for label, by_name in asked.measured.per_unit.items():
        each = [name for name in by_name if name.startswith("wording_")]
        worst[label] = int(np.argmin([np.mean(by_name[name]) for name in each])) + 1
    text = "; ".join(f"number {number} for {label}" for label, number in worst.items())
    note = f"The worst wording is {text}. Wording 1 trains, 2 is for dev, 3 for test."
    return Details({"worst_wording": worst}, [note])


SUITE = Suite("paraphrase", Options, prepare, lambda: paraphrase.METRICS)
