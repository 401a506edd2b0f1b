"""Flags of a command line from a dataclass of options, and the options that the flags give."""

import argparse
from dataclasses import Field, fields
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args

from ecliptica.config import check_field, is_required, literal, typed
from ecliptica.files import check_unicode

Options = TypeVar("Options")


def add_flags(parser: argparse.ArgumentParser, kind: type) -> None:
    """A flag for every field: `batch_tokens` is --batch-tokens. A field of several texts may be
    given several times if its metadata says `repeat`, or once with commas."""
    for field in fields(kind):
        words = {"help": field.metadata.get("help"), "default": None, "dest": field.name}
        if field.type is bool:
            words["action"] = argparse.BooleanOptionalAction
        else:
            words["metavar"] = field.metadata.get("metavar") or field.name.upper()
        if field.metadata.get("repeat"):
            words["action"] = "append"
        if choices := field.metadata.get("choices"):
            words["metavar"] = "{" + ",".join(choices) + "}"
        if not is_required(field) and field.default not in (None, "", ()):
            words["help"] = f"{words['help']} (default: {field.default})"
        words["help"] = words["help"] and words["help"].replace("%", "%%")
        parser.add_argument(flag(field.name), required=is_required(field), **words)


def flag(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")


def from_flags(kind: type[Options], args: argparse.Namespace) -> Options:
    """The `kind` that the parsed flags give, checked. Errors name the flag."""
    values = {}
    for field in fields(kind):
        given = getattr(args, field.name)
        if given is not None:
            values[field.name] = _from_flag(field, given)
    value = kind(**values)
    for field in fields(kind):
        here = getattr(value, field.name)
        if here is not None:
            check_field(field, here, flag(field.name))
    if hasattr(value, "check"):
        value.check()
    return value


def _from_flag(field: Field, given: Any) -> Any:
    """What stands after a flag as the field's type has it."""
    check_unicode(given, flag(field.name))
    if field.metadata.get("repeat"):
        return tuple(given)
    kind = field.type
    if isinstance(kind, UnionType):
        kind = next(option for option in get_args(kind) if option is not NoneType)
    if kind in (int, float) and isinstance(given, str):
        given = literal(given)
    return typed(given, kind, flag(field.name), "command line")
