"""The Instruction Switch Dataset: prompts crossed with alignment instructions, and the responses that each pair should get."""

from dataclasses import dataclass, field
from pathlib import Path

from ecliptica.fields import identity, text
from ecliptica.files import read_records, read_toml
from model.errors import InputError

HERE = Path(__file__).parent
BANK, INSTRUCTIONS, MORE_INSTRUCTIONS = (
    HERE / "bank",
    HERE / "instructions.toml",
    HERE / "more_instructions.toml",
)
SPLITS = ("train", "dev", "test")
# Which wording of an instruction a split's contexts have, from 1, or the last where there are
# fewer: with three wordings a test context never has one that was trained on.
WORDING = {"train": 1, "dev": 2, "test": 3}
PROVENANCE = (
    "source",
    "form",
    "author",
    "licence",
)  # where a prompt comes from; a bank of your own may leave them out


@dataclass(frozen=True)
class Entry:
    id: str
    prompt: str
    domain: str
    split: str
    responses: dict[str, str] = field(
        default_factory=dict
    )  # instruction id -> reference response; empty: a distractor, or for generation
    source: str = ""  # the kind of place that such a prompt comes from
    form: str = ""
    author: str = ""
    licence: str = ""


def own_wording(split, wordings):
    """The text of an instruction in a split: its own wording, or the last that there is."""
    return wordings[min(WORDING[split], len(wordings)) - 1]


def load_instructions(path=INSTRUCTIONS):
    """{instruction id: paraphrases}, in file order. Raises InputError unless each has at least one, and there are two."""
    table = {name: paraphrases for name, (paraphrases, _) in _instructions(path).items()}
    if len(table) < 2:
        raise InputError(f"{path}: {len(table)} instructions; switching needs at least two")
    return table


def load_axes(path=MORE_INSTRUCTIONS):
    """{instruction id: its axis}; None for an instruction that stands in no [axis] table."""
    return {name: axis for name, (_, axis) in _instructions(path).items()}


def load_bank(path=BANK, instructions=None):
    """[Entry] of a JSONL file, or of every *.jsonl in a directory in order of name. A line is {"id", "prompt", "domain", "split"
    [, "responses": {instruction id: text}, "source", "form", "author", "licence"]}; ids are unique over all of it."""
    files = sorted(Path(path).glob("*.jsonl")) if Path(path).is_dir() else [Path(path)]
    if not files:
        raise InputError(
            f"{path}: no .jsonl file in this directory; expected a bank, one prompt a line"
        )
    entries, seen = [], {}

    def read(record, where):
        entry = _entry(record, where, instructions)
        if entry.id in seen:
            raise InputError(
                f"{where}: the id {entry.id!r} occurs twice, first at {seen[entry.id]}; ids name prompts in every result"
            )
        seen[entry.id] = where
        return entry

    for file in files:
        entries += read_records(file, read)
    return entries


def referenced(entries, names=None):
    """The entries that have reference responses. With `names`, InputError if one of them lacks the response to a name."""
    found = [entry for entry in entries if entry.responses]
    for entry in found:
        if missing := [name for name in names or () if name not in entry.responses]:
            raise InputError(
                f"{entry.id}: no response to the instruction {missing[0]!r}; a prompt has a response to each of {', '.join(names)}, or none"
            )
    return found


def _entry(record, where, instructions):
    responses = record.get("responses") or {}
    if not isinstance(responses, dict):
        raise InputError(
            f"{where}: 'responses' must be an object of instruction id to text, got {type(responses).__name__}"
        )
    for name in responses:
        if instructions is not None and name not in instructions:
            raise InputError(
                f"{where}: responses has the instruction id {name!r}; the instructions file has {', '.join(instructions)}"
            )
        text(responses, name, where)
    split = text(record, "split", where)
    if split not in SPLITS:
        raise InputError(f"{where}: 'split' must be one of {', '.join(SPLITS)}, got {split!r}")
    origin = {key: text(record, key, where, required=False) or "" for key in PROVENANCE}
    return Entry(
        identity(record, where, required=True),
        text(record, "prompt", where),
        text(record, "domain", where),
        split,
        responses,
        **origin,
    )


def _instructions(path):
    """{id: (paraphrases, axis)}. At the top of the file an entry is id = [paraphrases], [id] with `paraphrases`, or [axis] with entries in it."""
    found = {}

    def add(name, value, axis):
        if isinstance(value, dict) and "paraphrases" in value:
            value = value["paraphrases"]
        if (
            not isinstance(value, list)
            or not value
            or not all(isinstance(p, str) and p.strip() for p in value)
        ):
            raise InputError(f"{path}: {name} must be a list of at least one instruction text")
        if name in found:
            raise InputError(
                f"{path}: the instruction {name} occurs in two axes, {found[name][1]} and {axis}; ids must differ"
            )
        found[name] = tuple(value), axis

    for name, value in read_toml(path, "TOML of instruction id = [paraphrases]").items():
        if isinstance(value, dict) and "paraphrases" not in value:
            for inner, paraphrases in value.items():
                add(inner, paraphrases, name)
        else:
            add(name, value, None)
    return found
