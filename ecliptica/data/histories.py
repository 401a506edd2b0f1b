"""Preferences at the end of a conversation that corrects the instruction: the key data.corrections.

Made from the bank alone; the words around an instruction are those of corrections.IN_TRAINING.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ecliptica.data.corrections import IN_TRAINING, conversation
from ecliptica.data.templates import Turn
from ecliptica.isd.bank import Entry
from ecliptica.schema import Preference


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
