"""One file, one objective: the file's name is its name in the config. Each has

Config                       the dataclass of the section `objective`: its keys, rules and help
RESPONSES                    how many responses of a preference it reads (None: all)
needs(config) -> Needs       what it reads beside the policy's own log-probs
loss(rows, config, step) -> Terms
                             sums over a batch's preferences; numbers per response token come in
                             (schema.Rows), never a model

and, where it makes sense for it,

baseline(whole_step)         a statistic over all batches and ranks of an optimizer step, without
                             gradient, before any loss of it; `loss` finds it in step.baseline
advantages(rows, config)     of an objective that learns from rollouts: from the numbers of all
                             response tokens of a rollout what its loss reads (schema.Sampled),
                             and named numbers to log; LEAST_RESPONSES says how many responses to
                             a prompt it needs
loss_at_start(config)        its loss per preference while policy and reference are the same
                             function; compared before the first update

The types are in contract.py, the terms that objectives share in terms.py and kl.py; those of
rollouts in advantages.py and clipped.py.
"""

from types import ModuleType
from typing import Any

from ecliptica.registry import Folder

SHARED = ("advantages", "clipped", "contract", "kl", "terms")
OBJECTIVES = Folder(__name__, __path__, "objective.name", shared=SHARED)


def configs() -> dict[str, type]:
    """{name: the dataclass of the section `objective`}."""
    return {name: module.Config for name, module in OBJECTIVES.all().items()}


def get(config: Any) -> ModuleType:
    """The objective's module. config: the section `objective`."""
    return OBJECTIVES.get(config.name)


def learns_from_rollouts(config: Any) -> bool:
    """Whether an objective learns from the policy's own responses, not from preferences on disk."""
    return hasattr(get(config), "advantages")
