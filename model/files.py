"""Files that are read whole or written whole: JSON objects in, texts and directories out."""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model.errors import InputError

# Lists and objects inside of one another: far less than Python's own limit, which depends on who
# is calling, so that what can be read can also be written.
DEEPEST = 100

NO_LIMIT = int(1e30)  # transformers' model_max_length of a tokenizer for which nobody set one


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError: missing, no JSON, no object."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: no such file; a model or adapter directory in Hugging Face layout has one"
        ) from error
    return parse_object(data, str(path), "the file may be cut short: copy it again")


def parse_object(data: bytes, where: str, advice: str) -> dict[str, Any]:
    """The JSON object that UTF-8 bytes hold, a byte order mark in front of it passed over.

    Refused, in one line that begins with `where`: text that is no Unicode (also as an escaped
    half of a surrogate pair), numbers that are none (NaN, Infinity, 1e999), endless nesting.
    """
    try:
        value = _decoder.decode(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: not UTF-8 text ({error.reason} at byte {error.start}); {advice}"
        ) from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}: not valid JSON ({error.msg} at column {error.colno}); {advice}"
        ) from error
    except RecursionError as error:
        raise InputError(f"{where}: JSON that is nested too deeply to read; {advice}") from error
    except ValueError as error:  # of the parsers below, or an integer of thousands of digits
        raise InputError(f"{where}: a number that is none ({error}); {advice}") from error
    if data.count(b"[") + data.count(b"{") > DEEPEST and _is_deep(value):
        raise InputError(f"{where}: JSON that is nested too deeply to read; {advice}")
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(value).__name__}; {advice}")
    # Raw UTF-8 cannot hold half of a surrogate pair; an escape can, and no file could be written.
    if b"\\ud" in data or b"\\uD" in data:
        check_unicode(value, where)
    return value


def _is_deep(value: Any) -> bool:
    """Whether there are more than DEEPEST lists and objects inside of one another."""
    level = [value]
    for _ in range(DEEPEST + 1):
        inner = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()
            elif isinstance(item, list):
                inner += item
        level = inner
    return any(isinstance(item, dict | list) for item in level)


def check_unicode(value: Any, where: str) -> None:
    """Raises InputError if any text in `value` (also a key) holds half of a surrogate pair."""
    if isinstance(value, str):
        if not is_unicode(value):
            raise InputError(
                f"{where}: text that is no Unicode (half of a surrogate pair, as a tool that cuts "
                f"UTF-16 leaves it): {value[-40:]!r}; cut between characters"
            )
    elif isinstance(value, dict):
        for key, item in value.items():
            check_unicode(key, where)
            check_unicode(item, where)
    elif isinstance(value, list | tuple):
        for item in value:
            check_unicode(item, where)


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _integer(word: str) -> int:
    value = int(word)
    if not -(2**63) <= value < 2**64 and value != NO_LIMIT:
        raise ValueError(f"{word[:40]} is beyond 64 bits")
    return value


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _number(word: str) -> float:
    value = float(word)
    if math.isinf(value):
        raise ValueError(f"{word[:40]} is beyond 64 bits")
    return value


_decoder = json.JSONDecoder(parse_constant=_no_number, parse_float=_number, parse_int=_integer)


@contextmanager
def replaced_directory(path: str | Path) -> Iterator[Path]:
    """A temporary directory beside `path` that takes its name only if the block ends well.

    A cut leaves the old one whole, and a failure leaves nothing that was not there before. A link
    stays one: what it points to is replaced.
    """
    path = Path(os.path.realpath(path))
    if not path.name:
        raise InputError(f"{path}: expected the name of a directory that can be replaced")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    replaced = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
    new_parents = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed process of the same number
        temporary.mkdir()
        yield temporary
        if path.exists():
            path.rename(replaced)
        temporary.rename(path)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in new_parents:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def replace_text(path: Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all: beside its place, on disk, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def is_remnant(path: Path) -> bool:
    """Whether a killed process left this of a file or directory that it was putting in place."""
    return path.name.startswith(".") and path.name.endswith(".tmp")
