"""The terms that objectives share, but for the KL (kl.py): sums over the preferences of a batch."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from ecliptica.config import choice, not_negative, option, positive
from ecliptica.objectives.contract import Terms
from ecliptica.schema import Sequences


@dataclass(frozen=True)
class PreferenceConfig:
    """The keys of a contrastive term."""

    beta: float = positive(0.1, "inverse temperature of the margin")
    logp: str = choice("sum", ("sum", "mean"), "of a response: mean is normalised by its length")
    reference_free: bool = option(False, "drop the reference's log-probs from the margin")


@dataclass(frozen=True)
class RationaleConfig:
    """The key of the term on the reason of a rejection."""

    rationale_weight: float = not_negative(
        0.0, "of sft on the data's `rationale`, asked for behind the rejected response"
    )


def mean_logp(logp_S: torch.Tensor, sequences: Sequences) -> torch.Tensor:
    """[S]: a sum over each sequence's tokens as the mean of one token."""
    return logp_S / sequences.tokens_S.clamp(min=1)


def sequence_logp(logp_S: torch.Tensor, tokens_S: torch.Tensor, config: Any) -> torch.Tensor:
    """log pi(Y | I, X): the sum over tokens, or their mean with logp = "mean" (errata 5)."""
    if config.logp == "mean":
        return logp_S / tokens_S.clamp(min=1)
    return logp_S


def sft(sequences: Sequences, config: Any) -> Terms:
    """-log pi(Y+ | I, X), paper section 1."""
    best_P = sequences.chosen_P
    logp_S = sequence_logp(sequences.logp_S, sequences.tokens_S, config)
    loss = -logp_S[best_P].sum()
    metrics = {
        "sft": loss.detach(),
        "logps/chosen": sequences.logp_S.detach()[best_P].sum(),
    }
    return Terms(loss, metrics)


def preference(
    sequences: Sequences,
    config: PreferenceConfig,
    reference_free: bool,
    label_smoothing: float = 0.0,
) -> Terms:
    """-log sigmoid(beta (reward+ - reward-)); the reward is log pi, or log pi - log pi_0.

    Reference-free it is both the paper's section 1 DPO and CITA's two-way softmax:
    P+ = sigmoid(beta (s+ - s-)). Its gradient is -beta (1 - P+) (grad s+ - grad s-) (errata 1).
    label_smoothing: the share of preferences that are believed to be the wrong way round.
    """
    best_P, worse_P = sequences.chosen_P, sequences.rejected_P
    reward_S = sequence_logp(sequences.logp_S, sequences.tokens_S, config)
    if not reference_free:
        reward_S = reward_S - sequence_logp(sequences.ref_logp_S, sequences.tokens_S, config)
    reward_S = config.beta * reward_S
    margin_P = reward_S[best_P] - reward_S[worse_P]
    loss = -F.logsigmoid(margin_P).sum()
    if label_smoothing:
        flipped = -F.logsigmoid(-margin_P).sum()
        loss = (1 - label_smoothing) * loss + label_smoothing * flipped

    saturated = (margin_P.detach().sigmoid() > 0.99).float().sum()
    metrics = compared(sequences, reward_S, loss) | {"saturated": saturated}
    return Terms(loss, metrics)


def compared(
    sequences: Sequences, reward_S: torch.Tensor, loss: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The metrics of a contrastive term: its loss, log-probs and rewards of both responses.

    reward_S: what the objective takes for the reward of a sequence, by which the chosen one ought
    to be ahead.
    """
    best_P, worse_P = sequences.chosen_P, sequences.rejected_P
    logp_S, reward_S = sequences.logp_S.detach(), reward_S.detach()
    margin_P = reward_S[best_P] - reward_S[worse_P]
    return {
        "preference": loss.detach(),
        "logps/chosen": logp_S[best_P].sum(),
        "logps/rejected": logp_S[worse_P].sum(),
        "rewards/chosen": reward_S[best_P].sum(),
        "rewards/rejected": reward_S[worse_P].sum(),
        "rewards/margins": margin_P.sum(),
        "rewards/accuracies": (margin_P > 0).float().sum(),
    }


def rationale(sequences: Sequences, config: Any) -> Terms:
    """-log pi(rationale | I, X, Y-, why), weighted; a preference without one adds nothing.

    The model is asked, in the turn behind the rejected response, what is wrong with it. Nothing at
    a weight of 0.
    """
    nothing = sequences.logp_S.new_zeros(())
    if not config.rationale_weight:
        return Terms(nothing, {})
    if sequences.aside_S is None:
        return Terms(nothing, {"rationale": nothing})
    logp_S = sequence_logp(sequences.logp_S, sequences.tokens_S, config)
    loss = -logp_S[sequences.aside_S].sum()
    return Terms(config.rationale_weight * loss, {"rationale": loss.detach()})


def weighted(weight: float, term: Terms) -> Terms:
    """A term of which the loss takes `weight`; what is logged of it stays as it is."""
    return replace(term, loss=weight * term.loss)


def combine(*parts: Terms) -> Terms:
    """The sum of several terms; the metrics and values of all."""
    metrics = {name: value for part in parts for name, value in part.metrics.items()}
    values = {name: value for part in parts for name, value in part.values.items()}
    return Terms(sum(part.loss for part in parts), metrics, values)
