"""One file, one reward: the file's name is its name in the config. Each has

Config                       the dataclass of the section `reward`: its keys, rules and help

and one of

score(answers, config)       the reward of each answer, from its words alone
scorer(config, scene)        answers -> rewards, for one that computes with a model

An answer is (instruction, prompt, response text, whether it ended by its own stop token).
"""

from functools import partial
from types import ModuleType
from typing import Any

from ecliptica.registry import Folder
from ecliptica.rewards.contract import Scene, Scorer

REWARDS = Folder(__name__, __path__, "reward.name", shared=("contract",))


def configs() -> dict[str, type]:
    """{name: the dataclass of the section `reward`}."""
    return {name: module.Config for name, module in REWARDS.all().items()}


def get(config: Any) -> ModuleType:
    """The reward's module. config: the section `reward`."""
    return REWARDS.get(config.name)


def scorer(config: Any, scene: Scene | None = None) -> Scorer:
    """answers -> rewards, by the section `reward`.

    scene: what a reward computes with, if it has a model. Raises InputError, before any answer, for
    a reward that cannot be had.
    """
    module = get(config)
    if hasattr(module, "scorer"):
        return module.scorer(config, scene)
    return partial(module.score, config=config)
