"""PPO: clipped policy loss on GAE advantages, and a critic that learns the returns beside it.

policy   max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip)), the mean over all response tokens
critic   value_weight / 2 max((V - return)^2, (V clipped to old V +- value_clip - return)^2)

The KL to the reference is a reward at each token, a term of the loss, or both.
"""

from dataclasses import dataclass

from ecliptica.config import not_negative, option, positive, share
from ecliptica.objectives import advantages as estimates
from ecliptica.objectives import clipped
from ecliptica.objectives.contract import Needs, Step, Terms
from ecliptica.schema import Rows, Sampled


@dataclass(frozen=True)
class Config(clipped.RolloutConfig):
    """The section `objective` with objective.name = "ppo"."""

    name: str = "ppo"
    clip: float = positive(0.2, "how far a token's ratio may go from 1")
    value_clip: float = positive(0.2, "how far a value may go from what it was")
    value_weight: float = positive(0.1, "of the value loss")
    gamma: float = share(1.0, "discount of a later reward")
    gae_lambda: float = share(0.95, "of generalised advantage estimation")
    scale_rewards: bool = option(False, "divide rewards by their deviation; their mean is kept")
    critic_warmup: int = not_negative(2, "first steps, in which the critic alone learns")


RESPONSES = None
LEAST_RESPONSES = 1


def needs(config: Config) -> Needs:
    return Needs(kl=config.exact_in_loss, values=True)


def advantages(rows: Rows, config: Config) -> tuple[Sampled, dict[str, float]]:
    """Of a whole rollout: GAE of the token rewards, whitened once over all response tokens."""
    reward_R = estimates.token_rewards(rows, config.reward_beta, config.kl)
    if config.scale_rewards:
        reward_R = estimates.whitened(reward_R, keep_mean=True)
    values_R = rows.values_R.double()
    advantage_R = estimates.gae(reward_R, values_R, rows.tokens_S, config.gamma, config.gae_lambda)
    returns_R = advantage_R + values_R
    sampled = Sampled(
        logp_R=rows.logp_R,
        ref_logp_R=rows.ref_logp_R,
        advantage_R=estimates.whitened(advantage_R).float(),
        values_R=rows.values_R,
        returns_R=returns_R.float(),
    )
    return sampled, {
        "explained_variance": estimates.explained_variance(values_R, returns_R),
        "value_mean": float(values_R.mean()),
        "return_mean": float(returns_R.mean()),
    }


def loss(rows: Rows, config: Config, step: Step) -> Terms:
    known, mean_R = rows.sampled, clipped.weights(rows, step.size)

    # The critic, from the first step on.
    value_R = clipped.value_loss(rows.values_R, known.values_R, known.returns_R, config.value_clip)
    value = (mean_R * value_R).sum()
    total = config.value_weight * value

    # The policy, once the critic is warm.
    ratio_R = clipped.ratios(rows)
    each_R = clipped.policy_loss(ratio_R, known.advantage_R, config.clip, config.clip)
    policy = (mean_R * each_R).sum()
    kl_R = clipped.kl_term(rows, config)
    if step.number >= config.critic_warmup:
        total = total + policy
        if kl_R is not None:
            total = total + (mean_R * kl_R).sum()

    metrics, largest = clipped.observed(rows, ratio_R, step.size, config.clip, config.clip)
    metrics |= {"policy_loss": policy.detach(), "value_loss": value.detach()}
    return Terms(total, metrics, {"kl_weight": config.beta}, largest)
