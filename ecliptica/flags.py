"""Flags of a command line from a dataclass of options, and the options that the flags give.

What a field's metadata may say to the command line: `metavar`; `repeat`, for a field of several
texts that may be given several times; `other_flags`, further names of the flag; `default_text`,
how the help calls the default where its value says nothing to a reader.
"""

import argparse
from dataclasses import Field, fields
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args

from ecliptica.config import check_field, is_required, literal, typed
from ecliptica.files import check_unicode

Options = TypeVar("Options")


def add_flags(parser: argparse.ArgumentParser, kind: type) -> None:
    """A flag for every field: `batch_tokens` is --batch-tokens."""
    for field in fields(kind):
        names = (flag(field.name), *field.metadata.get("other_flags", ()))
        words = {"help": _help(field), "default": None, "dest": field.name}
        if field.type is bool:
            words["action"] = argparse.BooleanOptionalAction
        else:
            words["metavar"] = _metavar(field)
        if field.metadata.get("repeat"):
            words["action"] = "append"
        parser.add_argument(*names, required=is_required(field), **words)


def _metavar(field: Field) -> str:
    """What stands for the value in the help."""
    if choices := field.metadata.get("choices"):
        return "{" + ",".join(choices) + "}"
    return field.metadata.get("metavar") or field.name.upper()


def _help(field: Field) -> str:
    """The field's line of help with its default, for argparse, to which % is special."""
    text = field.metadata.get("help") or ""
    default = field.metadata.get("default_text")
    if default is None and not is_required(field):
        default = field.default
    if isinstance(default, tuple):
        default = ",".join(default)
    if default not in (None, ""):
        text = f"{text} (default: {default})"
    return text.replace("%", "%%")


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
