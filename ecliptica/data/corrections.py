"""Corrections in conversation: an answer under an old instruction, then a new one in the user's
own words; what the suite `correction` asks, and what data.corrections trains on, from a bank alone.

The words around an instruction are others in training than in the suite, as its wordings are.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ecliptica.data.templates import Turn, history
from ecliptica.isd.bank import Entry
from ecliptica.schema import Preference

Turns = tuple[tuple[str, str], ...]  # (user, assistant)


@dataclass(frozen=True)
class Phrases:
    """What is said around an instruction; {} stands for it."""

    bare: str
    complaint: str
    undo: str
    agreed: str
    between: Turns  # of no instruction and no topic

    def correction(self, instruction: str, complaint: bool) -> str:
        """What the user says to correct."""
        return (self.complaint if complaint else self.bare).replace("{}", instruction)


IN_TRAINING = Phrases(
    bare="A change, please: {}",
    complaint="I had hoped for another kind of answer. {}",
    undo="On second thoughts, answer the way you did at the start.",
    agreed="All right.",
    between=(
        ("Good.", "Glad to hear it."),
        ("Just a second.", "No hurry."),
        ("There we are.", "Go on."),
    ),
)
IN_TESTS = Phrases(
    bare="From now on: {}",
    complaint="That is not what I wanted. {}",
    undo="Please go back to answering as before.",
    agreed="Understood.",
    between=(
        ("Thank you.", "You are welcome."),
        ("One moment, please.", "Of course, take your time."),
        ("I am back.", "Welcome back."),
    ),
)


def conversation(
    first: Turn,
    phrases: Phrases,
    correction: str | None,
    between: int = 0,
    undone: bool = False,
) -> Turns:
    """The turns before the question: `first`, the correction (None: none), perhaps taken back, and
    so many turns of no instruction."""
    turns = list(history([first]))
    if correction is not None:
        turns.append((correction, phrases.agreed))
    if undone:
        turns.append((phrases.undo, phrases.agreed))
    return (*turns, *phrases.between[:between])


# Training data


@dataclass(frozen=True)
class Source:
    """Of what histories are made: prompts with references, and the instructions' texts."""

    entries: Sequence[Entry]
    texts: Mapping[str, str]  # {instruction id: its text}

    def place(self, preference: Preference) -> tuple[Entry, str, str | None]:
        """(entry, instruction of the chosen response, instruction of the rejected one if that is
        an answer to the same prompt)."""
        for entry in self.entries:
            names = {text: name for name, text in entry.responses.items()}
            if entry.prompt == preference.prompt and preference.responses[0] in names:
                chosen, rejected = preference.responses[:2]
                return entry, names[chosen], names.get(rejected)
        raise KeyError(f"{preference.id}: not made from these entries")


def with_histories(
    preferences: Sequence[Preference], source: Source, share: float, seed: str
) -> list[Preference]:
    """The preferences, so large a share of them at the end of a corrected conversation.

    Chosen and rejected responses stay as they are, so that each is still chosen and rejected
    equally often; the instruction is in the history alone. Where the rejected response is a
    sibling, its instruction is the old one: what is preferred is the correction. In one of four
    the correction is taken back, and the first instruction decides.
    """
    generator = random.Random(f"corrections {seed}")
    number = round(share * len(preferences))
    picked = set(generator.sample(range(len(preferences)), number))
    made = []
    for at, preference in enumerate(preferences):
        if at in picked:
            preference = _corrected(preference, source, generator)
        made.append(preference)
    return made


def _corrected(preference: Preference, source: Source, generator: random.Random) -> Preference:
    """The preference with a history whose newest standing instruction is its own."""
    entry, new, rejected = source.place(preference)
    old = rejected
    if old is None or old == new:
        old = generator.choice([name for name in source.texts if name != new])
    others = [other for other in source.entries if other is not entry]
    elsewhere = generator.choice(others)
    undone = generator.random() < 0.25
    again = generator.random() < 0.5
    complaint = generator.random() < 0.5
    between = generator.randrange(3)

    # Taken back: the first answer is under the instruction that decides, so to another prompt,
    # since it would be the chosen response itself.
    first_entry = entry if again and not undone else elsewhere
    before, after = (new, old) if undone else (old, new)
    first = Turn(first_entry.prompt, source.texts[before], first_entry.responses[before])
    correction = IN_TRAINING.correction(source.texts[after], complaint)
    turns = conversation(first, IN_TRAINING, correction, between, undone)
    return replace(preference, instruction=None, turns=turns)
