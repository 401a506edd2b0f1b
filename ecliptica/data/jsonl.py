"""JSONL with errors that name file, line, field and what was expected."""

import errno
import json
import os
from contextlib import contextmanager
from pathlib import Path

from model.errors import InputError


def records(path, parse, on_error="stop", skipped=None):
    """[parse(record, "file:line")] for every line that is not blank.

    A bad line is an InputError; with on_error = "skip" its message goes to `skipped` and reading goes on.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected JSON lines") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a directory; expected a file of JSON lines") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); expected JSON lines"
        ) from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            found.append(parse(_object(line, where), where))
        except InputError as error:
            if on_error == "stop":
                raise
            skipped.append(str(error))
    if not found:
        raise InputError(
            f"{path}: no usable line; expected at least one JSON object"
            + (f"; first error: {skipped[0]}" if skipped else "")
        )
    return found


def _object(line, where):
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}: not valid JSON ({error.msg} at column {error.colno}); expected one object a line"
        ) from error
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(record).__name__}")
    return record


def text(record, key, where, required=True):
    """A string field that is not blank; None if it is absent (or null) and not required."""
    value = record.get(key)
    if value is None and not required:
        return None
    if key not in record:
        raise InputError(
            f"{where}: the field {key!r} is missing; the line has {', '.join(map(repr, record)) or 'no field'}"
        )
    if not isinstance(value, str):
        raise InputError(f"{where}: {key!r} must be a string, got {type(value).__name__}")
    if not value.strip():
        raise InputError(f"{where}: {key!r} is empty; expected text")
    return value


def texts(record, key, where, least):
    """A list of at least `least` strings, none blank."""
    values = record.get(key)
    if not isinstance(values, list) or len(values) < least:
        raise InputError(f"{where}: {key!r} must be a list of at least {least} strings")
    return tuple(
        text({f"{key}[{n}]": value}, f"{key}[{n}]", where) for n, value in enumerate(values)
    )


def distinct(chosen, rejected, where):
    if chosen == rejected:
        raise InputError(
            f"{where}: 'chosen' and 'rejected' are equal; a preference needs two different responses"
        )
    return chosen, rejected


def append(path, rows):
    """Lines at the end of a file, given to the system before this returns: a killed process loses none. Half a line that a kill left
    at the end is taken off first, so that no line is ever glued to it."""
    with named(path), open(path, "a+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end:  # back to the last line's end, a piece at a time
            start = max(0, end - (1 << 16))
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            end = start + found + 1 if found >= 0 else start
            if found >= 0:
                break
        if end < size:
            file.truncate(end)
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


@contextmanager
def named(path):
    """An OSError of the block names the file, and says what to do about a full disk."""
    try:
        yield
    except OSError as error:
        room = (
            "; make room and start the same command again"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else ""
        )
        raise OSError(error.errno, f"{error.strerror}{room}", str(path)) from error
