"""The answers that isd-generate wrote, as `fidelity` reads them: by condition, prompt, wording and
instruction."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ecliptica.evaluation.judge import Judge
from ecliptica.evaluation.options import BASE
from ecliptica.fields import text
from ecliptica.files import read_records
from model.errors import InputError

Place = tuple[str, str, int]  # condition, prompt, wording
NAMES = ("system", "key", "condition", "prompt", "instruction")


@dataclass
class WrittenAnswers:
    """Of one system: {place: {instruction: line}}."""

    label: str
    path: str
    key: str
    lines: dict[Place, dict[str, dict]] = field(default_factory=dict)
    ablation: bool = False
    _judged: dict[Place, tuple] = field(default_factory=dict)

    def conditions(self) -> list[str]:
        return list(dict.fromkeys(condition for condition, _, _ in self.lines))

    def has(self, condition: str) -> bool:
        return any(condition == own for own, _, _ in self.lines)

    def places(self) -> list[tuple[str, int]]:
        """(prompt, wording) of whatever was answered, condition by condition."""
        return [
            (prompt, wording)
            for condition in self.conditions()
            for own, prompt, wording in self.lines
            if own == condition
        ]

    def check_whole(
        self, wordings: Mapping[str, Sequence[int]], instructions: Sequence[str]
    ) -> None:
        """InputError unless every condition has an answer to each prompt, in each of its wordings,
        under every instruction."""
        for condition in self.conditions():
            for prompt, numbers in wordings.items():
                for number in numbers:
                    answered = self.lines.get((condition, prompt, number), {})
                    if set(answered) == set(instructions):
                        continue
                    raise InputError(
                        f"{self.path}: {self.label}, condition {condition!r}, has not answered "
                        f"{prompt} (wording {number}) under every instruction; finish "
                        "isd-generate first"
                    )

    def judged(self, judge: Judge, place: Place) -> tuple:
        """judge.values of one place; computed once for all columns."""
        if place not in self._judged:
            self._judged[place] = judge.values(place[1], self.lines[place])
        return self._judged[place]


def read_answers(
    path: str, prompts: Collection[str], instructions: Collection[str]
) -> dict[str, WrittenAnswers]:
    """{label: answers}, the control first.

    Raises InputError for a line that isd-generate did not write, for this bank and these
    instructions, and for answers of one label from two models or settings.
    """

    def parse(line: dict, where: str) -> dict:
        names = [text(line, name, where) for name in NAMES]
        typed = (
            isinstance(line.get("r"), str)
            and isinstance(line.get("truncated"), bool)
            and type(line.get("wording")) is int
        )
        if not typed:
            raise InputError(
                f"{where}: expected 'r' (text), 'truncated' and 'wording', as isd-generate writes "
                "them"
            )
        if names[3] not in prompts or names[4] not in instructions:
            raise InputError(
                f"{where}: {names[3]!r}, {names[4]!r}: expected a prompt of the bank and one of "
                "its instructions; use the --bank and --instructions they were generated with"
            )
        return line

    systems = {}
    for line in read_records(path, parse):
        label = line["system"]
        own = systems.setdefault(label, WrittenAnswers(label, path, line["key"]))
        if own.key != line["key"]:
            raise InputError(
                f"{path}: answers of {label} from two models or settings, keys {own.key} and "
                f"{line['key']}; keep one: grep KEY {path} > NEW"
            )
        place = line["condition"], line["prompt"], line["wording"]
        own.lines.setdefault(place, {})[line["instruction"]] = line
        own.ablation |= bool(line.get("ablation"))
    labels = sorted(systems, key=lambda label: label != BASE)
    return {label: systems[label] for label in labels}
