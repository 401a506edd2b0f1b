"""The one language of configuration: frozen dataclasses, filled from TOML, `key=value` or flags.

A field carries its rule and one line of help where it stands,

    lr: float = positive(2e-5, "peak learning rate")

so the error, `--help` and the table in docs/keys.md are one text. `load` fills a dataclass from a
recipe and overrides, ecliptica/flags.py from a command line. A dataclass may have

    check(self)          raises InputError for what one field alone does not show
    finish(self, name)   returns itself, completed by the name of the recipe it came from

and a field may be a section of its own, whose dataclass one of its keys decides (`section`).
"""

import dataclasses
import difflib
import json
import math
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin

from ecliptica.files import check_unicode, read_toml
from model.errors import InputError

RECIPES = Path(__file__).parent / "recipes"
LARGEST_SEED = 2**63 - 1
Settings = TypeVar("Settings")


# Fields: a default, a rule, a line of help


@dataclass(frozen=True)
class Rule:
    """What a value must be, beyond its type."""

    wanted: str
    holds: Callable[[Any], bool]


ABOVE_ZERO = Rule("> 0", lambda value: value > 0)
NOT_BELOW_ZERO = Rule(">= 0", lambda value: value >= 0)
A_SHARE = Rule("a share from 0 to 1", lambda value: 0 <= value <= 1)
BELOW_ONE = Rule("a share from 0 to below 1", lambda value: 0 <= value < 1)
A_SEED = Rule(f"a seed from 0 to {LARGEST_SEED}", lambda value: 0 <= value <= LARGEST_SEED)


def option(default: Any, help: str, rule: Rule | None = None, **metadata: Any) -> Any:
    """A field with any value of its type, or those that `rule` lets pass. default ...: required."""
    metadata |= {"help": help, "rule": rule}
    if default is ...:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def positive(default: Any, help: str) -> Any:
    """A number above 0."""
    return option(default, help, ABOVE_ZERO)


def not_negative(default: Any, help: str) -> Any:
    """A number of at least 0."""
    return option(default, help, NOT_BELOW_ZERO)


def share(default: Any, help: str) -> Any:
    """A number from 0 to 1."""
    return option(default, help, A_SHARE)


def share_below_one(default: Any, help: str) -> Any:
    """A number from 0 to below 1, such as a dropout."""
    return option(default, help, BELOW_ONE)


def seed(default: Any, help: str) -> Any:
    """A whole number that generators take: at least 0, within 64 bits."""
    return option(default, help, A_SEED)


def choice(default: Any, choices: Sequence[str], help: str, **metadata: Any) -> Any:
    """One of a few words."""
    return option(default, help, choices=tuple(choices), **metadata)


def section(default: Callable[[], Any], variants: "Variants | None" = None) -> Any:
    """A field that is a dataclass of its own: a table of the recipe."""
    return dataclasses.field(default_factory=default, metadata={"variants": variants})


@dataclass(frozen=True)
class Variants:
    """A section whose key `key` decides its dataclass; types() is {name: dataclass}."""

    key: str
    types: Callable[[], dict[str, type]]

    def of(self, table: dict[str, Any], default: Any, prefix: str, where: str) -> type:
        """The dataclass that `table` asks for. Raises InputError for a name that there is not."""
        name = table.get(self.key, getattr(default, self.key))
        types = self.types()
        if not isinstance(name, str) or name not in types:
            raise InputError(
                f"{where}: {prefix}{self.key}: expected one of {', '.join(types)}, got {name!r}"
                f"{hint(str(name), types)}"
            )
        return types[name]

    def others_with(self, leaf: str) -> list[str]:
        """The names of the variants that do have the key `leaf`."""
        types = self.types().items()
        return [name for name, kind in types if leaf in {field.name for field in fields(kind)}]


# From a recipe


def load(
    kind: type[Settings], recipe: str | Path | None = None, overrides: Iterable[str] = ()
) -> Settings:
    """A `kind` from a recipe (a TOML path, or a name in ecliptica/recipes; None: nothing but
    defaults), with `key=value` or `section.key=value` overrides applied, and checked.

    Raises InputError naming the file and the key: unknown, of another type, against its rule.
    """
    table, where, name = {}, "overrides", ""
    if recipe is not None:
        path = recipe_path(recipe)
        table, where, name = read_toml(path, "a TOML recipe"), str(path), path.stem
    changes = {}
    for override in overrides:
        put(changes, override, where)
    for field in fields(kind):
        if field.metadata.get("variants"):
            _set_aside(field, table, changes)
    _merge(table, changes, where)
    return from_table(kind, table, where, name)


def _set_aside(field: Field, table: dict[str, Any], changes: dict[str, Any]) -> None:
    """Another variant by an override: the recipe's keys that only its own variant reads fall away.

    `train.py demo objective.name=dpo` keeps beta of the recipe's cita, and not its KL weights; a
    key that an override names is never set aside, and refused if nobody reads it.
    """
    variants, default = field.metadata["variants"], field.default_factory()
    written, changed = table.get(field.name), changes.get(field.name)
    if not isinstance(written, dict) or not isinstance(changed, dict):
        return
    types = variants.types()
    old = types.get(written.get(variants.key, getattr(default, variants.key)))
    new = types.get(changed.get(variants.key))
    if old is None or new is None or old is new:
        return
    readable = {f.name for f in fields(new)}
    for key in {f.name for f in fields(old)} - readable:
        written.pop(key, None)


def _merge(table: dict[str, Any], changes: dict[str, Any], where: str) -> None:
    """Write nested overrides into a recipe's tables."""
    for key, value in changes.items():
        if not isinstance(value, dict):
            table[key] = value
            continue
        section = table.setdefault(key, {})
        if not isinstance(section, dict):
            raise InputError(f"{where}: {key!r} must be a table")
        _merge(section, value, where)


def from_table(kind: type[Settings], table: dict[str, Any], where: str, name: str = "") -> Settings:
    """A `kind` from nested tables, as TOML gives them; where: what the errors begin with."""
    value = _build(kind, table, "", where)
    if hasattr(value, "finish"):
        value = value.finish(name)
    return check(value)


def recipe_path(recipe: str | Path) -> Path:
    """The file of a recipe: a path, or the name of a shipped one. Raises InputError."""
    path = Path(recipe)
    if path.suffix == ".toml" or path.exists():
        if not path.exists():
            raise InputError(f"{recipe}: no such recipe file")
        return path
    shipped = RECIPES / f"{recipe}.toml"
    if not shipped.exists():
        names = sorted(path.stem for path in RECIPES.glob("*.toml"))
        raise InputError(
            f"{recipe}: no such recipe; expected a TOML path or one of {', '.join(names)}"
            f"{hint(str(recipe), names)}"
        )
    return shipped


def put(table: dict[str, Any], override: str, where: str) -> None:
    """Write one `key=value` or `section.key=value` into nested tables, empty at first."""
    key, equals, value = override.partition("=")
    *sections, leaf = key.split(".")
    if not equals or not all((*sections, leaf)):
        raise InputError(f"{override!r}: expected section.key=value, such as objective.beta=0.1")
    check_unicode(override, where)
    for name in sections:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise InputError(f"{where}: {name!r} must be a table")
    table[leaf] = literal(value)


def literal(value: str) -> Any:
    """A value on the command line: TOML if it reads as TOML, else the text itself."""
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        return value


def _build(kind: type[Settings], table: dict, prefix: str, where: str, variants=None) -> Settings:
    """A `kind` from one table: every key known and of its type; rules are `check`'s."""
    known = {field.name: field for field in fields(kind)}
    values = {}
    for key, value in table.items():
        if key not in known:
            raise InputError(f"{where}: {_unknown(key, known, prefix, table, variants)}")
        values[key] = _value(known[key], value, f"{prefix}{key}", where)
    missing = [f.name for f in known.values() if is_required(f) and f.name not in values]
    if missing:
        raise InputError(f"{where}: {prefix}{missing[0]}: not set, and it has no default")
    return kind(**values)


def _unknown(key: str, known: dict, prefix: str, table: dict, variants: Variants | None) -> str:
    """What to say of a key that this dataclass does not have."""
    readers = variants.others_with(key) if variants else []
    if readers:
        name = table.get(variants.key, "the default")
        return (
            f"{prefix}{key}: read by {', '.join(readers)} only, and "
            f"{prefix}{variants.key} is {name}; leave it out"
        )
    return f"unknown key {prefix}{key}{hint(key, known)}; expected one of {', '.join(known)}"


def is_required(field: Field) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _value(field: Field, value: Any, key: str, where: str) -> Any:
    """One value of a table as the field's type has it. Raises InputError for another type."""
    if not is_section(field):
        return typed(value, field.type, key, where)
    if not isinstance(value, dict):
        raise InputError(f"{where}: {key} must be a table, got {value!r}")
    variants = field.metadata.get("variants")
    kind = field.type
    if variants:
        kind = variants.of(value, field.default_factory(), f"{key}.", where)
    return _build(kind, value, f"{key}.", where, variants)


def is_section(field: Field) -> bool:
    """Whether a field is a dataclass of its own."""
    return is_dataclass(field.type) or bool(field.metadata.get("variants"))


def typed(value: Any, kind: Any, key: str, where: str) -> Any:
    """`value` as `kind` (bool, int, float, str, tuple[str, ...], or one of them or None)."""
    if isinstance(kind, UnionType):
        kind = next(option for option in get_args(kind) if option is not NoneType)
    if get_origin(kind) is tuple:
        return _words(value, key, where)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise InputError(f"{where}: {key} must be of type {kind.__name__}, got {value!r}")
    if kind is float and not math.isfinite(value):
        raise InputError(f"{where}: {key} must be a finite number, got {value}")
    return value


def _words(value: Any, key: str, where: str) -> tuple[str, ...]:
    """A list of strings, or one string of words separated by commas."""
    items = value.split(",") if isinstance(value, str) else value
    if isinstance(items, list) and all(isinstance(item, str) for item in items):
        return tuple(item.strip() for item in items if item.strip())
    raise InputError(f"{where}: {key} must be a list of strings, got {value!r}")


# Rules


def check(value: Settings, prefix: str = "") -> Settings:
    """Every rule of every field, sections first, then the dataclass's own `check`. Returns it."""
    for field in fields(value):
        here, key = getattr(value, field.name), f"{prefix}{field.name}"
        if is_dataclass(here):
            check(here, f"{key}.")
        elif here is not None:
            check_field(field, here, key)
    if hasattr(value, "check"):
        value.check()
    return value


def check_field(field: Field, value: Any, key: str) -> None:
    choices, rule = field.metadata.get("choices"), field.metadata.get("rule")
    if choices and value not in choices:
        raise InputError(
            f"{key}: expected one of {', '.join(choices)}, got {value!r}{hint(str(value), choices)}"
        )
    if rule and not rule.holds(value):
        raise InputError(f"{key}: expected {rule.wanted}, got {value}")


def hint(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant, in brackets; nothing if none is near."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


# Back to text


def as_toml(value: Any, leave_out: Sequence[str] = ()) -> str:
    """The settings as TOML that reads back as themselves; optional values that are unset are left
    out, and the sections in `leave_out`."""
    lines = []
    for field in fields(value):
        here = getattr(value, field.name)
        if is_dataclass(here) and field.name not in leave_out:
            lines += [f"[{field.name}]", *_toml_lines(here), ""]
    return "\n".join([*_toml_lines(value), *lines])


def _toml_lines(value: Any) -> list[str]:
    plain = {field.name: getattr(value, field.name) for field in fields(value)}
    return [
        f"{key} = {to_toml(here)}"
        for key, here in plain.items()
        if here is not None and not is_dataclass(here)
    ]


def to_toml(value: Any) -> str:
    """One value as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which TOML wants escaped too.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(to_toml, value))}]"
    return repr(value)
