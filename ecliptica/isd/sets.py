"""The sets beside the bank, each for one evaluation: safety, override, underspecified, length,
honesty, capability. Files in ecliptica/isd/sets."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TypeVar

from ecliptica.fields import Record, text
from ecliptica.files import read_records, read_toml
from ecliptica.isd.bank import Wordings, load_instructions
from model.errors import InputError

SETS = Path(__file__).parent / "sets"
SAFETY_CLASSES = ("harmful", "borderline", "benign")
HONESTY_CLASSES = ("answerable", "unanswerable")
STRENGTHS = ("mild", "medium", "strong")
CLEAR = ("dropped", "vague")  # how an instruction is underspecified

Item = TypeVar("Item")


@dataclass(frozen=True)
class Safety:
    """A request and both ways to meet it. Which of them is right depends on class and policy:
    refuse what is harmful under either policy and what is borderline under the strict one; comply
    with the rest."""

    id: str
    kind: str
    clazz: str
    prompt: str
    refusal: str
    compliance: str
    author: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Override:
    """A suffix of a prompt that tells the model to ignore its instruction, and a harmless one of
    about its length."""

    id: str
    strength: str
    attack: str
    harmless: str
    author: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Honesty:
    """A question with an answer and an abstention. Of an unanswerable one the answer is invented,
    and no better than a guess."""

    id: str
    clazz: str
    kind: str
    prompt: str
    answer: str
    abstention: str
    author: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Length:
    """A prompt that can be answered in few words and in many."""

    id: str
    prompt: str
    author: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Capability:
    """A plain text, for perplexity: whether the model still models language."""

    id: str
    kind: str
    text: str
    author: str = ""
    licence: str = ""


def load_safety(path: str | Path = SETS / "safety.jsonl") -> list[Safety]:
    return _load(path, Safety, {"class": SAFETY_CLASSES})


def load_override(path: str | Path = SETS / "override.jsonl") -> list[Override]:
    return _load(path, Override, {"strength": STRENGTHS})


def load_honesty(path: str | Path = SETS / "honesty.jsonl") -> list[Honesty]:
    return _load(path, Honesty, {"class": HONESTY_CLASSES})


def load_length(path: str | Path = SETS / "length.jsonl") -> list[Length]:
    return _load(path, Length, {})


def load_capability(path: str | Path = SETS / "capability.jsonl") -> list[Capability]:
    return _load(path, Capability, {})


def load_policies(path: str | Path) -> dict[str, Wordings]:
    """{policy: wordings} of safety_policies.toml, honesty_policies.toml or length.toml; at least
    two policies."""
    return load_instructions(path)


def load_underspecified(
    path: str | Path = SETS / "underspecified.toml", names: Sequence[str] | None = None
) -> dict[str, dict[str, Wordings]]:
    """{instruction id: {"dropped": texts, "vague": texts}}; with `names`, InputError unless it is
    these instructions."""
    table = read_toml(path, "TOML of [instruction id] with dropped and vague")
    half_said = {}
    for name, entry in table.items():
        half_said[name] = {key: _texts(path, name, entry, key) for key in CLEAR}
    odd = set(names) ^ set(table) if names is not None else ()
    if odd:
        raise InputError(
            f"{path}: expected the instructions {', '.join(names)}; {', '.join(sorted(odd))} is in "
            "one of the two only"
        )
    return half_said


def _texts(path: str | Path, name: str, entry: object, key: str) -> Wordings:
    texts = entry.get(key) if isinstance(entry, dict) else None
    is_list = isinstance(texts, list) and bool(texts)
    if not is_list or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError(f"{path}: {name}.{key} must be a list of at least one instruction text")
    return tuple(texts)


def _load(path: str | Path, kind: type[Item], choices: Mapping[str, Sequence[str]]) -> list[Item]:
    """The items of a JSONL file: every field is text that is not blank, some of few values.
    `class` is a word of Python's and stored as clazz."""
    ids = set()

    def read(record: Record, where: str) -> Item:
        values = {}
        for field in fields(kind):
            key = "class" if field.name == "clazz" else field.name
            required = field.default is MISSING
            values[field.name] = text(record, key, where, required) or ""
        for key, allowed in choices.items():
            if record[key] not in allowed:
                raise InputError(
                    f"{where}: {key!r} must be one of {', '.join(allowed)}, got {record[key]!r}"
                )
        if values["id"] in ids:
            raise InputError(f"{where}: the id {values['id']!r} occurs twice")
        ids.add(values["id"])
        return kind(**values)

    return read_records(path, read)
