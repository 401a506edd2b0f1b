"""One file, one dataset format: the file's name is its name in the config. It has `read(record, where) -> Preference`, for one preference a line,
or `read_file(path, config, split) -> [Preference]`, for a file that is read as a whole."""

from importlib import import_module
from pkgutil import iter_modules

from ecliptica.files import read_records
from model.errors import InputError

NAMES = tuple(sorted(module.name for module in iter_modules(__path__)))


def read(path, name, on_error="stop", skipped=None, config=None, split="train"):
    """All preferences of a file, in its order. `config` (a DataConfig) and `split` are for formats that read a file as a whole. Raises InputError
    with file, line and field."""
    if name not in NAMES:
        raise InputError(f"data.format: expected one of {', '.join(NAMES)}, got {name!r}")
    module = import_module(f"{__name__}.{name}")
    if hasattr(module, "read_file"):
        return module.read_file(path, config, split)
    return read_records(path, module.read, on_error, skipped)
