"""The KL term, lambda KL[policy || reference]: its modes and its annealing, here and nowhere else.

exact      KL over the whole vocabulary, summed over every response position of Y+ and Y-
printed    sum_t pi(y_t) log(pi(y_t) / pi_0(y_t)), as the paper's section 1 prints it: no KL
logratio   log pi(Y) - log pi_0(Y), averaged over the two sequences, as the authors' trainer: no KL
none       no term, and nothing is logged
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ecliptica.config import choice, not_negative, option
from ecliptica.objectives.contract import Step, Terms
from ecliptica.schema import Rows


@dataclass(frozen=True)
class Mode:
    """One way to measure the distance to the reference."""

    per_token: Callable[[Rows], torch.Tensor] | None  # [R]; None: it is not measured
    share: float = 1.0  # of the sum over a preference's sequences
    ablation: bool = False  # it is no KL: every output of the run is stamped


def _exact(rows: Rows) -> torch.Tensor:
    return rows.kl_R


def _printed(rows: Rows) -> torch.Tensor:
    return rows.logp_R.exp() * (rows.logp_R - rows.ref_logp_R)


def _log_ratio(rows: Rows) -> torch.Tensor:
    return rows.logp_R - rows.ref_logp_R


MODES = {
    "exact": Mode(_exact),
    "printed": Mode(_printed, ablation=True),
    "logratio": Mode(_log_ratio, share=0.5, ablation=True),
    "none": Mode(None),
}


@dataclass(frozen=True)
class KLConfig:
    """The keys of the KL term, lambda KL[policy || reference]."""

    kl: str = choice("exact", tuple(MODES), "exact; the others are ablations")
    kl_weight_start: float = not_negative(0.01, "lambda at the first step; it anneals linearly")
    kl_weight_end: float = not_negative(0.1, "lambda at the last step")
    ablation: bool = option(False, "lifts cita's lambda > 0; stamped on every output")


def mode(config: Any) -> Mode:
    """How the objective's KL is measured; exactly, where it has no KL term of its own."""
    return MODES[config.kl if isinstance(config, KLConfig) else "exact"]


def is_on(config: KLConfig) -> bool:
    """Whether the loss has a KL term."""
    return mode(config).per_token is not None


def is_ablation(config: Any) -> bool:
    """Whether a run breaks the rule lambda > 0, or trains on what is no KL: its outputs are
    stamped, so that nobody takes its numbers for the method's.

    config: the section `objective`, whichever it is.
    """
    return getattr(config, "ablation", False) or mode(config).ablation


def weight(config: KLConfig, step: Step) -> float:
    """lambda: linear from kl_weight_start at the first step to kl_weight_end at the last.

    The paper: 0.01 to 0.1.
    """
    share = step.number / (step.steps - 1) if step.steps > 1 else 0.0
    return config.kl_weight_start + share * (config.kl_weight_end - config.kl_weight_start)


def total(rows: Rows, config: Any) -> torch.Tensor:
    """The sum over the batch's preferences, in nats, by the config's mode; of responses alone."""
    how = mode(config)
    kl_S = rows.per_sequence(how.per_token(rows))
    if rows.aside_S is not None:
        kl_S = kl_S[~rows.aside_S]
    return kl_S.sum() * how.share


def term(rows: Rows, config: KLConfig, step: Step) -> Terms:
    """lambda KL[policy || reference]; its metric is the KL without lambda. Nothing with "none"."""
    value = {"kl_weight": weight(config, step)}
    if not is_on(config):
        return Terms(rows.logp_R.new_zeros(()), {}, value)
    kl = total(rows, config)
    return Terms(value["kl_weight"] * kl, {"kl": kl.detach()}, value)


def observed(terms: Terms, rows: Rows, config: Any) -> Terms:
    """The terms of an objective, with the KL beside them wherever there is a reference.

    An objective without a KL term has the weight 0.
    """
    metrics = terms.metrics
    if "kl" not in metrics and rows.kl_R is not None and mode(config).per_token is not None:
        metrics = metrics | {"kl": total(rows, config).detach()}
    return replace(terms, metrics=metrics, values={"kl_weight": 0.0} | terms.values)
