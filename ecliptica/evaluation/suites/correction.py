"""Does a correction in the conversation hold? The user asks under an instruction, is answered so,
then gives another one, and asks again or something else.

By likelihood over all reference responses of the prompt, no judge (metrics/correction.py). The
control "no correction" has the same conversations without the correction. Old and new instruction
are dealt to the prompts so that each is old and new equally often.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ecliptica.config import positive
from ecliptica.data.corrections import IN_TESTS, Turns, conversation
from ecliptica.data.templates import Turn
from ecliptica.evaluation.banks import WordedOptions, in_one_wording, load_crossed
from ecliptica.evaluation.metrics import correction
from ecliptica.evaluation.metrics.correction import Corrected, Form
from ecliptica.evaluation.questions import Question
from ecliptica.evaluation.suites import Asked, Details, Study, Suite
from ecliptica.isd.bank import Entry
from model.errors import InputError

NO_CORRECTION = "no correction"


@dataclass(frozen=True)
class Options(WordedOptions):
    prompts: int = positive(
        10, "how many prompts of the split, evenly spread over it; each has ten conversations"
    )


def prepare(options: Options) -> Study:
    crossed = load_crossed(options)
    split = [entry for entry in crossed.bank if entry.split == options.split and entry.responses]
    if len(split) < 2:
        raise InputError(f"{options.bank}: one prompt; a correction needs another one to ask")
    wording = in_one_wording(options, crossed.instructions)
    units, uncorrected = [], []
    for number, entry in enumerate(spread(crossed.entries, options.prompts)):
        old, new = dealt(number, len(wording))
        other = split[(split.index(entry) + 1) % len(split)]
        case = Case(entry, other, wording, old, new)
        units.append(case.unit())
        uncorrected.append(case.uncorrected())
    return Study(
        units=units,
        metrics=correction.METRICS,
        headline="newest",
        controls={NO_CORRECTION: uncorrected},
        details=details,
    )


def spread(entries: Sequence[Entry], count: int) -> list[Entry]:
    """So many entries, evenly spread over all, in their order."""
    count = min(count, len(entries))
    return [entries[number * len(entries) // count] for number in range(count)]


def dealt(number: int, instructions: int) -> tuple[int, int]:
    """(old, new) of the n-th prompt: over as many prompts as there are instructions each is old
    once and new once; then in other pairs."""
    old = number % instructions
    shift = 1 + (number // instructions) % (instructions - 1)
    return old, (old + shift) % instructions


@dataclass(frozen=True)
class Case:
    """A prompt, another one, and the two instructions."""

    entry: Entry
    other: Entry
    wording: dict[str, str]
    old: int
    new: int

    def unit(self) -> Corrected:
        """Every form of the correction."""
        forms = {}
        for kind, names in ((False, correction.BARE), (True, correction.COMPLAINT)):
            turns = self.turns(self.corrected(kind))
            for name, asked in zip(names, (self.entry, self.other)):
                forms[name] = self.form(name, turns, asked)
        bare = self.corrected(complaint=False)
        for between, name in enumerate(correction.AFTER, start=1):
            forms[name] = self.form(name, self.turns(bare, between), self.other)
        (name,) = correction.UNDONE
        forms[name] = self.form(name, self.turns(bare, undone=True), self.other)
        return Corrected(self.old, self.new, len(self.wording), forms)

    def uncorrected(self) -> Corrected:
        """The same conversation without the correction, asked both ways."""
        turns = self.turns(None)
        forms = {}
        for name, asked in zip(correction.BARE, (self.entry, self.other)):
            forms[name] = self.form(NO_CORRECTION, turns, asked)
        return Corrected(self.old, self.new, len(self.wording), forms)

    def corrected(self, complaint: bool) -> str:
        """The user's words."""
        new = list(self.wording.values())[self.new]
        return IN_TESTS.correction(new, complaint)

    def turns(self, said: str | None, between: int = 0, undone: bool = False) -> Turns:
        """The conversation up to the question."""
        name, text = list(self.wording.items())[self.old]
        first = Turn(self.entry.prompt, text, self.entry.responses[name])
        return conversation(first, IN_TESTS, said, between, undone)

    def form(self, name: str, turns: Turns, asked: Entry) -> Form:
        """The candidates for `asked` at the end of the conversation, and at its beginning."""
        ids = list(self.wording)
        pairs = []
        for k in ids:
            names = {
                "condition": f"correction: {name}",
                "prompt": asked.id,
                "instruction": ids[self.new],
                "old_instruction": ids[self.old],
                "response_to": asked.id,
                "response": k,
            }
            response = asked.responses[k]
            question = Question(asked.prompt, None, response, turns=turns, names=names)
            own = {"condition": "no conversation", "prompt": asked.id}
            own |= {"response_to": asked.id, "response": k}
            prior = Question(asked.prompt, None, response, names=own)
            pairs.append((question, prior))
        return Form(tuple(pairs))


def details(asked: Asked) -> Details:
    """What was said."""
    notes = [
        f'Bare: "{IN_TESTS.bare}"; complaint: "{IN_TESTS.complaint}"; '
        f'taken back: "{IN_TESTS.undo}".',
        "after_n and undone: bare, another prompt.",
    ]
    return Details({"phrases": [IN_TESTS.bare, IN_TESTS.complaint, IN_TESTS.undo]}, notes)


SUITE = Suite("correction", Options, prepare, lambda: correction.METRICS)
