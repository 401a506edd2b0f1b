"""KTO: lambda_D (1 - sigmoid(beta (r - z0))) of a good response, lambda_U (1 - sigmoid(beta (z0 -
r))) of a bad one; r = log pi(Y) - log pi_0(Y).

z0 = max(0, mean of log pi(Y') - log pi_0(Y')) over the mismatched pairs (X, Y') of the whole
optimizer step, all batches and ranks, without gradient and without dropout. Y' is the response of
the neighbour in the step (data/loader.py: mismatched). Of a preference the chosen response is a
good example and the rejected one a bad one.

Ethayarajh et al. 2024, KTO: Model Alignment as Prospect Theoretic Optimization, equations 7 and 8
(arXiv 2402.01306).
"""

from dataclasses import dataclass

import torch

from ecliptica.config import positive
from ecliptica.objectives.contract import Needs, Step, Terms, WholeStep
from ecliptica.schema import Rows


@dataclass(frozen=True)
class Config:
    """The section `objective` with objective.name = "kto"."""

    name: str = "kto"
    beta: float = positive(0.1, "inverse temperature of a response's distance to z0")
    desirable_weight: float = positive(1.0, "lambda_D, of good responses")
    undesirable_weight: float = positive(1.0, "lambda_U, of bad ones")


@dataclass(frozen=True)
class Baseline:
    """What a loss reads of the whole step."""

    kl: float  # mean log-ratio of the mismatched pairs, nats; z0 is no less than 0
    examples: float
    good: float  # of these

    @property
    def z0(self) -> float:
        return max(0.0, self.kl)


RESPONSES = 1


def needs(config: Config) -> Needs:
    return Needs(reference=True, labelled=True)


def loss_at_start(config: Config) -> float | None:
    """Half the weight, which is known of every batch if both weights are one."""
    if config.desirable_weight != config.undesirable_weight:
        return None
    return config.desirable_weight / 2


def baseline(whole: WholeStep) -> Baseline:
    """The mean log-ratio of the step's mismatched pairs. Collective."""
    ratio = pairs = examples = good = 0.0
    for batch in whole.batches:
        sequences = whole.rows(batch.mismatched).sequences()
        if not batch.ids:
            continue
        ratio_S = (sequences.logp_S.double() - sequences.ref_logp_S.double()).detach()
        ratio += float((ratio_S * sequences.scores_S).sum())
        pairs += float(sequences.scores_S.sum())
        examples += len(batch.ids)
        good += float((batch.scores_S > 0).sum())
    ratio, pairs, examples, good = whole.sums([ratio, pairs, examples, good])
    return Baseline(ratio / max(pairs, 1.0), examples, good)


def loss(rows: Rows, config: Config, step: Step) -> Terms:
    sequences, of_step = rows.sequences(), step.baseline
    good_S = sequences.scores_S > 0
    ratio_S = sequences.logp_S - sequences.ref_logp_S
    ahead_S = torch.where(good_S, ratio_S - of_step.z0, of_step.z0 - ratio_S)

    # 1 - sigmoid(x), as sigmoid(-x): no digits are lost where it is small.
    loss_S = torch.sigmoid(-config.beta * ahead_S)
    weight_S = torch.full_like(loss_S, config.undesirable_weight)
    weight_S[good_S] = config.desirable_weight
    loss = (weight_S * loss_S).sum()

    # A mean over the step's good ones is a sum over all of its examples of what is scaled up.
    good_S = good_S.to(ratio_S.dtype) * over(of_step.examples, of_step.good)
    bad_S = (sequences.scores_S <= 0).to(ratio_S.dtype)
    bad_S = bad_S * over(of_step.examples, of_step.examples - of_step.good)
    logp_S, reward_S = sequences.logp_S.detach(), config.beta * ratio_S.detach()
    metrics = {
        "logps/chosen": (good_S * logp_S).sum(),
        "logps/rejected": (bad_S * logp_S).sum(),
        "rewards/chosen": (good_S * reward_S).sum(),
        "rewards/rejected": (bad_S * reward_S).sum(),
        "rewards/margins": ((good_S - bad_S) * reward_S).sum(),
        "rewards/accuracies": (ahead_S.detach() > 0).float().sum(),
    }
    return Terms(loss, metrics, {"kl/mismatched": of_step.kl, "z0": of_step.z0})


def over(all_examples: float, some: float) -> float:
    """all / some; NaN, which is logged as no number, where a step has none of these."""
    return all_examples / some if some else float("nan")
