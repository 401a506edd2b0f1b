"""Which model training starts from, and which frozen reference a run has."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ecliptica import objectives
from ecliptica.planning.reference_cost import cache_size, reference_kind, unique
from ecliptica.policy import CRITIC, Reference, adapter_off_reference, model_reference
from ecliptica.recipe import Config
from ecliptica.rewards.model import REWARD, check_reward, is_adapter
from ecliptica.running.ranks import ALONE, Ranks
from ecliptica.running.sharding import mesh, shard
from ecliptica.schema import Encoded
from ecliptica.training.export import check_stands_by_itself
from ecliptica.training.reference_cache import Maker, ReferenceCache, cache_key, weights_digest
from model.llama import Llama
from model.lora import adapter_rows, add_lora, draw_lora, fill_adapter, load_adapter
from model.lora_layer import POLICY
from model.scalar_head import add_scalar_head, draw_scalar_head, reward_deviation
from model.tensors import read_tensor
from model.weights import EMBEDDING, HEAD, Edit, fill, is_added, meta_model


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
        ranks.together(add_adapters, model, config)
    elif full:
        model.requires_grad_(True)
    with_head = trained and objectives.get(config.objective).needs(config.objective).rewards
    if with_head:
        add_scalar_head(model)
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
        draw_adapters(model, config)
    if with_head:
        deviation = reward_deviation(model.config.hidden_size)
        draw_scalar_head(model, POLICY, config.training.seed, deviation)
    return model


def adapters_of(config: Config) -> tuple[str, ...]:
    """The names of the adapters that a LoRA run trains: a critic's beside the policy's, if its
    objective needs values."""
    needs = objectives.get(config.objective).needs(config.objective)
    return (POLICY, CRITIC) if needs.values else (POLICY,)


def judge_of(config: Config) -> str | None:
    """The directory of the reward model's adapter, if it judges the responses of the run."""
    online = objectives.learns_from_rollouts(config.objective)
    if not online or config.reward.name != "model" or not is_adapter(config.reward.path):
        return None
    return config.reward.path


def add_adapters(model: Llama, config: Config) -> None:
    """Every adapter that the run trains, of one rank and on the same layers; a critic's with its
    scalar head."""
    lora = config.lora
    for name in adapters_of(config):
        add_lora(model, lora.rank, lora.alpha, lora.targets, lora.dropout, name=name)
    if CRITIC in adapters_of(config):
        add_scalar_head(model, CRITIC)
    if judge := judge_of(config):
        check_reward(judge, "none", config.model.path)
        load_adapter(model, judge, REWARD, trained=False)


def draw_adapters(model: Llama, config: Config) -> None:
    """The start of each: no update of the base, and every value 0."""
    for name in adapters_of(config):
        draw_lora(model, config.training.seed, name)
    if CRITIC in adapters_of(config):
        draw_scalar_head(model, CRITIC)
    if judge := judge_of(config):
        fill_adapter(model, judge, REWARD)


def starting_edit(config: Config) -> Edit | None:
    """The edit that merges model.adapter; None if the run starts from the model alone."""
    if not config.model.adapter:
        return None
    check_stands_by_itself(config.model.adapter)
    return adapter_rows(config.model.path, config.model.adapter)


def frozen_as_stored(model: Llama, dtype: torch.dtype) -> None:
    """Give the meta parameters the dtype they are stored in; what is added stays float32.

    A shard is allocated before it is read.
    """
    for name, parameter in model.named_parameters():
        if not is_added(name):
            parameter.data = parameter.data.to(dtype)


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

    return ReferenceCache(path, parts, _frozen_head(config, model, device))


def _frozen_head(config: Config, model: Llama, device: str) -> torch.Tensor | None:
    """The LM head [V, D] that cached states are multiplied by; None: the policy's, frozen."""
    if config.lora.rank:
        return None
    name = EMBEDDING if model.config.tie_word_embeddings else HEAD
    return read_tensor(config.model.path, name).to(device, model.dtype)
