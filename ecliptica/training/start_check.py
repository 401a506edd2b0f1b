"""Before the first update policy and reference are the same function. Anything else is a bug."""

from collections.abc import Sequence
from typing import Any

import torch

from ecliptica.schema import PackedBatch
from ecliptica.training.reference_cache import ReferenceCache
from ecliptica.training.step import Learner

NEAR = 1e-4  # float32 rounding
# Where half precision rounds differently: a cache was made in other packings, and a compiler joins
# the operations of a block one way with its adapters and another way without.
NEAR_KL_A_TOKEN = 0.01  # nats
NEAR_LOSS = 0.2


def start_check(
    metrics: dict[str, float], learner: Learner, config: Any, batches: Sequence[PackedBatch]
) -> None:
    """KL = 0, and the loss is the one that the objective has then (dpo: ln 2).

    metrics: of the step 0, on `batches`. config: the recipe. Raises RuntimeError. Dropout makes the
    policy another function, so nothing is compared with it.
    """
    if learner.reference is None or config.lora.dropout > 0:
        return
    near_kl, near_loss = NEAR, NEAR
    half = learner.policy.dtype != torch.float32
    if half and (config.training.compile or isinstance(learner.reference, ReferenceCache)):
        near_kl = NEAR_KL_A_TOKEN * max(batch.rows_R.numel() for batch in batches)
        near_loss = NEAR_LOSS
    kl = metrics.get("kl", 0.0)
    if abs(kl) > near_kl:
        raise RuntimeError(
            f"step 0: KL to the reference is {kl}, not 0: the reference is not the model that "
            "training starts from"
        )
    loss_at_start = getattr(learner.objective, "loss_at_start", lambda settings: None)
    want = loss_at_start(learner.settings)
    if want is not None and abs(metrics["loss"] - want) > near_loss * max(1.0, want):
        raise RuntimeError(
            f"step 0: the loss of {learner.settings.name} is {metrics['loss']}, not {want:.6f}, "
            "as it has to be while policy and reference are the same"
        )
