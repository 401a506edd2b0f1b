"""What ppo and grpo share: their KL's keys, the clipped policy loss, means over a global minibatch.

A step divides the loss by its count of preferences (here: prompts), so a mean over all response
tokens of the update comes as a sum times prompts / tokens: any split into micro-batches and ranks
then gives the same gradient.
"""

from dataclasses import dataclass

import torch

from ecliptica.config import choice, not_negative
from ecliptica.objectives import advantages
from ecliptica.objectives.contract import Size
from ecliptica.schema import Rows
from model.errors import InputError

DENOMINATORS = ("tokens", "sequences", "constant")


@dataclass(frozen=True)
class RolloutConfig:
    """The keys of the KL to the reference."""

    beta: float = not_negative(0.05, "weight of the KL to the reference")
    kl_in: str = choice("reward", ("reward", "loss", "both"), "where the KL is held down")
    kl: str = choice("k1", advantages.ESTIMATORS, "how it is measured; k1 in the reward only")

    def check(self) -> None:
        if self.kl == "k1" and self.kl_in != "reward":
            raise InputError(
                f"objective.kl: k1 in the loss has a gradient that is 0 on average and holds "
                f"nothing; use k3 or exact with objective.kl_in={self.kl_in}"
            )

    @property
    def reward_beta(self) -> float:
        """The KL's weight in the rewards."""
        return 0.0 if self.kl_in == "loss" else self.beta

    @property
    def loss_beta(self) -> float:
        """The KL's weight in the loss."""
        return 0.0 if self.kl_in == "reward" else self.beta

    @property
    def exact_in_loss(self) -> bool:
        """Whether the update has to compute the KL over the vocabulary."""
        return self.loss_beta > 0 and self.kl == "exact"


def ratios(rows: Rows) -> torch.Tensor:
    """pi(y_t) / pi_old(y_t) of each response token, [R]."""
    return (rows.logp_R - rows.sampled.logp_R).exp()


def policy_loss(
    ratio_R: torch.Tensor, advantage_R: torch.Tensor, low: float, high: float
) -> torch.Tensor:
    """max(-A ratio, -A clip(ratio, 1 - low, 1 + high)) of each token, [R]."""
    return torch.maximum(-advantage_R * ratio_R, -advantage_R * ratio_R.clamp(1 - low, 1 + high))


def clip_share(
    ratio_R: torch.Tensor, advantage_R: torch.Tensor, low: float, high: float
) -> torch.Tensor:
    """[R]: 1 where the clipped term is the larger, so that the token has no gradient."""
    above_R = (ratio_R > 1 + high) & (advantage_R > 0)
    below_R = (ratio_R < 1 - low) & (advantage_R < 0)
    return (above_R | below_R).float()


def value_loss(
    values_R: torch.Tensor, old_R: torch.Tensor, returns_R: torch.Tensor, clip: float
) -> torch.Tensor:
    """Half the larger of (V - return)^2 and (V' - return)^2, V' no further than `clip` from the old
    value, [R]."""
    near_R = old_R + (values_R - old_R).clamp(-clip, clip)
    return 0.5 * torch.maximum((values_R - returns_R).square(), (near_R - returns_R).square())


def weights(rows: Rows, size: Size, denominator: str = "tokens", most: int = 1) -> torch.Tensor:
    """[R]: what each token's loss weighs, times the update's prompts.

    tokens     1 / all response tokens of the update
    sequences  1 / (tokens of its response * all responses): each response weighs the same
    constant   1 / (most * all responses): most is what a response may have at most
    """
    ones_R = torch.ones_like(rows.segments_R, dtype=torch.float32)
    if denominator == "tokens":
        return ones_R * (size.preferences / size.tokens)
    each = size.preferences / size.sequences
    if denominator == "constant":
        return ones_R * (each / most)
    return each / rows.tokens_S[rows.segments_R].float()


def observed(
    rows: Rows, ratio_R: torch.Tensor, size: Size, low: float, high: float
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(metrics, largest) of the ratios: means over the response tokens of the update."""
    mean_R = weights(rows, size)
    ratio_R = ratio_R.detach()
    clipped_R = clip_share(ratio_R, rows.sampled.advantage_R, low, high)
    metrics = {"ratio_mean": (mean_R * ratio_R).sum(), "clip_share": (mean_R * clipped_R).sum()}
    return metrics, {"ratio_max": ratio_R.max()}


def kl_term(rows: Rows, config: RolloutConfig) -> torch.Tensor | None:
    """beta times the KL of each token as the loss has it, [R]; None where the loss has none."""
    if config.loss_beta == 0:
        return None
    kl_R = advantages.divergence(config.kl, rows.logp_R, rows.sampled.ref_logp_R, rows.kl_R)
    return config.loss_beta * kl_R
