"""One file, one dataset format: the file's name is its name in the config. Each has

read(record, where) -> Preference                     for one preference a line, or
read_file(path, config, split) -> [Preference]        for a file that is read as a whole
Config, a subclass of DataConfig                      if it has keys of its own
"""

from ecliptica.data.settings import DataConfig
from ecliptica.files import read_records
from ecliptica.registry import Folder

FORMATS = Folder(__name__, __path__, "data.format")


def configs() -> dict[str, type]:
    """{name: the dataclass of the section `data`}: the format's own Config, or what all have."""
    modules = FORMATS.all()
    return {name: getattr(module, "Config", DataConfig) for name, module in modules.items()}


def read(path, name, on_error="stop", skipped=None, config=None, split="train"):
    """All preferences of a file, in its order. Raises InputError with file, line and field.

    `config` (a DataConfig) and `split` are for formats that read a file as a whole.
    """
    module = FORMATS.get(name)
    if hasattr(module, "read_file"):
        return module.read_file(path, config, split)
    return read_records(path, module.read, on_error, skipped)
