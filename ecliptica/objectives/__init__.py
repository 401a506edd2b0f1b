"""One file, one objective: the file's name is its name in the config. Each has

RESPONSES: how many responses of a preference it reads (None: all)
needs_reference(config): whether it cannot be computed without one
check(config): raises InputError for settings that contradict it
loss(stats, config, kl_weight) -> Terms: sums over the batch's preferences, numbers per sequence in, never a model
"""

from ecliptica.registry import Folder

OBJECTIVES = Folder(__name__, __path__, "objective.name", shared=("terms",))


def configs() -> dict[str, type]:
    """{name: the dataclass of the section `objective`}."""
    return {name: module.Config for name, module in OBJECTIVES.all().items()}


def get(config):
    """The objective's module."""
    return OBJECTIVES.get(config.name)
