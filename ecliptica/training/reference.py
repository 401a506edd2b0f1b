"""Which model training starts from, and which frozen reference a run has."""

from pathlib import Path

import torch

from ecliptica.policy import adapter_off_reference, model_reference
from ecliptica.training import cache
from ecliptica.training.distributed import ALONE, mesh, shard
from model.lora import adapter_rows, add_lora, draw_lora
from model.weights import fill, meta_model, read_tensor


def starting_model(config, device, ranks=ALONE, trained=False):
    """model.path with model.adapter merged in if there is one: on one device, or sharded over the ranks, each reading what it keeps.

    trained: with LoRA added, or with every parameter trained and stored in float32. Otherwise frozen.
    """
    lora, options = config.lora, config.training
    full = trained and not lora.rank
    dtype = getattr(torch, config.model.dtype)
    model = ranks.together(meta_model, config.model.path, dtype)
    stored = torch.float32 if full else dtype
    if trained and lora.rank:
        ranks.together(add_lora, model, lora.rank, lora.alpha, lora.targets, lora.dropout)
    elif full:
        model.requires_grad_(True)
    for block in model.model.layers:
        block.recompute = options.activation_checkpointing if trained else "off"
        if options.compile:
            block.compile()
    if ranks.world > 1:
        frozen_as_stored(model, stored)
        shard(model, mesh(ranks, options.replicas, device), dtype if full else None).to_empty(
            device=device
        )
    merged = (
        ranks.together(adapter_rows, config.model.path, config.model.adapter)
        if config.model.adapter
        else None
    )
    ranks.together(fill, model, config.model.path, device, stored, merged)
    if trained and lora.rank:
        draw_lora(model, config.training.seed)
    return model


def frozen_as_stored(model, dtype):
    """Give the meta parameters the dtype they are stored in, LoRA's own excepted: a shard is allocated before it is read."""
    for name, p in model.named_parameters():
        if "lora_" not in name:
            p.data = p.data.to(dtype)


def kind(config, steps_per_epoch, steps, cache_bytes):
    """training.reference with "auto" resolved: the cache if there is more than one epoch and it fits its budget."""
    if config.training.reference != "auto":
        return config.training.reference
    if steps > steps_per_epoch and cache_bytes <= config.training.cache_budget_gib * 2**30:
        return "cache"
    return "adapter-off" if config.lora.rank else "model"


def build(config, model, device, ranks, batches, held_out, say, pause=lambda: None):
    """The reference function of policy.score: adapters off, a second copy of the starting model, or hidden states on disk.
    pause(): called by all ranks between two parts of the cache; it may raise."""
    examples = cache.unique([*batches.used(), *held_out])
    chosen = kind(
        config,
        batches.per_epoch,
        batches.steps,
        cache.size(examples, model.config.hidden_size, model.dtype)[1],
    )
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
    head_VD = None
    if not config.lora.rank:
        name = "model.embed_tokens.weight" if model.config.tie_word_embeddings else "lm_head.weight"
        head_VD = read_tensor(config.model.path, name).to(device, model.dtype)
    return cache.Cache(path, parts, head_VD)
