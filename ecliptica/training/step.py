"""One optimizer step, top to bottom: forward, loss, backward, clip, update, metrics."""

import math
import time

import torch

from ecliptica.objectives import _terms
from ecliptica.policy import score
from model.errors import InputError


def forward(model, reference, objective, config, batch, kl_weight, grad=True):
    """Terms of one packed batch: sums over its preferences. KL is measured wherever there is a reference, in the loss or not."""
    stats = score(model, batch, reference, config.kl, grad)
    terms = objective.loss(stats, config, kl_weight)
    if "kl" not in terms.metrics and stats.kl_S is not None:
        terms.metrics.update(_terms.kl(stats, config).metrics)
    return terms


def mean_metrics(parts, count):
    """{name: sum over the batches / number of preferences}."""
    return {name: float(sum(part[name] for part in parts)) / count for name in parts[0]}


def optimizer_step(model, reference, objective, config, batches, kl_weight, optimizer, clip_norm, check=None):
    """Update the trained parameters from all micro-batches; return the step's metrics as floats.

    Every preference weighs the same whatever batch it lands in: sums are divided by the step's count, known before the
    first backward. check(metrics): called before the update, may raise.
    """
    start = time.perf_counter()
    count = sum(len(batch.ids) for batch in batches)
    parts = []
    for batch in batches:
        terms = forward(model, reference, objective, config, batch, kl_weight)
        (terms.loss / count).backward()
        parts.append(terms.metrics)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    grad_norm = float(torch.nn.utils.clip_grad_norm_(trained, clip_norm))
    metrics = mean_metrics(parts, count) | {"grad_norm": grad_norm}
    if not (math.isfinite(metrics["loss"]) and math.isfinite(grad_norm)):
        ids = ", ".join(name for batch in batches for name in batch.ids)
        raise InputError(f"loss {metrics['loss']}, grad_norm {grad_norm}: not finite, stopped before the update; preferences: {ids}")
    if check:
        check(metrics)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - start
    tokens = sum(batch.tokens_T.numel() for batch in batches)
    return metrics | {"tokens_per_second": tokens / seconds, "preferences_per_second": count / seconds}


def evaluate(model, reference, objective, config, batches, kl_weight):
    """The same numbers on held-out preferences, no gradient."""
    parts = [forward(model, reference, objective, config, batch, kl_weight, grad=False).metrics for batch in batches]
    return mean_metrics(parts, sum(len(batch.ids) for batch in batches))
