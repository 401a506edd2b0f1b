"""Bradley-Terry: -log sigmoid(r+ - r-), r a scalar head's number at a response's last token.

The head is on the adapter that is trained, or on the whole model; no log-prob is computed. What a
run exports is shifted and scaled: over chosen and rejected of its training set the reward has mean
0 and variance 1.
"""

from dataclasses import dataclass

import torch.nn.functional as F

from ecliptica.objectives.contract import Needs, Step, Terms
from ecliptica.schema import Rows


@dataclass(frozen=True)
class Config:
    """The section `objective` with objective.name = "reward"."""

    name: str = "reward"


RESPONSES = 2


def needs(config: Config) -> Needs:
    return Needs(rewards=True)


def loss(rows: Rows, config: Config, step: Step) -> Terms:
    sequences = rows.sequences()
    chosen_P = sequences.rewards_S[sequences.chosen_P]
    rejected_P = sequences.rewards_S[sequences.rejected_P]
    margin_P = chosen_P - rejected_P
    loss = -F.logsigmoid(margin_P).sum()

    chosen_P, rejected_P, margin_P = chosen_P.detach(), rejected_P.detach(), margin_P.detach()
    right_P = (margin_P > 0).float() + 0.5 * (margin_P == 0).float()  # a tie is half right
    metrics = {
        "preference": loss.detach(),
        "rewards/chosen": chosen_P.sum(),
        "rewards/rejected": rejected_P.sum(),
        "rewards/margins": margin_P.sum(),
        "rewards/accuracies": right_P.sum(),
        "accuracy": right_P.sum(),
        "margin": margin_P.sum(),
    }
    return Terms(loss, metrics)
