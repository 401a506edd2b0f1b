"""ecliptica.json: how a trained model was made, beside its weights. Training writes it; whoever
loads the export reads it."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ecliptica.files import digest, read_json
from model.errors import InputError

RECORD = "ecliptica.json"


def read_record(directory: str | Path) -> dict[str, Any]:
    """The record in a model's or adapter's directory; empty for one from elsewhere."""
    path = Path(directory) / RECORD
    if not path.exists():
        return {}
    record = read_json(path)
    if not isinstance(record.get("template"), str):
        raise InputError(f"{path}: no template; expected the record of a run, copy it again")
    return record


def joint_digest(files: Iterable[Iterable[str]]) -> str:
    """One digest of (file name, SHA-256) of each weight file of a model."""
    lines = sorted(f"{name} {sha256}" for name, sha256 in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def base_digest(model_dir: str | Path) -> str:
    """What an export's `base_sha256` is compared with: of the weight files of a model."""
    paths = Path(model_dir).glob("*.safetensors")
    return joint_digest((path.name, digest(path)[1]) for path in paths)


def check_base(model_dir: str | Path, adapter_dir: str | Path) -> None:
    """Raises InputError if an adapter's record says that it was trained on other weights."""
    trained_on = read_record(adapter_dir).get("base_sha256")
    if trained_on is None:
        raise InputError(
            f"{Path(adapter_dir) / RECORD}: no base_sha256 in it; expected the whole export of a "
            "run, which says what base it was trained on: copy or train it again"
        )
    if trained_on != base_digest(model_dir):
        raise InputError(
            f"{adapter_dir}: was trained on another base than {model_dir} (its weights differ from "
            "base_sha256 of the record); give the base that it was trained on"
        )


def base_adapter(record: dict[str, Any], directory: str | Path) -> Path | None:
    """The adapter that this one is relative to, in a record from before exports stood by
    themselves; None if there is none.

    A relative path was relative to the directory of the day, under which the record lies as a
    rule: it is looked for from the record's directory upwards, then from here. Raises InputError
    if it is nowhere.
    """
    written = record.get("base_adapter")
    if not written:
        return None
    where = Path(directory) / RECORD
    if not isinstance(written, str):
        raise InputError(f"{where}: base_adapter: expected a path, got {written!r}")
    above = Path(directory).absolute()
    for start in (above, *above.parents, Path.cwd()):
        if (start / written).is_dir():
            return start / written
    raise InputError(
        f"{where}: its base_adapter {written} is neither under a directory above the record nor "
        "under this one; start the command where the run was started"
    )
