"""Does a rewording change the answer? Column accuracy (or joint) under every wording of the
instructions: right under all, the worst, each.

--language es, de or fr: the wordings are that language's, prompts and responses stay English; all:
a column a language, English beside them. A model trained on English alone has seen none of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ecliptica.config import choice, option
from ecliptica.evaluation.banks import (
    METRIC_HELP,
    BankOptions,
    Crossed,
    at_least_two_wordings,
    falling_apart,
    load_crossed,
)
from ecliptica.evaluation.grid import Grid
from ecliptica.evaluation.metrics import paraphrase
from ecliptica.evaluation.suites import Asked, Details, Study, Suite
from ecliptica.isd.languages import ENGLISH, LANGUAGES, load_language
from model.errors import InputError

ALL = "all"


@dataclass(frozen=True)
class Options(BankOptions):
    metric: str = option("column_accuracy", f"what is right under a wording: {METRIC_HELP}")
    language: str = choice(
        ENGLISH, (ENGLISH, *LANGUAGES, ALL), "of the instructions; all: a column a language"
    )


def prepare(options: Options) -> Study:
    base = falling_apart(options.metric)
    crossed = load_crossed(options)
    count = at_least_two_wordings(options, crossed, "this suite compares at least two of each")

    # The wordings of one language, or of all of them, language by language.
    if options.language == ALL:
        codes = (ENGLISH, *LANGUAGES)
    else:
        codes = (options.language,)
    numbers = {}
    grids = []
    for code in codes:
        table = in_language(code, crossed, options.instructions)
        count = min(map(len, table.values()))
        numbers[code] = range(len(grids), len(grids) + count)
        for number in range(count):
            wording = {name: texts[number] for name, texts in table.items()}
            grids.append(Grid(crossed.bank, crossed.entries, wording))
    metrics = paraphrase.metrics(base, count)
    if options.language == ALL:
        metrics = paraphrase.metrics_by_language(base, numbers)
    return Study(
        units=list(zip(*(grid.crosses for grid in grids))),
        metrics=metrics,
        headline="all",
        details=details,
        record={"language": options.language},
    )


def in_language(code: str, crossed: Crossed, path: str) -> Mapping[str, tuple[str, ...]]:
    """The wordings of the instructions that are asked, in a language.

    Raises InputError for an instruction of one's own, which no shipped file translates.
    """
    if code == ENGLISH:
        return crossed.instructions
    table = load_language(code)
    for name in crossed.instructions:
        if name not in table:
            raise InputError(
                f"--language {code}: {path} has the instruction {name!r}, of which there is no "
                f"{LANGUAGES[code]} wording; give a file in that language as --instructions, and "
                "no --language"
            )
    return {name: table[name] for name in crossed.instructions}


def details(asked: Asked) -> Details:
    """Which wording, or which language, is the worst of each system."""
    worst = {}
    languages = False
    for label, by_name in asked.measured.per_unit.items():
        each = [name for name in by_name if name.startswith(paraphrase.PREFIXES)]
        languages = each[0].startswith(paraphrase.LANGUAGE)
        name = each[int(np.argmin([np.mean(by_name[name]) for name in each]))]
        ending = name.rpartition("_")[2]
        worst[label] = ending if languages else int(ending)
    if languages:
        text = "; ".join(f"{code} for {label}" for label, code in worst.items())
        return Details({"worst_language": worst}, [f"The worst language is {text}."])
    text = "; ".join(f"number {number} for {label}" for label, number in worst.items())
    note = f"The worst wording is {text}. Wording 1 trains, 2 is for dev, 3 for test."
    return Details({"worst_wording": worst}, [note])


SUITE = Suite("paraphrase", Options, prepare, lambda: paraphrase.METRICS)
