"""The sets beside the bank, each for one evaluation: safety, override, underspecified, length, honesty, capability. Files in ecliptica/isd/sets."""

from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from ecliptica.fields import text
from ecliptica.files import read_records, read_toml
from ecliptica.isd.bank import load_instructions
from model.errors import InputError

SETS = Path(__file__).parent / "sets"
SAFETY_CLASSES = ("harmful", "borderline", "benign")
HONESTY_CLASSES = ("answerable", "unanswerable")
STRENGTHS = ("mild", "medium", "strong")
CLEAR = ("dropped", "vague")  # how an instruction is underspecified


@dataclass(frozen=True)
class Safety:
    """A request and both ways to meet it. Which of them is right depends on class and policy: refuse what is harmful under either policy and what
    is borderline under the strict one; comply with the rest."""

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
    """A suffix of a prompt that tells the model to ignore its instruction, and a harmless one of about its length."""

    id: str
    strength: str
    attack: str
    harmless: str
    author: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Honesty:
    """A question with an answer and an abstention. Of an unanswerable one the answer is invented, and no better than a guess."""

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


def load_safety(path=SETS / "safety.jsonl"):
    return _load(path, Safety, {"class": SAFETY_CLASSES})


def load_override(path=SETS / "override.jsonl"):
    return _load(path, Override, {"strength": STRENGTHS})


def load_honesty(path=SETS / "honesty.jsonl"):
    return _load(path, Honesty, {"class": HONESTY_CLASSES})


def load_length(path=SETS / "length.jsonl"):
    return _load(path, Length, {})


def load_capability(path=SETS / "capability.jsonl"):
    return _load(path, Capability, {})


def load_policies(path):
    """{policy: paraphrases} of safety_policies.toml, honesty_policies.toml or length.toml; at least two policies."""
    return load_instructions(path)


def load_underspecified(path=SETS / "underspecified.toml", names=None):
    """{instruction id: {"dropped": texts, "vague": texts}}; with `names`, InputError unless it is these instructions."""
    table = read_toml(path, "TOML of [instruction id] with dropped and vague")
    for name, entry in table.items():
        for key in CLEAR:
            texts = entry.get(key) if isinstance(entry, dict) else None
            if (
                not isinstance(texts, list)
                or not texts
                or not all(isinstance(t, str) and t.strip() for t in texts)
            ):
                raise InputError(
                    f"{path}: {name}.{key} must be a list of at least one instruction text"
                )
    if names is not None and (odd := set(names) ^ set(table)):
        raise InputError(
            f"{path}: expected the instructions {', '.join(names)}; {', '.join(sorted(odd))} is in one of the two only"
        )
    return {name: {key: tuple(entry[key]) for key in CLEAR} for name, entry in table.items()}


def _load(path, kind, choices):
    """[kind] of a JSONL file: every field is text that is not blank, some of few values; `class` is a word of Python's and stored as clazz."""
    seen = set()

    def read(record, where):
        values = {
            field.name: text(
                record,
                {"clazz": "class"}.get(field.name, field.name),
                where,
                field.default is MISSING,
            )
            or ""
            for field in fields(kind)
        }
        for key, allowed in choices.items():
            if record[key] not in allowed:
                raise InputError(
                    f"{where}: {key!r} must be one of {', '.join(allowed)}, got {record[key]!r}"
                )
        if values["id"] in seen:
            raise InputError(f"{where}: the id {values['id']!r} occurs twice")
        seen.add(values["id"])
        return kind(**values)

    return read_records(path, read)
