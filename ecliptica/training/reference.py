"""Which model training starts from, and which frozen reference a run has."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ecliptica.planning.reference_cost import cache_size, reference_kind, unique
from ecliptica.policy import Reference, adapter_off_reference, model_reference
from ecliptica.running.ranks import ALONE
from ecliptica.running.sharding import mesh, shard
from ecliptica.schema import Encoded
from ecliptica.training.reference_cache import Maker, ReferenceCache, cache_key, weights_digest
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


def build(config: Any, maker: Maker, source: Any, held_out: Sequence[Encoded]) -> Reference:
    """The reference of policy.response_rows: adapters off, a second copy of the starting model, or
    hidden states on disk.

    maker: of the cache; its model is the policy. source: of the batches. Collective.
    """
    model, device = maker.model, maker.device
    examples = unique([*source.used(), *held_out])
    _, cache_bytes = cache_size(examples, model.config.hidden_size, model.dtype)
    kind = reference_kind(config, source.passes, cache_bytes)
    if kind == "adapter-off":
        return adapter_off_reference(model)
    if kind == "model":
        return model_reference(starting_model(config, device, maker.ranks))

    # The cache is known by the weights' digest, so another start finds it and another model never.
    directories = [config.model.path, *filter(None, [config.model.adapter])]
    key = cache_key(weights_digest(directories, maker.ranks), model.dtype, examples)
    where = config.training.cache_dir or Path(config.run.dir) / "cache"
    path, parts = maker.build(examples, where, key)

    # LoRA leaves the head alone; full fine-tuning trains it, so the reference needs its own.
    head_VD = None
    if not config.lora.rank:
        name = "model.embed_tokens.weight" if model.config.tie_word_embeddings else "lm_head.weight"
        head_VD = read_tensor(config.model.path, name).to(device, model.dtype)
    return ReferenceCache(path, parts, head_VD)
