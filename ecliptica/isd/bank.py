"""The Instruction Switch Dataset: prompts crossed with alignment instructions, and the responses
that each pair should get."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ecliptica.fields import Record, identity, text
from ecliptica.files import read_records, read_toml
from ecliptica.isd import ecliptica_30k
from model.errors import InputError

HERE = Path(__file__).parent
BANK = HERE / "bank"
INSTRUCTIONS = HERE / "instructions.toml"
MORE_INSTRUCTIONS = HERE / "more_instructions.toml"
FAMILIES = HERE / "families.toml"
SPLITS = ("train", "dev", "test")
# Which wording of an instruction a split's contexts have, from 1, or the last where there are
# fewer: with three wordings a test context never has one that was trained on.
WORDING = {"train": 1, "dev": 2, "test": 3}
# Where a prompt comes from; a bank of your own may leave them out.
PROVENANCE = ("source", "form", "author", "licence")

Wordings = tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """One prompt of a bank."""

    id: str
    prompt: str
    domain: str
    split: str
    # Instruction id -> reference response; empty: a distractor, or for generation.
    responses: dict[str, str] = field(default_factory=dict)
    source: str = ""  # the kind of place that such a prompt comes from
    form: str = ""
    author: str = ""
    licence: str = ""


# Instructions


def load_instructions(path: str | Path = INSTRUCTIONS) -> dict[str, Wordings]:
    """{instruction id: wordings}, in file order. Raises InputError unless each has at least one,
    and there are two."""
    table = {name: wordings for name, (wordings, _) in _instructions(path).items()}
    if len(table) < 2:
        raise InputError(f"{path}: {len(table)} instructions; switching needs at least two")
    return table


def load_axes(path: str | Path = MORE_INSTRUCTIONS) -> dict[str, str | None]:
    """{instruction id: its axis}; None for an instruction that stands in no [axis] table."""
    return {name: axis for name, (_, axis) in _instructions(path).items()}


def load_families(
    path: str | Path = FAMILIES, instructions: Collection[str] = ()
) -> dict[str, tuple[str, ...]]:
    """{family: ids of its instructions}, in file order.

    Raises InputError for an id that `instructions` has not, for one in two families, and for fewer
    than two families.
    """
    families, owner = {}, {}
    for family, ids in read_toml(path, "TOML of family = [instruction ids]").items():
        families[family] = _wordings(path, family, ids)
        for name in families[family]:
            if name not in instructions:
                raise InputError(
                    f"{path}: {family}: no instruction {name!r}; there are "
                    f"{', '.join(instructions)}"
                )
            if name in owner:
                raise InputError(
                    f"{path}: {name} is in two families, {owner[name]} and {family}; an "
                    "instruction belongs to one"
                )
            owner[name] = family
    if len(families) < 2:
        raise InputError(f"{path}: {len(families)} families; contrasting them needs two")
    return families


def without(instructions: dict[str, Wordings], held_out: Collection[str]) -> dict[str, Wordings]:
    """The instructions but those held out. Raises InputError for one that there is not, or where
    fewer than two are left."""
    for name in held_out:
        if name not in instructions:
            raise InputError(
                f"data.isd_hold_out: no instruction {name!r}; there are {', '.join(instructions)}"
            )
    left = {name: texts for name, texts in instructions.items() if name not in held_out}
    if len(left) < 2:
        raise InputError(
            f"data.isd_hold_out: leaves {len(left)} of {len(instructions)} instructions; "
            "training needs at least two"
        )
    return left


def own_wording(split: str, wordings: Sequence[str]) -> str:
    """The text of an instruction in a split: its own wording, or the last that there is."""
    return wordings[min(WORDING[split], len(wordings)) - 1]


def _instructions(path: str | Path) -> dict[str, tuple[Wordings, str | None]]:
    """{id: (wordings, axis)}.

    At the top of the file an entry is id = [wordings], or [id] with `paraphrases`, or [axis] with
    entries in it. A parquet or YAML file is read as ECLIPTICA-30k.
    """
    if ecliptica_30k.is_published(path):
        types = ecliptica_30k.read_types(path)
        return {name: (own.wordings, own.axis) for name, own in types.items()}
    table = {}

    def add(name: str, value: object, axis: str | None) -> None:
        if name in table:
            raise InputError(
                f"{path}: the instruction {name} occurs in two axes, {table[name][1]} and {axis}; "
                "ids must differ"
            )
        table[name] = _wordings(path, name, value), axis

    for name, value in read_toml(path, "TOML of instruction id = [wordings]").items():
        is_axis = isinstance(value, dict) and "paraphrases" not in value
        if not is_axis:
            add(name, value, None)
            continue
        for inner, wordings in value.items():
            add(inner, wordings, name)
    return table


def _wordings(path: str | Path, name: str, value: object) -> Wordings:
    if isinstance(value, dict) and "paraphrases" in value:
        value = value["paraphrases"]
    texts = value if isinstance(value, list) else []
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError(f"{path}: {name} must be a list of at least one instruction text")
    return tuple(texts)


# Prompts


def load_bank(path: str | Path = BANK, instructions: Collection[str] | None = None) -> list[Entry]:
    """The entries of a JSONL file, or of every *.jsonl in a directory in order of name.

    A line is {"id", "prompt", "domain", "split" [, "responses": {instruction id: text}, "source",
    "form", "author", "licence"]}; ids are unique over all of it. A parquet file is read as
    ECLIPTICA-30k: its prompts without responses, all of the test split.
    """
    if Path(path).suffix.lower() in ecliptica_30k.PARQUET:
        return [
            Entry(name, own.text, domain=own.source, split="test", source=own.source)
            for name, own in ecliptica_30k.read_prompts(path).items()
        ]
    files = [Path(path)]
    if files[0].is_dir():
        files = sorted(files[0].glob("*.jsonl"))
    if not files:
        raise InputError(
            f"{path}: no .jsonl file in this directory; expected a bank, one prompt a line"
        )
    entries, places = [], {}

    def read(record: Record, where: str) -> Entry:
        entry = _entry(record, where, instructions)
        if entry.id in places:
            raise InputError(
                f"{where}: the id {entry.id!r} occurs twice, first at {places[entry.id]}; ids name "
                "prompts in every result"
            )
        places[entry.id] = where
        return entry

    for file in files:
        entries += read_records(file, read)
    return entries


def referenced(entries: Sequence[Entry], names: Collection[str] | None = None) -> list[Entry]:
    """The entries that have reference responses. With `names`, InputError if one of them lacks the
    response to a name."""
    answered = [entry for entry in entries if entry.responses]
    for entry in answered:
        for name in names or ():
            if name not in entry.responses:
                raise InputError(
                    f"{entry.id}: no response to the instruction {name!r}; a prompt has a response "
                    f"to each of {', '.join(names)}, or none"
                )
    return answered


def _entry(record: Record, where: str, instructions: Collection[str] | None) -> Entry:
    responses = record.get("responses") or {}
    if not isinstance(responses, dict):
        raise InputError(
            f"{where}: 'responses' must be an object of instruction id to text, got "
            f"{type(responses).__name__}"
        )
    for name in responses:
        if instructions is not None and name not in instructions:
            raise InputError(
                f"{where}: responses has the instruction id {name!r}; the instructions file has "
                f"{', '.join(instructions)}"
            )
        text(responses, name, where)
    split = text(record, "split", where)
    if split not in SPLITS:
        raise InputError(f"{where}: 'split' must be one of {', '.join(SPLITS)}, got {split!r}")
    provenance = {key: text(record, key, where, required=False) or "" for key in PROVENANCE}
    return Entry(
        id=identity(record, where, required=True),
        prompt=text(record, "prompt", where),
        domain=text(record, "domain", where),
        split=split,
        responses=responses,
        **provenance,
    )
