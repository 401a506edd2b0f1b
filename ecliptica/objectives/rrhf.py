"""RRHF: sft on the best response, and max(0, p_i - p_j) summed over its pairs, score_i < score_j.

p is the length-normalised log-prob of a response.
"""

from dataclasses import dataclass

import torch

from ecliptica.config import choice
from ecliptica.objectives import terms
from ecliptica.objectives.contract import Needs, Step, Terms
from ecliptica.schema import Rows, Sequences


@dataclass(frozen=True)
class Config:
    """The section `objective` with objective.name = "rrhf"."""

    name: str = "rrhf"
    logp: str = choice("sum", ("sum", "mean"), "of sft's term: mean is normalised by the length")


RESPONSES = None


def needs(config: Config) -> Needs:
    return Needs()


def loss(rows: Rows, config: Config, step: Step) -> Terms:
    sequences = rows.sequences()
    return terms.combine(ranking(sequences), terms.sft(sequences, config))


def ranking(sequences: Sequences) -> Terms:
    """The sum over pairs; rewards/accuracies: which share of a preference's pairs is in order."""
    # [i, j]: i and j answer the same preference, and i ranks below j.
    owner_S, scores_S = sequences.owner_S, sequences.scores_S
    same_SS = owner_S[:, None] == owner_S[None, :]
    worse_SS = same_SS & (scores_S[:, None] < scores_S[None, :])

    p_S = sequences.logp_S / sequences.tokens_S.clamp(min=1)
    excess_SS = p_S[:, None] - p_S[None, :]
    loss = torch.where(worse_SS, excess_SS.clamp(min=0), 0).sum()

    def per_preference(count_S):
        return count_S.new_zeros(sequences.chosen_P.numel()).index_add(0, owner_S, count_S)

    right_S = torch.where(worse_SS, (excess_SS < 0).float(), 0).sum(1).detach()
    pairs_P = per_preference(worse_SS.float().sum(1))
    metrics = {
        "rank": loss.detach(),
        "rewards/accuracies": (per_preference(right_S) / pairs_P.clamp(min=1)).sum(),
        "logps/rejected": sequences.logp_S.detach()[sequences.rejected_P].sum(),
    }
    return Terms(loss, metrics)
