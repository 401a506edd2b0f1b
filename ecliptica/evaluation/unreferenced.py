"""Answers judged where a bank has no reference responses: what needs none is measured, for all
types of instruction and apart by axis and by kind. See judge.py for a bank that has them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ecliptica.evaluation import statistics
from ecliptica.evaluation.measured import Interval
from ecliptica.evaluation.metrics import generation_fidelity, loops, mean, published
from ecliptica.evaluation.metrics.generation_fidelity import Retrieval, other_prompts, words
from ecliptica.evaluation.report.tables import Table
from ecliptica.isd.bank import Entry, Wordings
from ecliptica.isd.ecliptica_30k import Type, grouped, is_published, read_types

METRICS = (
    *(metric for metric in generation_fidelity.METRICS if metric.name in ("prompt", "cut")),
    *loops.METRICS,
    *published.METRICS,
)
COLUMNS = {  # of the tables by group
    "prompt": "prompt retrieved",
    "loops": "answers that loop",
    "published_fidelity": "as published: fidelity",
    "published_shift": "as published: shift",
    "published_m1": "as published: M1",
}


class TextJudge:
    """Stands where Judge does. A type's prototype is what there is of it: its texts and the
    characteristics that are expected of an answer."""

    confusion: Mapping[str, Any] = {}
    accuracy = None

    def __init__(self, bank: Sequence[Entry], instructions: Mapping[str, Wordings], types=None):
        """types: {name: Type} with characteristics; None: the instructions' texts alone."""
        self.labels = list(instructions)
        self.retrieval = Retrieval({entry.id: (entry.prompt, ()) for entry in bank})
        self.others = {entry.id: other_prompts(entry, bank) for entry in bank}
        texts = {name: list(own) for name, own in instructions.items()}
        for name, own in (types or {}).items():
            texts[name] += [tag.replace("_", " ") for tag in own.characteristics]
        self.prototypes = published.prototypes(texts)
        self.chance = {"prompt": 1 / (len(self.others[bank[0].id]) + 1)}

    def values(
        self, prompt: str, lines: Mapping[str, Mapping[str, Any]]
    ) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """({column: value}, {column: {instruction: value}}) of {instruction: line}; without shift
        where there is one line alone."""
        texts = {name: line["r"] for name, line in lines.items()}
        retrieved = {
            name: self.retrieval.share(text, prompt, self.others[prompt])
            for name, text in texts.items()
        }
        fidelities = [
            published.fidelity(text, self.prototypes[name]) for name, text in texts.items()
        ]
        whole = {
            "prompt": mean(list(retrieved.values())),
            "cut": mean([line["truncated"] for line in lines.values()]),
            "loops": mean([loops.is_loop(text) for text in texts.values()]),
            "words": mean([len(words(text)) for text in texts.values()]),
            "published_fidelity": mean(fidelities),
        }
        if len(texts) > 1:
            whole["published_shift"] = published.shift(list(texts.values()))
            whole["published_m1"] = published.m1(fidelities, whole["published_shift"])
        return whole, {"prompt": retrieved}


def types_of(path: str) -> dict[str, Type]:
    """The published types behind --instructions; none for a TOML file."""
    return read_types(path) if is_published(Path(path)) else {}


def tables(judge: TextJudge, types: Mapping[str, Type], units: Sequence, asked: Any) -> list[Table]:
    """A table of the axes and one of the kinds: each group's types alone, every system."""
    made = []
    for what, by in (("axis", lambda own: own.axis), ("kind of axis", lambda own: own.kind)):
        groups = grouped(types, by)
        if not groups:
            continue
        rows = []
        for group, names in groups.items():
            for label, answers in asked.answers.items():
                cells = _of_group(judge, names, units, answers, asked.drawn)
                rows.append([group, str(len(names)), label, *cells])
        head = [what, "types", "system", *COLUMNS.values()]
        made.append(Table(f"By {what}", head, rows))
    return made


def _of_group(
    judge: TextJudge, names: Sequence[str], units: Sequence, answers: Any, drawn: Any
) -> list[Interval | None]:
    """The columns of one system's answers under some types; None where a group has no value."""
    values: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for unit in units:
        wholes = []
        for wording in unit.wordings:
            lines = answers.lines[unit.condition, unit.prompt, wording]
            wholes.append(judge.values(unit.prompt, {name: lines[name] for name in names})[0])
        for column, own in values.items():
            if column in wholes[0]:
                own.append(mean([whole[column] for whole in wholes]))
    cells: list[Interval | None] = []
    for own in values.values():
        cell = None
        if own:
            cell = Interval(**statistics.summary(own, drawn))
        cells.append(cell)
    return cells
