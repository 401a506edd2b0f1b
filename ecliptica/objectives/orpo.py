"""ORPO: -mean logp+ - lambda log sigmoid(log odds+ - log odds-), without a reference.

The odds of a response are p / (1 - p) with log p the mean log-prob of its tokens; lambda is
odds_weight.

Hong et al. 2024, ORPO: Monolithic Preference Optimization without Reference Model, equations 6
and 7 (arXiv 2403.07691).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ecliptica.config import not_negative
from ecliptica.objectives import terms
from ecliptica.objectives.contract import Needs, Step, Terms
from ecliptica.schema import Rows

# Nearer to 0 than this a float32 log-prob is rounding of the logits; the odds end there.
NEAREST = -torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Config:
    """The section `objective` with objective.name = "orpo"."""

    name: str = "orpo"
    odds_weight: float = not_negative(0.1, "lambda, of the log odds ratio's term")


RESPONSES = 2


def needs(config: Config) -> Needs:
    return Needs()


def loss(rows: Rows, config: Config, step: Step) -> Terms:
    sequences = rows.sequences()
    best_P, worse_P = sequences.chosen_P, sequences.rejected_P
    mean_S = terms.mean_logp(sequences.logp_S, sequences)
    sft = -mean_S[best_P].sum()
    odds_S = log_odds(mean_S)
    preference = -F.logsigmoid(odds_S[best_P] - odds_S[worse_P]).sum()

    metrics = terms.compared(sequences, odds_S, preference) | {"sft": sft.detach()}
    return Terms(sft + config.odds_weight * preference, metrics)


def log_odds(logp_S: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) of p = e^logp, finite and with a finite gradient up to logp = 0."""
    logp_S = logp_S.clamp(max=NEAREST)

    # log(1 - p) loses its digits near p = 0 in one form and near p = 1 in the other. Each form
    # sees its own half alone: the gradient of the other's overflow would be NaN.
    half = -math.log(2)
    small_S = torch.log1p(-logp_S.clamp(max=half).exp())
    large_S = torch.log(-torch.expm1(logp_S.clamp(min=half)))
    return logp_S - torch.where(logp_S < half, small_S, large_S)
