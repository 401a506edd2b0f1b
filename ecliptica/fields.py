"""The fields of a JSON record, with errors that name file, line, field and what was expected."""

import math
from typing import Any

from model.errors import InputError

Record = dict[str, Any]


def text(record: Record, key: str, where: str, required: bool = True) -> str | None:
    """A string field that is not blank; None if it is absent (or null) and not required."""
    value = record.get(key)
    if value is None and not required:
        return None
    if key not in record:
        fields = ", ".join(map(repr, record)) or "no field"
        raise InputError(f"{where}: the field {key!r} is missing; the line has {fields}")
    if not isinstance(value, str):
        raise InputError(f"{where}: {key!r} must be a string, got {type(value).__name__}")
    if not value.strip():
        raise InputError(f"{where}: {key!r} is empty; expected text")
    return value


def optional_text(record: Record, key: str, where: str) -> str | None:
    """A string field; None if it is absent, null or blank."""
    value = record.get(key)
    if isinstance(value, str) and not value.strip():
        return None
    return text(record, key, where, required=False)


def texts(record: Record, key: str, where: str, least: int) -> tuple[str, ...]:
    """A list of at least `least` strings, none blank."""
    values = record.get(key)
    if not isinstance(values, list) or len(values) < least:
        raise InputError(f"{where}: {key!r} must be a list of at least {least} strings")
    named = {f"{key}[{n}]": value for n, value in enumerate(values)}
    return tuple(text(named, name, where) for name in named)


def numbers(record: Record, key: str, where: str, count: int) -> tuple[float, ...]:
    """A list of `count` finite numbers."""
    values = record.get(key)
    if not isinstance(values, list) or len(values) != count:
        raise InputError(f"{where}: {key!r} must be a list of {count} numbers")
    for value in values:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise InputError(f"{where}: {key!r} must be finite numbers, got {str(value)[:40]}")
    return tuple(float(value) for value in values)


def identity(record: Record, where: str, required: bool = False) -> str:
    """The id that a record carries, a string or an integer; else `where`, if it is not required."""
    value = record.get("id")
    if type(value) is int:
        return str(value)
    return text(record, "id", where, required) or where


def distinct(chosen: str, rejected: str, where: str) -> tuple[str, str]:
    """Both responses. Raises InputError if they are equal: there is no preference in them."""
    if chosen == rejected:
        raise InputError(
            f"{where}: 'chosen' and 'rejected' are equal; "
            "a preference needs two different responses"
        )
    return chosen, rejected
