"""-log sigmoid(beta ((logp+ - ref+) - (logp- - ref-))).

reference_free = true drops the reference, as the paper's section 1 prints it. label_smoothing = s
is conservative DPO: with h the margin, -(1 - s) log sigmoid(h) - s log sigmoid(-h).

Rafailov et al. 2023, Direct Preference Optimization, equation 7 (arXiv 2305.18290); the smoothed
one: Mitchell, A note on DPO with noisy preferences, 2023.
"""

import math
from dataclasses import dataclass

from ecliptica.config import Rule, option
from ecliptica.objectives import terms
from ecliptica.objectives.contract import Needs, Step, Terms
from ecliptica.schema import Rows

BELOW_A_HALF = Rule("a share from 0 to below 0.5", lambda value: 0 <= value < 0.5)


@dataclass(frozen=True)
class Config(terms.PreferenceConfig):
    """The section `objective` with objective.name = "dpo"."""

    name: str = "dpo"
    label_smoothing: float = option(
        0.0, "share of preferences that may be the wrong way round", BELOW_A_HALF
    )


RESPONSES = 2


def needs(config: Config) -> Needs:
    return Needs(reference=not config.reference_free)


def loss_at_start(config: Config) -> float | None:
    """ln 2 with a reference margin, which is 0 then, smoothed or not; nothing is known of it
    without one."""
    if config.reference_free:
        return None
    return math.log(2)


def loss(rows: Rows, config: Config, step: Step) -> Terms:
    return terms.preference(rows.sequences(), config, config.reference_free, config.label_smoothing)
