"""GRPO: the clipped policy loss with a response's reward, less the mean of its group, as advantage.

The group is the K responses to one prompt, so there is no critic. `scale` says what the advantage
is divided by, `denominator` what the sum over tokens is; clip_high above clip_low leaves unlikely
tokens room to grow.
"""

from dataclasses import dataclass

from ecliptica.config import choice, not_negative, positive
from ecliptica.objectives import advantages as estimates
from ecliptica.objectives import clipped
from ecliptica.objectives.contract import Needs, Step, Terms
from ecliptica.schema import Rows, Sampled


@dataclass(frozen=True)
class Config(clipped.RolloutConfig):
    """The section `objective` with objective.name = "grpo"."""

    name: str = "grpo"
    beta: float = not_negative(0.04, "weight of the KL to the reference")
    kl_in: str = choice("loss", ("reward", "loss", "both"), "where the KL is held down")
    kl: str = choice("exact", estimates.ESTIMATORS, "how it is measured; k1 in the reward only")
    clip_low: float = positive(0.2, "how far a token's ratio may go below 1")
    clip_high: float = positive(0.28, "how far a token's ratio may go above 1")
    scale: str = choice("group-std", estimates.SCALES, "what an advantage is divided by")
    denominator: str = choice("tokens", clipped.DENOMINATORS, "what the loss is divided by")
    constant: int = positive(512, "tokens a response counts for with denominator=constant")


RESPONSES = None
LEAST_RESPONSES = 2


def needs(config: Config) -> Needs:
    return Needs(kl=config.exact_in_loss)


def advantages(rows: Rows, config: Config) -> tuple[Sampled, dict[str, float]]:
    """Of a whole rollout: each token has the advantage of its response within the group."""
    reward_R = estimates.token_rewards(rows, config.reward_beta, config.kl)
    reward_S = rows.per_sequence(reward_R)
    advantage_S, without = estimates.group_advantages(reward_S, rows.owner_S, config.scale)
    sampled = Sampled(
        logp_R=rows.logp_R,
        ref_logp_R=rows.ref_logp_R,
        advantage_R=advantage_S[rows.segments_R].float(),
    )
    return sampled, {"zero_variance_groups": float(without)}


def loss(rows: Rows, config: Config, step: Step) -> Terms:
    ratio_R = clipped.ratios(rows)
    low, high = config.clip_low, config.clip_high
    each_R = clipped.policy_loss(ratio_R, rows.sampled.advantage_R, low, high)
    kl_R = clipped.kl_term(rows, config)
    if kl_R is not None:
        each_R = each_R + kl_R
    weight_R = clipped.weights(rows, step.size, config.denominator, config.constant)
    metrics, largest = clipped.observed(rows, ratio_R, step.size, low, high)
    return Terms((weight_R * each_R).sum(), metrics, {"kl_weight": config.beta}, largest)
