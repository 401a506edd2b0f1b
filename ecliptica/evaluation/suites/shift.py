"""How far does an instruction move the whole next-token distribution, against how far a mere
rewording does?

For each prompt, --pairs random pairs of instructions (a, b): JSD along y_a and y_b between their
contexts; and between two wordings of a along y_a, two wordings of b along y_b. See
metrics/distribution_shift.py.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from ecliptica.config import option, seed
from ecliptica.evaluation.banks import (
    AT_LEAST_ONE,
    Crossed,
    WordedOptions,
    at_least_two_wordings,
    in_one_wording,
    load_crossed,
)
from ecliptica.evaluation.metrics import distribution_shift, mean
from ecliptica.evaluation.metrics.distribution_shift import INSTRUCTIONS, WORDINGS, Pairs, share
from ecliptica.evaluation.questions import Question
from ecliptica.evaluation.suites import Asked, Details, Study, Suite
from ecliptica.isd.bank import Entry


@dataclass(frozen=True)
class Options(WordedOptions):
    pairs: int = option(3, "pairs of instructions a prompt", AT_LEAST_ONE)
    seed: int = seed(0, "which pairs")


def prepare(options: Options) -> Study:
    crossed = load_crossed(options)
    at_least_two_wordings(
        options, crossed, "the shift is measured against that between two of each"
    )
    wording = in_one_wording(options, crossed.instructions)
    possible = list(itertools.combinations(wording, 2))
    units = []
    for number, entry in enumerate(crossed.entries):
        order = np.random.default_rng((options.seed, number)).permutation(len(possible))
        drawn = [possible[index] for index in order[: options.pairs]]
        units.append(questions(crossed, entry, wording, drawn))
    return Study(units=units, metrics=distribution_shift.METRICS, headline="ratio", details=details)


def questions(
    crossed: Crossed, entry: Entry, wording: dict[str, str], pairs: list[tuple[str, str]]
) -> Pairs:
    """The questions of one prompt: of every pair both instructions' own responses are read, under
    the two instructions, and under the response's own in two wordings."""
    unit = {INSTRUCTIONS: [], WORDINGS: []}

    def add(column: str, between: str, k: str, first: str, second: str) -> None:
        names = {"prompt": entry.id, "between": between, "response": k}
        unit[column].append(
            Question(
                entry.prompt,
                first,
                entry.responses[k],
                asked="jsd",
                other_instruction=second,
                names=names,
            )
        )

    for a, b in pairs:
        for k in (a, b):
            other = next(text for text in crossed.instructions[k] if text != wording[k])
            add(INSTRUCTIONS, f"{a}, {b}", k, wording[a], wording[b])
            add(WORDINGS, k, k, wording[k], other)
    return unit


def details(asked: Asked) -> Details:
    """Both parts as a share of the most that there can be."""
    notes = []
    for label, by_name in asked.measured.per_unit.items():
        between, wordings = (share(mean(by_name[name])) for name in (INSTRUCTIONS, WORDINGS))
        notes.append(
            f"{label}: between instructions {between:.4f} of ln 2, the most there can be; "
            f"between wordings {wordings:.4f}."
        )
    return Details(notes=notes)


SUITE = Suite("shift", Options, prepare, lambda: distribution_shift.METRICS)
