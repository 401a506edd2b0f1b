"""Corrections in conversation: an answer under an old instruction, then a new one in the user's
own words; what the suite `correction` asks, and what data.corrections trains on (histories.py).

The words around an instruction are others in training than in the suite, as its wordings are.
"""

from dataclasses import dataclass

from ecliptica.data.templates import Turn, history

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
