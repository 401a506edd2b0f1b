"""RRHF: sum over response pairs with score_i < score_j of max(0, p_i - p_j), p = length-normalised logp, + sft on the best."""

from dataclasses import dataclass

import torch

from ecliptica.config import choice
from ecliptica.objectives import terms


@dataclass(frozen=True)
class Config:
    """The section `objective` with objective.name = "rrhf"."""

    name: str = "rrhf"
    logp: str = choice("sum", ("sum", "mean"), "of sft's term: mean is normalised by the length")


RESPONSES = None


def needs_reference(config):
    return False


def loss(stats, config, kl_weight):
    p_S = stats.logp_S / stats.tokens_S.clamp(min=1)
    same = stats.owner_S[:, None] == stats.owner_S[None, :]
    worse = same & (stats.scores_S[:, None] < stats.scores_S[None, :])  # [i, j]: i ranks below j
    excess = p_S[:, None] - p_S[None, :]
    rank = torch.where(worse, excess.clamp(min=0), 0).sum()
    agree_P = stats.logp_S.new_zeros(stats.chosen_P.numel()).index_add(
        0, stats.owner_S, torch.where(worse, (excess < 0).float(), 0).sum(1).detach()
    )
    pairs_P = torch.zeros_like(agree_P).index_add(0, stats.owner_S, worse.float().sum(1))
    ranking = terms.Terms(
        rank,
        {
            "rank": rank.detach(),
            "rewards/accuracies": (agree_P / pairs_P).sum(),
            "logps/rejected": stats.logp_S.detach()[stats.rejected_P].sum(),
        },
    )
    return terms.combine((1.0, ranking), (1.0, terms.sft(stats, config)))
