"""What is left when the instruction is half said? Joint under an instruction with its clause
dropped, a vague one, and none, against the full one; and how far each moves the model from the
behaviour without instruction. See metrics/underspecified.py.

Of several texts of one kind, the n-th prompt gets the n-th, in turn.
"""

from dataclasses import dataclass

from ecliptica.config import option
from ecliptica.evaluation.banks import WordedOptions, in_one_wording, load_crossed
from ecliptica.evaluation.grid import MEANT, NO_INSTRUCTION, Grid
from ecliptica.evaluation.metrics import underspecified
from ecliptica.evaluation.metrics.underspecified import KINDS, NONE
from ecliptica.evaluation.suites import Study, Suite
from ecliptica.isd.sets import CLEAR, SETS, load_underspecified


@dataclass(frozen=True)
class Options(WordedOptions):
    data: str = option(
        str(SETS / "underspecified.toml"),
        "TOML: a table an instruction, with dropped and vague",
        default_text="the shipped one",
    )


def prepare(options: Options) -> Study:
    crossed = load_crossed(options)
    half = load_underspecified(options.data, list(crossed.instructions))
    full = in_one_wording(options, crossed.instructions)

    def wording(kind: str, number: int) -> dict[str, str]:
        """The instructions as the prompt of this number gets them."""
        if kind not in CLEAR:
            return full
        texts = {name: half[name][kind] for name in full}
        return {name: of[number % len(of)] for name, of in texts.items()}

    units = []
    for number, entry in enumerate(crossed.entries):
        unit = {}
        for kind in KINDS:
            condition = NO_INSTRUCTION if kind == NONE else MEANT
            grid = Grid(crossed.bank, [entry], wording(kind, number), condition)
            unit[kind] = grid.crosses[0]
        units.append(unit)
    return Study(units=units, metrics=underspecified.METRICS, headline="kept_dropped")


SUITE = Suite("underspecified", Options, prepare, lambda: underspecified.METRICS)
