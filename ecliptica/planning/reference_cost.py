"""Which reference a run has, and what its cache costs on disk."""

from collections.abc import Sequence
from typing import Any

import torch

from ecliptica import objectives
from ecliptica.schema import Encoded
from model.errors import InputError

LSE_BYTES = 4  # one float32 a row


def unique(examples: Sequence[Encoded]) -> list[Encoded]:
    """Each example once, in order: equal token ids have equal hidden states."""
    return list({example.key: example for example in examples}.values())


def cache_size(examples: Sequence[Encoded], width: int, dtype: torch.dtype) -> tuple[int, int]:
    """(rows, bytes) of the reference cache of these examples: a hidden state and an lse a row."""
    rows = sum(example.hidden_rows for example in examples)
    return rows, rows * (width * dtype.itemsize + LSE_BYTES)


def reference_kind(config: Any, passes: int, cache_bytes: int) -> str:
    """training.reference with "auto" resolved: the cache if the run comes back to its examples and
    they fit the budget.

    config: the recipe. Returns "adapter-off", "cache" or "model". Raises InputError for a cache
    of pairs that are other ones in every epoch.
    """
    frozen = "adapter-off" if config.lora.rank else "model"
    needs = objectives.get(config.objective).needs(config.objective)
    if needs.labelled:
        if config.training.reference == "cache":
            raise InputError(
                f"training.reference: {config.objective.name} pairs responses anew in every epoch, "
                f"which no cache has; use training.reference={frozen}"
            )
        passes = 1
    if config.training.reference != "auto":
        return config.training.reference
    if passes > 1 and cache_bytes <= config.training.cache_budget_gib * 2**30:
        return "cache"
    return frozen
