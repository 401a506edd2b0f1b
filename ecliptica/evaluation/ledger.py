"""The ledger: every answer that a system has given, in one append-only file, a line a question.

Killed at any point and started again, a run asks what is not there and nothing else. A line is
found again by a digest of the system (weights, adapter, template, dtype; of a generated text the
settings of generation too) and one of the question, so no other model's and no other data's answer
can be taken for it. Hence runs may share a ledger: a base model is then scored once for all.
"""

import fcntl
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ecliptica.evaluation.questions import ASKED, Answered, Question
from ecliptica.files import append_lines, check_writable, journal_lines, naming
from model.errors import InputError
from model.files import parse_object

FILE = "samples.jsonl"
NUMBERS = ("logp", "kl", "jsd")


class Answering(Protocol):
    """A system as the ledger sees it."""

    digest: str

    def key(self, question: Question) -> str:
        """What an answer depends on beside the question."""

    def stamp(self) -> dict[str, Any]:
        """What every line of the system says."""

    def ask(
        self,
        questions: Sequence[Question],
        missing: Sequence[Question],
        label: str,
        control: "Answering",
    ) -> Iterable[Answered]:
        """Answers to the `missing` ones of `questions`, all of one kind, as they are made."""


class Ledger:
    """The file and what it holds. `path`: a .jsonl file, or the directory of a samples.jsonl."""

    def __init__(self, path: str | Path):
        path = Path(path)
        self.path = path if path.suffix == ".jsonl" else path / FILE
        self._size = -1
        self._lines: dict[tuple[str, str], dict[str, Any]] = {}
        self.read()

    def check_writable(self, option: str) -> None:
        """Before the work: InputError if no line can be appended."""
        check_writable(self.path.parent, option, directory=True)
        check_writable(self.path, option)

    def read(self) -> None:
        """What the file holds by now: another run may write to it too."""
        if not self.path.exists() or self.path.stat().st_size == self._size:
            return
        self._size = self.path.stat().st_size
        for number, line in enumerate(journal_lines(self.path), start=1):
            record = _record(line, f"{self.path}:{number}")
            if record.get("key") and record.get("cell"):
                self._lines[record["key"], record["cell"]] = record

    def lines(self) -> list[dict[str, Any]]:
        """Every line that answers a question, in the order of the file."""
        return list(self._lines.values())

    def line(self, key: str, cell: str) -> dict[str, Any] | None:
        return self._lines.get((key, cell))

    def answers(self, system: Answering, control: Answering | None = None) -> "Answers":
        """What is known of one system. control: what a KL is taken to (None: of itself, 0)."""
        return Answers(self, system, control or system)

    def ask(
        self,
        system: Answering,
        label: str,
        questions: Iterable[Question],
        control: Answering | None = None,
    ) -> "Answers":
        """The answers of a system with all of `questions` in them: what is missing is asked."""
        answers = self.answers(system, control)
        by_kind = {asked: {} for asked in ASKED}
        for question in questions:
            by_kind[question.asked][question] = question
        self.read()
        for same_kind in by_kind.values():
            wanted = list(same_kind.values())
            missing = [question for question in wanted if not answers.knows(question)]
            if not missing:
                continue
            for answered in system.ask(wanted, missing, label, answers.control):
                self._append(answers, label, answered)
        return answers

    def _append(self, answers: "Answers", label: str, answered: Answered) -> None:
        """Lines on disk before anything else is asked."""
        records = []
        for question, line in answered:
            key, cell = answers.place(question)
            head = {"system": label, "key": key, "cell": cell}
            records.append(head | question.names | line | answers.system.stamp())
        with naming(self.path), open(self.path, "ab") as held:
            # Two runs that share the file write one after the other.
            fcntl.flock(held, fcntl.LOCK_EX)
            append_lines(self.path, records)
        for record in records:
            self._lines[record["key"], record["cell"]] = record


class Answers:
    """One system's answers by question: a number, or the line of a generated text."""

    def __init__(self, ledger: Ledger, system: Answering, control: Answering):
        self.ledger = ledger
        self.system = system
        self.control = control

    @property
    def is_control(self) -> bool:
        """Whether this system is the one that it is compared with."""
        return self.system.digest == self.control.digest

    def place(self, question: Question) -> tuple[str, str]:
        """Where the ledger has it: (key, cell). A KL depends on the control too."""
        cell = question.digest
        if question.asked == "kl":
            cell = f"{cell}/{self.control.digest}"
        return self.system.key(question), cell

    def knows(self, question: Question) -> bool:
        if self._is_zero(question):
            return True
        line = self.ledger.line(*self.place(question))
        field = "r" if question.asked == "answer" else question.asked
        return line is not None and field in line

    def __getitem__(self, question: Question) -> Any:
        """Of an answer its line, else a number. KeyError for a question that was not asked."""
        if self._is_zero(question):
            return 0.0
        line = self._line(question)
        return line if question.asked == "answer" else line[question.asked]

    def tokens(self, question: Question) -> int:
        """Of the response that was scored."""
        return self._line(question)["tokens"]

    def _line(self, question: Question) -> dict[str, Any]:
        line = self.ledger.line(*self.place(question))
        if line is None:
            raise KeyError(f"not asked: {question.asked} of {question}")
        return line

    def _is_zero(self, question: Question) -> bool:
        """The KL of the control to itself."""
        return question.asked == "kl" and self.is_control


def _record(line: bytes, where: str) -> dict[str, Any]:
    """One line, checked as far as anybody reads it."""
    record = parse_object(line, where, "delete that line, it will be made again")
    for name in ("system", "key", "cell", "r"):
        if not isinstance(record.get(name, ""), str):
            raise InputError(f"{where}: {name!r} must be a string, got {record[name]!r}")
    for name in NUMBERS:
        value = record.get(name, 0.0)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise InputError(f"{where}: {name!r} must be a finite number, got {value!r}")
    if type(record.get("tokens", 0)) is not int:
        raise InputError(f"{where}: 'tokens' must be a whole number, got {record['tokens']!r}")
    return record
