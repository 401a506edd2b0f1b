"""One file, one dataset format: the file's name is its name in the config, and it has `read(record, where) -> Preference`."""

from importlib import import_module
from pkgutil import iter_modules

from ecliptica.data.jsonl import records
from model.errors import InputError

NAMES = tuple(sorted(module.name for module in iter_modules(__path__)))


def read(path, name, on_error="stop", skipped=None):
    """All preferences of a file, in file order. Raises InputError with file, line and field."""
    if name not in NAMES:
        raise InputError(f"data.format: expected one of {', '.join(NAMES)}, got {name!r}")
    return records(path, import_module(f"{__name__}.{name}").read, on_error, skipped)
