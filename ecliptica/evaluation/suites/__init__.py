"""One file, one suite: the file's name is its name on the command line, and it has add_arguments(parser) and run(args)."""

from importlib import import_module
from pkgutil import iter_modules

NAMES = tuple(sorted(module.name for module in iter_modules(__path__)))


def get(name):
    return import_module(f"{__name__}.{name}")
