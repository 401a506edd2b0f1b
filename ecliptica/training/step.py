"""One optimizer step, top to bottom: forward, loss, backward, clip, update, metrics."""

import math
import time

import torch
from torch.distributed.tensor import DTensor

from ecliptica.policy import score
from ecliptica.training.distributed import ALONE


def forward(model, reference, objective, config, batch, kl_weight, grad=True):
    """Terms of one packed batch: sums over its preferences. KL is measured wherever there is a reference, in the loss or not."""
    stats = score(model, batch, reference, getattr(config, "kl", "exact"), grad)
    terms = objective.loss(stats, config, kl_weight)
    if "kl" not in terms.metrics and stats.kl_S is not None:
        terms.metrics.update(terms.kl(stats, config).metrics)
    return terms


def totals(parts, batches, ranks):
    """{name: sum over the batches of all ranks / preferences}. A filler batch, which has no ids, counts for nothing."""
    names = sorted(parts[0])
    sums = [
        sum(float(part[name]) for part, batch in zip(parts, batches) if batch.ids) for name in names
    ]
    *sums, count = ranks.reduce([*sums, sum(len(batch.ids) for batch in batches)])
    return {name: total / count for name, total in zip(names, sums)}


def optimizer_step(
    model,
    reference,
    objective,
    config,
    batches,
    kl_weight,
    optimizer,
    clip_norm,
    check=None,
    ranks=ALONE,
):
    """Update the trained parameters from this rank's micro-batches; return the step's metrics over all ranks, as floats.

    Every preference weighs the same whatever batch or rank it lands in: sums are divided by the step's count, known before the
    first backward. check(metrics): called before the update, may raise. Raises InputError, on every rank, if the loss or the
    gradient is not finite.
    """
    start = time.perf_counter()
    count, tokens = ranks.reduce(
        [sum(len(b.ids) for b in batches), sum(b.tokens_T.numel() for b in batches if b.ids)]
    )
    parts = []
    for batch in batches:
        terms = forward(model, reference, objective, config, batch, kl_weight)
        share = (
            ranks.world / count if batch.ids else 0.0
        )  # times world: FSDP takes the mean over ranks, a step is the sum
        (terms.loss * share).backward()
        parts.append(terms.metrics)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(trained, clip_norm)
    metrics = totals(parts, batches, ranks) | {
        "grad_norm": float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    }
    if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])):
        raise ranks.agreed(not_finite(metrics, parts, batches, ranks))
    if check:
        check(metrics)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - start
    return metrics | {
        "tokens_per_second": tokens / seconds,
        "preferences_per_second": count / seconds,
        "step_seconds": seconds,
    }


def not_finite(metrics, parts, batches, ranks):
    """One line: what is not finite, on which rank, in which preferences (all of the step's, if only the gradient is not)."""
    bad = [batch for part, batch in zip(parts, batches) if not math.isfinite(float(part["loss"]))]
    found = ranks.gather([name for batch in bad for name in batch.ids])
    if not any(found):
        found = ranks.gather([name for batch in batches for name in batch.ids])
    where = [
        (f"rank {rank}: " if ranks.world > 1 else "") + ", ".join(names)
        for rank, names in enumerate(found)
        if names
    ]
    return f"loss {metrics['loss']}, grad_norm {metrics['grad_norm']}: not finite, stopped before the update; preferences: {'; '.join(where)}"


def evaluate(model, reference, objective, config, batches, kl_weight, ranks=ALONE):
    """The same numbers on held-out preferences, no gradient."""
    parts = [
        forward(model, reference, objective, config, batch, kl_weight, grad=False).metrics
        for batch in batches
    ]
    return totals(parts, batches, ranks)
