"""From the numbers of a rollout to advantages: pure functions, in float64, without gradient.

Rows are response tokens, those of a response adjacent and in order, those of a prompt's responses
adjacent too. Nothing leaks over the end of a response: every function works within one.
"""

import torch
from torch.nn.utils.rnn import pad_sequence

from ecliptica.schema import Rows

ESTIMATORS = ("k1", "k3", "exact")
SCALES = ("group-std", "batch-std", "none")
EPSILON = 1e-8


def divergence(
    how: str, logp_R: torch.Tensor, ref_logp_R: torch.Tensor, kl_R: torch.Tensor | None
) -> torch.Tensor:
    """KL[policy || reference] at each position, [R].

    k1     logp - ref: unbiased, may be negative
    k3     exp(ref - logp) - 1 - (ref - logp): unbiased, never negative
    exact  the sum over the vocabulary, as the head computes it: no variance of its own
    """
    if how == "exact":
        return kl_R
    log_ratio_R = ref_logp_R - logp_R
    if how == "k1":
        return -log_ratio_R
    return log_ratio_R.expm1() - log_ratio_R


def token_rewards(rows: Rows, beta: float, how: str) -> torch.Tensor:
    """[R]: -beta times the divergence at each token, and the score of a response at its last.

    With k1 a response's sum is score - beta * (log pi - log pi_0).
    """
    kl_R = None if rows.kl_R is None else rows.kl_R.double()
    reward_R = -beta * divergence(how, rows.logp_R.double(), rows.ref_logp_R.double(), kl_R)
    last_S = rows.tokens_S.cumsum(0) - 1
    reward_R[last_S] += rows.scores_S.double()
    return reward_R


def gae(
    reward_R: torch.Tensor,
    values_R: torch.Tensor,
    tokens_S: torch.Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> torch.Tensor:
    """Generalised advantage estimation within each response, [R].

    A_t = d_t + gamma lam A_(t+1), d_t = r_t + gamma V_(t+1) - V_t; after the last token both V and
    A are 0.
    """
    lengths = tokens_S.tolist()
    reward_SL = pad_sequence(reward_R.double().split(lengths), batch_first=True)
    values_SL = pad_sequence(values_R.double().split(lengths), batch_first=True)

    # From the last place back; padding has reward and value 0, so it adds nothing to what precedes.
    advantage_SL = torch.zeros_like(reward_SL)
    next_value_S = torch.zeros_like(reward_SL[:, 0])
    next_advantage_S = torch.zeros_like(next_value_S)
    for place in reversed(range(reward_SL.shape[1])):
        delta_S = reward_SL[:, place] + gamma * next_value_S - values_SL[:, place]
        next_advantage_S = delta_S + gamma * lam * next_advantage_S
        next_value_S = values_SL[:, place]
        advantage_SL[:, place] = next_advantage_S
    return torch.cat([row[:length] for row, length in zip(advantage_SL, lengths)])


def whitened(x: torch.Tensor, keep_mean: bool = False) -> torch.Tensor:
    """(x - mean) / sqrt(var + 1e-8) with the biased variance; the mean added again on demand."""
    mean = x.mean()
    scaled = (x - mean) / (x.var(correction=0) + EPSILON).sqrt()
    return scaled + mean if keep_mean else scaled


def group_advantages(
    reward_S: torch.Tensor, owner_S: torch.Tensor, scale: str
) -> tuple[torch.Tensor, int]:
    """([S]: each response's reward minus the mean of its group, scaled; groups without variance).

    scale: "group-std" | "batch-std" (of all rewards) | "none". Standard deviations are biased, and
    a group whose rewards are equal has the advantage 0 by every scale.
    """
    groups = int(owner_S.max()) + 1
    zeros_P = torch.zeros(groups, dtype=torch.float64)
    count_P = zeros_P.index_add(0, owner_S, torch.ones_like(reward_S, dtype=torch.float64))
    mean_P = zeros_P.index_add(0, owner_S, reward_S.double()) / count_P
    away_S = reward_S.double() - mean_P[owner_S]
    variance_P = zeros_P.index_add(0, owner_S, away_S.square()) / count_P
    without = variance_P <= EPSILON

    away_S = torch.where(without[owner_S], 0.0, away_S)
    if scale == "group-std":
        away_S = away_S / (variance_P[owner_S] + EPSILON).sqrt()
    elif scale == "batch-std":
        away_S = away_S / (reward_S.double().var(correction=0) + EPSILON).sqrt()
    return away_S, int(without.sum())


def explained_variance(values_R: torch.Tensor, returns_R: torch.Tensor) -> float:
    """1 - var(returns - values) / var(returns); 0 where the returns do not vary."""
    variance = returns_R.double().var(correction=0)
    if variance <= EPSILON:
        return 0.0
    left = (returns_R.double() - values_R.double()).var(correction=0)
    return float(1 - left / variance)
