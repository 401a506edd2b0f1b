"""One file, one suite: the file's name (with - for _) is its name on the command line; it has add_arguments(parser) and run(args)."""

from importlib import import_module
from pkgutil import iter_modules

NAMES = tuple(sorted(module.name.replace("_", "-") for module in iter_modules(__path__)))


def get(name):
    return import_module(f"{__name__}.{name.replace('-', '_')}")
