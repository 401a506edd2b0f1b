"""One file, one objective: the file's name is its name in the config. Each has

RESPONSES: how many responses of a preference it reads (None: all)
needs_reference(config): whether it cannot be computed without one
check(config): raises InputError for settings that contradict it
loss(stats, config, kl_weight) -> Terms: sums over the batch's preferences, numbers per sequence in, never a model
"""

from importlib import import_module
from pkgutil import iter_modules

from model.errors import InputError

NAMES = tuple(sorted(m.name for m in iter_modules(__path__) if not m.name.startswith("_")))


def get(config):
    """The objective's module, its settings checked."""
    if config.name not in NAMES:
        raise InputError(f"objective.name: expected one of {', '.join(NAMES)}, got {config.name!r}")
    objective = import_module(f"{__name__}.{config.name}")
    objective.check(config)
    return objective
