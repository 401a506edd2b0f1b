"""SimPO: -log sigmoid(beta (mean logp+ - mean logp-) - gamma), without a reference.

Means are over a response's tokens, its end of turn included.

Meng et al. 2024, SimPO: Simple Preference Optimization with a Reference-Free Reward, equation 6
(arXiv 2405.14734).
"""

from dataclasses import dataclass

import torch.nn.functional as F

from ecliptica.config import not_negative, positive
from ecliptica.objectives import terms
from ecliptica.objectives.contract import Needs, Step, Terms
from ecliptica.schema import Rows


@dataclass(frozen=True)
class Config:
    """The section `objective` with objective.name = "simpo"."""

    name: str = "simpo"
    beta: float = positive(2.0, "inverse temperature of the margin")
    gamma: float = not_negative(1.0, "the margin that is asked for, in units of beta x nats")


RESPONSES = 2


def needs(config: Config) -> Needs:
    return Needs()


def loss(rows: Rows, config: Config, step: Step) -> Terms:
    sequences = rows.sequences()
    reward_S = config.beta * terms.mean_logp(sequences.logp_S, sequences)
    margin_P = reward_S[sequences.chosen_P] - reward_S[sequences.rejected_P]
    loss = -F.logsigmoid(margin_P - config.gamma).sum()
    return Terms(loss, terms.compared(sequences, reward_S, loss))
