"""One file, one reward: the file's name is its name in the config."""

from typing import Any

from ecliptica.registry import Folder

REWARDS = Folder(__name__, __path__, "reward.name")


def configs() -> dict[str, type]:
    return {name: module.Config for name, module in REWARDS.all().items()}


def get(config: Any):
    return REWARDS.get(config.name)
