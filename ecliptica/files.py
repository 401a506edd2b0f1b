"""Every file that is read or written: JSON lines, JSON, TOML, atomic replacement, locks, digests.

Lines are ended by \\n and \\r\\n alone: what Unicode also calls a line separator (U+2028, U+0085,
form feed, ...) is text inside a line. A byte order mark at the start of a file is passed over.
"""

import errno
import fcntl
import hashlib
import json
import os
import socket
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from model.errors import InputError
from model.files import (
    check_unicode,
    is_remnant,
    parse_object,
    read_json,
    replace_text,
    replaced_directory,
)

__all__ = [
    "append_lines",
    "check_unicode",
    "check_writable",
    "digest",
    "is_remnant",
    "journal",
    "journal_lines",
    "lock",
    "naming",
    "read_json",
    "read_lines",
    "read_records",
    "read_toml",
    "replace_text",
    "replaced_directory",
    "sample_digest",
    "to_line",
    "write_json",
    "write_lines",
    "write_text",
]

Parsed = TypeVar("Parsed")
BOM = b"\xef\xbb\xbf"
ONE_A_LINE = "expected one JSON object a line"


# Reading


def read_lines(path: str | Path) -> list[bytes]:
    """The lines of a file without their ends. Raises InputError if it is not there or no file."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected JSON lines") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a directory; expected a file of JSON lines") from error
    return split_lines(data)


def split_lines(data: bytes) -> list[bytes]:
    """Bytes cut at \\n and \\r\\n, nowhere else."""
    lines = data.removeprefix(BOM).split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines]


def read_records(
    path: str | Path,
    parse: Callable[[dict[str, Any], str], Parsed],
    on_error: str = "stop",
    skipped: list[str] | None = None,
) -> list[Parsed]:
    """[parse(record, "file:line")] for every line of a JSONL file that is not blank.

    A bad line is an InputError; with on_error = "skip" its message goes to `skipped` and reading
    goes on. Raises InputError for a file without a usable line.
    """
    parsed = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            parsed.append(parse(parse_object(line, where, ONE_A_LINE), where))
        except InputError as error:
            if on_error == "stop":
                raise
            skipped.append(str(error))
    if not parsed:
        first = f"; first error: {skipped[0]}" if skipped else ""
        raise InputError(f"{path}: no usable line; expected at least one JSON object{first}")
    return parsed


def journal_lines(path: str | Path) -> list[bytes]:
    """The whole lines of an append-only file; none if it is not there.

    A last one that a kill cut is left out.
    """
    path = Path(path)
    if not path.exists():
        return []
    data = path.read_bytes()
    return split_lines(data[: data.rfind(b"\n") + 1])


def journal(path: str | Path) -> list[dict[str, Any]]:
    """The records of an append-only file. A bad line that no kill explains is an InputError."""
    advice = "delete that line, it will be made again"
    return [
        parse_object(line, f"{path}:{number}", advice)
        for number, line in enumerate(journal_lines(path), start=1)
    ]


def read_toml(path: str | Path, what: str = "a TOML file") -> dict[str, Any]:
    """The table in a TOML file. Raises InputError that names the file."""
    path = Path(path)
    try:
        table = tomllib.loads(path.read_bytes().removeprefix(BOM).decode("utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected {what}") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a directory; expected {what}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error
    except RecursionError as error:
        raise InputError(f"{path}: TOML that is nested too deeply to read") from error
    except ValueError as error:  # an integer of thousands of digits
        raise InputError(f"{path}: a number that is none ({error})") from error
    return table


# Writing


def to_line(row: dict[str, Any]) -> str:
    """A record as one JSON line, its end included. Raises ValueError for NaN, which is no JSON."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def append_lines(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Lines at the end of a file, given to the system before this returns: a kill loses none.

    Half a line that a kill left at the end is taken off first: no line is ever glued to it.
    """
    with naming(path), open(path, "a+b") as file:
        size = file.seek(0, os.SEEK_END)
        end = _end_of_last_line(file, size)
        if end < size:
            file.truncate(end)
        file.write("".join(map(to_line, rows)).encode())


def _end_of_last_line(file, size: int) -> int:
    """The offset after the last \\n, looked for from the end, a piece at a time."""
    end = size
    while end:
        start = max(0, end - (1 << 16))
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def write_lines(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """A JSONL file, whole or not at all. An OSError names it."""
    write_text(path, "".join(map(to_line, rows)))


def write_json(path: str | Path, value: Any) -> None:
    """A JSON file that people read too, whole or not at all. An OSError names it."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """A text file, whole or not at all. An OSError names it."""
    path = Path(path)
    with naming(path):
        if path.exists() and not path.is_file():
            with open(path, "w", encoding="utf-8") as device:  # a pipe, /dev/stdout: not replaced
                device.write(text)
        else:
            replace_text(path, text)


def check_writable(path: str | Path, option: str, directory: bool = False) -> None:
    """Before the work, not after it: whether `path` can be written. InputError names `option`.

    directory: the output is a directory, which is made with its parents if it is not there.
    """
    path = Path(path)
    if directory:
        if path.exists() and not path.is_dir():
            raise InputError(f"{option} {path}: is a file; expected a directory")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{option} {path}: cannot be made ({error.strerror})") from error
        place = path
    else:
        if path.is_dir():
            raise InputError(f"{option} {path}: is a directory; expected the name of a file")
        if not path.parent.is_dir():
            raise InputError(f"{option} {path}: no such directory {path.parent}")
        place = path.parent
    if path.is_file() or path.is_dir() or not path.exists():
        _probe(place, option, path)


def _probe(place: Path, option: str, path: Path) -> None:
    """Write a little where the output will stand: permissions and disks say no in many ways."""
    probe = place / f".{path.name}.{os.getpid()}.probe.tmp"
    try:
        probe.write_bytes(b"0" * 4096)
    except OSError as error:
        raise InputError(f"{option} {path}: cannot be written ({error.strerror})") from error
    finally:
        probe.unlink(missing_ok=True)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """An OSError of the block names the file, and says what to do about a full disk."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        room = "; make room and start the same command again" if full else ""
        raise OSError(error.errno, f"{error.strerror}{room}", str(path)) from error


# Holding and knowing


def lock(path: Path, holder_of: str):
    """The open file of an exclusive lock at `path`, released when it is closed or the process ends.

    holder_of: what is locked, for the message. Raises InputError naming the process that has it.
    """
    file = open(path, "a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "starting"
        file.close()
        raise InputError(
            f"{holder_of} is in use by another run ({holder}); "
            "wait for it or choose another run.dir"
        ) from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def digest(path: str | Path) -> list:
    """[bytes, SHA-256] of a file."""
    with open(path, "rb") as file:
        return [os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def sample_digest(path: str | Path) -> list:
    """[bytes, SHA-256]: of all of a file up to 64 MiB, of 64 pieces spread over a larger one.

    That tells other weights, but not every flipped bit.
    """
    size = Path(path).stat().st_size
    if size <= 64 << 20:
        return digest(path)
    piece = 1 << 14
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        for number in range(64):
            file.seek((size - piece) * number // 63)
            sha256.update(file.read(piece))
    return [size, sha256.hexdigest()]
