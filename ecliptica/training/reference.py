"""Which model training starts from, and which frozen reference a run has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ecliptica.policy import adapter_off_reference, model_reference
from ecliptica.recipe import Config
from ecliptica.training import cache
from ecliptica.training.distributed import ALONE, Ranks, mesh, shard
from ecliptica.training.export import check_stands_by_itself
from model.llama import Llama
from model.lora import adapter_rows, add_lora, draw_lora
from model.tensors import read_tensor
from model.weights import EMBEDDING, HEAD, Edit, fill, meta_model

# reference(batch) -> (hidden states [T, D], LM head [V, D]): see ecliptica/policy.py
Reference = Callable[[Any], tuple[torch.Tensor, torch.Tensor]]


def starting_model(
    config: Config, device: str, ranks: Ranks = ALONE, trained: bool = False
) -> Llama:
    """model.path with model.adapter merged in if there is one.

    On one device, or sharded over the ranks, each reading what it keeps. trained: with LoRA added,
    or with every parameter trained and stored in float32. Otherwise frozen.
    """
    lora, options = config.lora, config.training
    with_lora = trained and bool(lora.rank)
    full = trained and not lora.rank
    dtype = getattr(torch, config.model.dtype)
    stored = torch.float32 if full else dtype

    # Shapes and names first, so that nothing is stored before it is known what of it is kept.
    model = ranks.together(meta_model, config.model.path, dtype)
    if with_lora:
        ranks.together(add_lora, model, lora.rank, lora.alpha, lora.targets, lora.dropout)
    elif full:
        model.requires_grad_(True)
    for block in model.model.layers:
        block.recompute = options.activation_checkpointing if trained else "off"
        if options.compile:
            block.compile()
    if ranks.world > 1:
        frozen_as_stored(model, stored)
        sharding = mesh(ranks, options.replicas, device)
        shard(model, sharding, dtype if full else None).to_empty(device=device)

    # Then the values, the adapter of an earlier run merged in while they are read.
    merged = ranks.together(starting_edit, config)
    ranks.together(fill, model, config.model.path, device, stored, merged)
    if with_lora:
        draw_lora(model, config.training.seed)
    return model


def starting_edit(config: Config) -> Edit | None:
    """The edit that merges model.adapter; None if the run starts from the model alone."""
    if not config.model.adapter:
        return None
    check_stands_by_itself(config.model.adapter)
    return adapter_rows(config.model.path, config.model.adapter)


def frozen_as_stored(model: Llama, dtype: torch.dtype) -> None:
    """Give the meta parameters the dtype they are stored in, LoRA's own excepted.

    A shard is allocated before it is read.
    """
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(dtype)


def kind(config: Config, steps_per_epoch: int, steps: int, cache_bytes: int) -> str:
    """training.reference with "auto" resolved.

    The cache if there is more than one epoch and it fits its budget.
    """
    options = config.training
    if options.reference != "auto":
        return options.reference
    if steps > steps_per_epoch and cache_bytes <= options.cache_budget_gib * 2**30:
        return "cache"
    return "adapter-off" if config.lora.rank else "model"


def build(
    config: Config,
    model: Llama,
    device: str,
    ranks: Ranks,
    batches: Any,
    held_out: list[Any],
    say: Callable[[str], None],
    pause: Callable[[], None] = lambda: None,
) -> Reference:
    """The reference function of policy.score.

    Adapters off, a second copy of the starting model, or hidden states on disk. pause(): called by
    all ranks between two parts of the cache; it may raise.
    """
    examples = cache.unique([*batches.used(), *held_out])
    _, cache_bytes = cache.size(examples, model.config.hidden_size, model.dtype)
    chosen = kind(config, batches.per_epoch, batches.steps, cache_bytes)
    if chosen == "adapter-off":
        return adapter_off_reference(model)
    if chosen == "model":
        return model_reference(starting_model(config, device, ranks))

    directories = [config.model.path, *filter(None, [config.model.adapter])]
    key = cache.cache_key(cache.weights_digest(directories, ranks), model.dtype, examples)
    where = config.training.cache_dir or Path(config.run.dir) / "cache"
    path, parts = cache.build(
        model, examples, where, key, config.training.micro_preferences, device, ranks, say, pause
    )
    return cache.Cache(path, parts, _frozen_head(config, model, device))


def _frozen_head(config: Config, model: Llama, device: str) -> torch.Tensor | None:
    """The LM head [V, D] that cached states are multiplied by; None: the policy's, frozen."""
    if config.lora.rank:
        return None
    name = EMBEDDING if model.config.tie_word_embeddings else HEAD
    return read_tensor(config.model.path, name).to(device, model.dtype)
