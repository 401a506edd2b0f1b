"""The terms that objectives share. All are sums over the preferences of a batch: the step divides by the step's count."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ecliptica.config import choice, not_negative, option, positive

KL_MODES = ("exact", "printed", "logratio", "none")


@dataclass(frozen=True)
class PreferenceConfig:
    """The keys of a contrastive term."""

    beta: float = positive(0.1, "inverse temperature of the margin")
    logp: str = choice("sum", ("sum", "mean"), "of a response: mean is normalised by its length")
    reference_free: bool = option(False, "drop the reference's log-probs from the margin")


@dataclass(frozen=True)
class KLConfig:
    """The keys of the KL term, lambda KL[policy || reference]."""

    kl: str = choice("exact", KL_MODES, "exact; the others are ablations")
    kl_weight_start: float = not_negative(0.01, "lambda at the first step; it anneals linearly")
    kl_weight_end: float = not_negative(0.1, "lambda at the last step")
    ablation: bool = option(False, "lifts cita's lambda > 0; stamped on every output")


@dataclass(frozen=True)
class Terms:
    loss: torch.Tensor  # sum over preferences, differentiable
    metrics: dict[str, torch.Tensor]  # sums over preferences, detached


def sequence_logp(logp_S, tokens_S, config):
    """log pi(Y | I, X): the sum over tokens, or their mean with logp = "mean" (errata 5)."""
    return logp_S / tokens_S.clamp(min=1) if config.logp == "mean" else logp_S


def sft(stats, config):
    """-log pi(Y+ | I, X), paper section 1."""
    chosen_P = sequence_logp(stats.logp_S, stats.tokens_S, config)[stats.chosen_P]
    loss = -chosen_P.sum()
    return Terms(
        loss, {"sft": loss.detach(), "logps/chosen": stats.logp_S.detach()[stats.chosen_P].sum()}
    )


def preference(stats, config, reference_free):
    """-log sigmoid(beta (reward+ - reward-)), reward = log pi, or log pi - log pi_0 with a reference margin.

    Reference-free it is both the paper's section 1 DPO and CITA's two-way softmax: P+ = sigmoid(beta (s+ - s-)).
    Its gradient is -beta (1 - P+) (grad s+ - grad s-) (errata 1).
    """
    reward_S = sequence_logp(stats.logp_S, stats.tokens_S, config)
    if not reference_free:
        reward_S = reward_S - sequence_logp(stats.ref_logp_S, stats.tokens_S, config)
    reward_S = config.beta * reward_S
    chosen_P, rejected_P = reward_S[stats.chosen_P], reward_S[stats.rejected_P]
    margin_P = chosen_P - rejected_P
    loss = -F.logsigmoid(margin_P).sum()
    flat, logp_S = margin_P.detach(), stats.logp_S.detach()
    return Terms(
        loss,
        {
            "preference": loss.detach(),
            "logps/chosen": logp_S[stats.chosen_P].sum(),
            "logps/rejected": logp_S[stats.rejected_P].sum(),
            "rewards/chosen": chosen_P.detach().sum(),
            "rewards/rejected": rejected_P.detach().sum(),
            "rewards/margins": flat.sum(),
            "rewards/accuracies": (flat > 0).float().sum(),
            "saturated": (flat.sigmoid() > 0.99).float().sum(),
        },
    )


def kl(stats, config):
    """KL[policy || reference] over every response position of Y+ and Y-, or its ablation stand-in (policy.score).

    "logratio" is a mean over the two sequences, as its authors have it; the others are sums.
    """
    total = stats.kl_S.sum() / (2 if getattr(config, "kl", "exact") == "logratio" else 1)
    return Terms(total, {"kl": total.detach()})


def combine(*weighted):
    """sum of weight * term; the metrics of all."""
    metrics = {name: value for _, term in weighted for name, value in term.metrics.items()}
    loss = sum(weight * term.loss for weight, term in weighted)
    return Terms(loss, metrics | {"loss": loss.detach()})
