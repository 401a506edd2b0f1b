"""Systems that are known by their lines in a ledger alone: metrics again, with no model loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ecliptica.evaluation.ledger import Ledger
from ecliptica.evaluation.options import BASE
from ecliptica.evaluation.questions import Answered, Question
from model.errors import InputError


@dataclass(frozen=True)
class Recorded:
    """A system that is known by its lines in a ledger alone: no model is loaded."""

    digest: str
    answers_key: str
    path: Path
    record: dict[str, Any] = field(default_factory=dict)

    def key(self, question: Question) -> str:
        return self.answers_key if question.asked == "answer" else self.digest

    def stamp(self) -> dict[str, Any]:
        return {}

    def ask(self, questions, missing: Sequence[Question], label: str, control) -> list[Answered]:
        """Nobody is there to be asked. Raises InputError that names what the ledger lacks."""
        first = missing[0]
        what = {"logp": "score"}.get(first.asked, first.asked)
        raise InputError(
            f"{self.path}: has no {what} of {label} for {first} (and {len(missing) - 1} more); it "
            "was made with other settings or not finished: run without --rescore"
        )


def recorded(ledger: Ledger, record: dict[str, Any] | None = None) -> dict[str, Recorded]:
    """{label: system} of whoever has a line in a ledger, the control first.

    record: how the trained one was made. Raises InputError for a ledger without a line.
    """
    digests, answers_keys = {}, {}
    for line in ledger.lines():
        keys = answers_keys if "r" in line else digests
        keys[line.get("system", BASE)] = line["key"]
    labels = sorted({**digests, **answers_keys}, key=lambda label: label != BASE)
    if not labels:
        raise InputError(
            f"--rescore {ledger.path}: no scored line in it; expected a samples.jsonl that a suite "
            "wrote"
        )
    systems = {}
    for label in labels:
        keys = digests.get(label, ""), answers_keys.get(label, "")
        systems[label] = Recorded(*keys, ledger.path, record or {})
    return systems
