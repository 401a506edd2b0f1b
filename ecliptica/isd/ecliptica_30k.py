"""ECLIPTICA-30k as its authors publish it: a parquet file of prompts crossed with 100 types of
instruction, and taxonomy.yaml, which has the texts of the types and their axes.

A row of the parquet file is one prompt under one type: prompt_id, prompt, instruction_type,
instruction, expected_characteristics, source[, axis, axis_kind, origin]. There are no responses.
pyarrow and pyyaml are extras: each is imported where a file asks for it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model.errors import InputError

PARQUET, YAML = (".parquet",), (".yaml", ".yml")
SUFFIXES = (*PARQUET, *YAML)
EXTRA = "pip install ecliptica-cita[ecliptica-30k]"
TEXTS = ("prompt_id", "prompt", "instruction_type", "instruction", "source")
CHARACTERISTICS = "expected_characteristics"
OPTIONAL = ("axis", "axis_kind", "origin")


@dataclass(frozen=True)
class Type:
    """One type of instruction."""

    wordings: tuple[str, ...]
    characteristics: tuple[str, ...]  # what an answer under it is expected to be
    axis: str | None = None
    kind: str | None = None  # of the axis: a policy, or the surface of the text


@dataclass(frozen=True)
class Prompt:
    """One prompt, and where it is from."""

    text: str
    source: str


def is_published(path: str | Path) -> bool:
    """Whether the name is that of a parquet or YAML file."""
    return Path(path).suffix.lower() in SUFFIXES


def read_prompts(path: str | Path) -> dict[str, Prompt]:
    """{prompt id: prompt} of a parquet file, in its order.

    Raises InputError for one id with two prompts, and for a pair of prompt and type that is there
    twice.
    """
    prompts: dict[str, Prompt] = {}
    pairs = set()
    for number, row in enumerate(_rows(path)):
        prompt = Prompt(row["prompt"], row["source"])
        name = row["prompt_id"]
        if prompts.setdefault(name, prompt) != prompt:
            raise InputError(
                f"{path}: row {number}: prompt_id {name!r} has another prompt or source than in an "
                "earlier row; ids name prompts in every result"
            )
        pair = name, row["instruction_type"]
        if pair in pairs:
            raise InputError(f"{path}: row {number}: {pair[0]!r} under {pair[1]!r} occurs twice")
        pairs.add(pair)
    return prompts


def read_types(path: str | Path) -> dict[str, Type]:
    """{type: Type} of a parquet file or of a taxonomy, in its order.

    Of a parquet file the wordings of a type are the different texts that its rows have.
    """
    if Path(path).suffix.lower() in YAML:
        return _of_taxonomy(path)
    types: dict[str, Type] = {}
    for number, row in enumerate(_rows(path)):
        name, text = row["instruction_type"], row["instruction"]
        own = Type((text,), row[CHARACTERISTICS], row["axis"], row["axis_kind"])
        known = types.setdefault(name, own)
        if (known.axis, known.kind) != (own.axis, own.kind):
            raise InputError(
                f"{path}: row {number}: {name!r} is on the axis {own.axis!r} ({own.kind!r}), in an "
                f"earlier row on {known.axis!r} ({known.kind!r}); a type has one axis"
            )
        if text not in known.wordings:
            types[name] = replace(known, wordings=(*known.wordings, text))
    return types


# Parquet


def _rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows, each with all columns: texts, tags, and None for what is absent."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"{path}: reading parquet needs pyarrow: {EXTRA}") from error
    try:
        table = parquet.read_table(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected a parquet file") from error
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a whole parquet file ({reason:.120})") from error
    absent = [name for name in (*TEXTS, CHARACTERISTICS) if name not in table.column_names]
    if absent:
        raise InputError(
            f"{path}: no column {absent[0]!r}; expected {', '.join((*TEXTS, CHARACTERISTICS))}"
        )
    rows = [_row(row, f"{path}: row {number}") for number, row in enumerate(table.to_pylist())]
    if not rows:
        raise InputError(f"{path}: no rows; expected a row a prompt and type of instruction")
    return rows


def _row(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    for name in TEXTS:
        value = row[name]
        if name == "prompt_id" and type(value) is int:
            value = str(value)
        checked[name] = _text(value, f"{where}: {name}")
    checked[CHARACTERISTICS] = _characteristics(row[CHARACTERISTICS], where)
    for name in OPTIONAL:
        value = row.get(name)
        checked[name] = None if value is None else _text(value, f"{where}: {name}")
    return checked


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: expected a text, got {value!r:.80}")
    return value


def _characteristics(value: Any, where: str) -> tuple[str, ...]:
    """A list of tags, or one text with commas between them; null: none."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    value = value or []
    if not isinstance(value, list) or not all(isinstance(tag, str) for tag in value):
        raise InputError(f"{where}: {CHARACTERISTICS}: expected tags, got {value!r:.80}")
    return tuple(value)


# Taxonomy


def _of_taxonomy(path: str | Path) -> dict[str, Type]:
    """The new types, axis by axis. The original ones are named there, without texts."""
    try:
        import yaml
    except ImportError as error:
        raise InputError(f"{path}: reading YAML needs pyyaml: {EXTRA}") from error
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected a taxonomy in YAML") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not valid YAML ({reason:.120})") from error

    axes = _mapping(_mapping(raw, f"{path}", "axes").get("axes"), f"{path}: axes", "an axis")
    types: dict[str, Type] = {}
    for axis, value in axes.items():
        where = f"{path}: axes.{axis}"
        settings = _mapping(value, where, "kind and new_types")
        kind = _text(settings.get("kind"), f"{where}.kind")
        members = _mapping(settings.get("new_types"), f"{where}.new_types", "a type")
        for name, entry in members.items():
            if name in types:
                raise InputError(f"{where}: the type {name!r} is on two axes; a type has one axis")
            types[name] = _new_type(entry, f"{where}.new_types.{name}", axis, kind)
    _check_original(raw, path)
    return types


def _new_type(value: Any, where: str, axis: str, kind: str) -> Type:
    settings = _mapping(value, where, "variants and expected_characteristics")
    variants = settings.get("variants")
    if not isinstance(variants, list) or not variants:
        raise InputError(f"{where}.variants: expected a list of texts, got {variants!r:.80}")
    texts = tuple(_text(text, f"{where}.variants") for text in variants)
    return Type(texts, _characteristics(settings.get(CHARACTERISTICS), where), axis, kind)


def _check_original(raw: Mapping[str, Any], path: str | Path) -> None:
    original = _mapping(raw.get("original_types") or {}, f"{path}: original_types", "an axis")
    for axis, names in original.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(
                f"{path}: original_types.{axis}: expected a list of names, got {names!r:.80}"
            )


def _mapping(value: Any, where: str, holds: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InputError(f"{where}: expected a table with {holds}, got {value!r:.80}")
    return value


# Groups of types


def grouped(
    types: Mapping[str, Type], by: Callable[[Type], str | None]
) -> dict[str, Sequence[str]]:
    """{axis or kind: its types}; those without one are in no group."""
    groups: dict[str, list[str]] = {}
    for name, own in types.items():
        group = by(own)
        if group is not None:
            groups.setdefault(group, []).append(name)
    return groups
