"""ecliptica.json: how a trained model was made, beside its weights. Training writes it; whoever
loads the export reads it."""

from pathlib import Path
from typing import Any

from ecliptica.files import read_json
from model.errors import InputError

RECORD = "ecliptica.json"


def read_record(directory: str | Path) -> dict[str, Any]:
    """The record in a model's or adapter's directory; empty for one from elsewhere."""
    path = Path(directory) / RECORD
    return read_json(path) if path.exists() else {}


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
