"""One optimizer step, top to bottom: forward, loss, backward, clip, update, metrics."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from ecliptica.objectives import kl
from ecliptica.objectives.contract import Size, Step, Terms, WholeStep
from ecliptica.policy import Reference, response_rows, reward_rows
from ecliptica.running.ranks import ALONE, Ranks
from ecliptica.running.sharding import settle
from ecliptica.schema import PackedBatch, Rows
from model.llama import Llama


@dataclass(frozen=True)
class Learner:
    """What a step works on: the policy, what it is held to, and what moves it."""

    policy: Llama
    reference: Reference | None
    objective: ModuleType  # ecliptica/objectives
    settings: Any  # the section `objective`
    optimizer: torch.optim.Optimizer
    clip_norm: float
    critic: str | None = None  # the name of its adapter; None: nobody asks for values
    temperature: float = 1.0  # of every log-prob

    def rows(self, batch: PackedBatch, grad: bool = True) -> Rows:
        """Log-prob and KL of each response token of a packed batch."""
        if self.objective.needs(self.settings).rewards:
            return reward_rows(self.policy, batch, grad=grad)
        return response_rows(
            self.policy, batch, self.reference, grad, self.critic, self.temperature
        )

    def terms(self, batch: PackedBatch, step: Step, grad: bool = True) -> Terms:
        """Loss and numbers of a packed batch: sums over its preferences.

        The KL is among them wherever there is a reference, whether the loss has it or not.
        """
        rows = self.rows(batch, grad)
        terms = kl.observed(self.objective.loss(rows, self.settings, step), rows, self.settings)
        return replace(terms, metrics=terms.metrics | {"loss": terms.loss.detach()})


def optimizer_step(
    learner: Learner,
    batches: Sequence[PackedBatch],
    step: Step,
    ranks: Ranks = ALONE,
    check: Callable[[dict[str, float]], None] | None = None,
) -> dict[str, float]:
    """Update the trained parameters from this rank's micro-batches; the step's metrics, all ranks.

    Every preference weighs the same whatever batch or rank it lands in: sums are divided by the
    step's count. check(metrics): called before the update, may raise. Raises InputError, on every
    rank, if the loss or the gradient is not finite.
    """
    start = time.perf_counter()

    # What the step holds over all ranks: known before its first backward.
    size, tokens = size_of(batches, ranks)
    preferences = size.preferences
    step = replace(step, size=size, baseline=baseline(learner, batches, step, ranks))

    # Forward, loss and backward, a micro-batch at a time. Times world: FSDP takes the mean over
    # ranks, a step is the sum. A filler's forward and backward are for the others' collectives.
    parts = []
    for batch in batches:
        terms = learner.terms(batch, step)
        share = ranks.world / preferences if batch.ids else 0.0
        (terms.loss * share).backward()
        parts.append(replace(terms, loss=terms.loss.detach()))

    # Nothing that is not finite gets into the parameters.
    trained = [p for group in learner.optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(trained, learner.clip_norm)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    metrics = totals(parts, batches, ranks) | {"grad_norm": float(norm)}
    if not all(math.isfinite(metrics[name]) for name in ("loss", "grad_norm")):
        raise ranks.agreed(not_finite(metrics, parts, batches, ranks))
    if check:
        check(metrics)

    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - start
    return metrics | {
        "tokens_per_second": tokens / seconds,
        "preferences_per_second": preferences / seconds,
        "step_seconds": seconds,
    }


def size_of(batches: Sequence[PackedBatch], ranks: Ranks) -> tuple[Size, int]:
    """(what all ranks' batches hold, their tokens with those of the prompts); fillers count for
    nothing."""
    counted = [batch for batch in batches if batch.ids]
    here = [
        sum(len(batch.ids) for batch in counted),
        sum(batch.num_sequences for batch in counted),
        sum(batch.rows_R.numel() for batch in counted),
        sum(batch.tokens_T.numel() for batch in counted),
    ]
    preferences, sequences, response_tokens, tokens = map(int, ranks.reduce(here))
    return Size(preferences, sequences, response_tokens), tokens


def evaluate(
    learner: Learner, batches: Sequence[PackedBatch], step: Step, ranks: Ranks = ALONE
) -> dict[str, float]:
    """The same numbers on held-out preferences: no gradient, and nothing dropped out."""
    with as_evaluated(learner.policy):
        size, _ = size_of(batches, ranks)
        step = replace(step, size=size, baseline=baseline(learner, batches, step, ranks))
        parts = [learner.terms(batch, step, grad=False) for batch in batches]
    return totals(parts, batches, ranks)


def baseline(
    learner: Learner, batches: Sequence[PackedBatch], step: Step, ranks: Ranks = ALONE
) -> Any:
    """What the objective wants to know of the whole step before any loss of it; None if it has no
    such wish."""
    of_step = getattr(learner.objective, "baseline", None)
    if of_step is None:
        return None
    with as_evaluated(learner.policy):
        return of_step(
            WholeStep(
                number=step.number,
                steps=step.steps,
                config=learner.settings,
                batches=batches,
                rows=lambda batch: learner.rows(batch, grad=False),
                sums=ranks.reduce,
            )
        )


@contextmanager
def as_evaluated(model: Llama) -> Iterator[None]:
    """Inside the block the model is what it is outside of training: nothing is dropped out."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)
        settle(model)


def totals(
    parts: Sequence[Terms], batches: Sequence[PackedBatch], ranks: Ranks
) -> dict[str, float]:
    """{name: mean over the preferences of all ranks}, the largest over all ranks of what is logged
    so, and the plain values.

    A filler batch, which has no ids, counts for nothing.
    """
    counted = [part for part, batch in zip(parts, batches) if batch.ids]
    names = sorted(parts[0].metrics)
    here = [sum(float(part.metrics[name]) for part in counted) for name in names]
    *sums, preferences = ranks.reduce([*here, sum(len(batch.ids) for batch in batches)])
    means = {name: total / preferences for name, total in zip(names, sums)}
    return means | largest(parts, batches, ranks) | parts[0].values


def largest(
    parts: Sequence[Terms], batches: Sequence[PackedBatch], ranks: Ranks
) -> dict[str, float]:
    """{name: the largest over the batches of all ranks}; one collective if there are such names."""
    names = sorted(parts[0].largest)
    if not names:
        return {}
    counted = [part for part, batch in zip(parts, batches) if batch.ids]
    here = [
        max((float(part.largest[name]) for part in counted), default=-math.inf) for name in names
    ]
    return dict(zip(names, ranks.reduce(here, "max")))


def of_updates(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    """The metrics of a step from those of its updates: their mean, the largest of what is a
    largest, the sum of the seconds. One update's are its own, bit for bit."""
    if len(metrics) == 1:
        return metrics[0]
    joined = {}
    for name in metrics[0]:
        values = [of_update[name] for of_update in metrics]
        if name.endswith("_seconds"):
            joined[name] = sum(values)
        elif name.endswith("_max"):
            joined[name] = max(values)
        else:
            joined[name] = sum(values) / len(values)
    return joined


def not_finite(
    metrics: dict[str, float],
    parts: Sequence[Terms],
    batches: Sequence[PackedBatch],
    ranks: Ranks,
) -> str:
    """One line: what is not finite, on which rank, in which preferences (all of the step's, if only
    the gradient is not)."""
    bad = [batch for part, batch in zip(parts, batches) if not math.isfinite(float(part.loss))]
    names = ranks.gather([name for batch in bad for name in batch.ids])
    if not any(names):
        names = ranks.gather([name for batch in batches for name in batch.ids])
    places = []
    for rank, here in enumerate(names):
        who = f"rank {rank}: " if ranks.world > 1 else ""
        if here:
            places.append(who + ", ".join(here))
    return (
        f"loss {metrics['loss']}, grad_norm {metrics['grad_norm']}: not finite, "
        f"stopped before the update; preferences: {'; '.join(places)}"
    )
