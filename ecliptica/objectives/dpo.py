"""-log sigmoid(beta ((logp+ - ref+) - (logp- - ref-))).

reference_free = true drops the reference, as the paper's section 1 prints it.
"""

import math
from dataclasses import dataclass

from ecliptica.objectives import terms
from ecliptica.objectives.contract import Needs, Step, Terms
from ecliptica.schema import Rows


@dataclass(frozen=True)
class Config(terms.PreferenceConfig):
    """The section `objective` with objective.name = "dpo"."""

    name: str = "dpo"


RESPONSES = 2


def needs(config: Config) -> Needs:
    return Needs(reference=not config.reference_free)


def loss_at_start(config: Config) -> float | None:
    """ln 2 with a reference margin, which is 0 then; nothing is known of it without one."""
    if config.reference_free:
        return None
    return math.log(2)


def loss(rows: Rows, config: Config, step: Step) -> Terms:
    return terms.combine(terms.preference(rows.sequences(), config, config.reference_free))
