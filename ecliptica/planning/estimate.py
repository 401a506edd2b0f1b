"""Bytes and seconds of one configuration: what each GPU holds, what a step computes and sends."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ecliptica import objectives
from ecliptica.arithmetic import ceil_div
from ecliptica.planning import memory
from ecliptica.planning.gpus import Gpu, step_flops
from ecliptica.planning.reference_cost import cache_size, reference_kind, unique
from ecliptica.planning.workload import Workload, different_preferences
from ecliptica.recipe import Config
from model.config import LlamaConfig

GIB = 2**30
MOMENTS = 8  # bytes a trained parameter: two float32 of AdamW
# GiB that a CUDA context, cuBLAS and NCCL take beside the tensors: an assumption.
CONTEXT = 1.5
# Of the activations: what a CPU process holds beyond live tensors, lost between the blocks of
# glibc's heap; measured (docs/distributed.md).
SLACK = 0.2
# Of the memory that tensors may fill: what remains is lost between the allocator's blocks.
FILL = 0.92
# Of a forward: what activation checkpointing makes again.
RECOMPUTED = {"off": 0.0, "selective": 0.1, "full": 1.0}
ACTIVATIONS = "activations and the head's workspace"


@dataclass(frozen=True)
class Estimate:
    """What a configuration needs."""

    items: dict[str, float]  # {what: bytes}, per GPU
    memory: float | None  # bytes that tensors may fill on one; None for a CPU
    seconds: float | None  # per step: products; None for a CPU
    communication: float | None  # seconds per step
    sent: float  # bytes per GPU and step
    disk: dict[str, float]  # {what: bytes}

    @property
    def total(self) -> float:
        return sum(self.items.values())

    @property
    def fits(self) -> bool:
        return self.memory is None or self.total <= self.memory


@dataclass(frozen=True)
class Sizes:
    """What the numbers below are made of."""

    full: bool  # every parameter trained, or LoRA's alone
    frozen: int  # parameters of the base
    trained: int
    lora: int
    block: int  # parameters of one block, of its LoRA layers, and of norm and head
    lora_block: int
    root: int
    width: int  # bytes of a parameter as it is computed with
    shards: int
    micro_batches: int  # of a step and rank
    reference: str  # "none", "adapter-off", "cache", "model"
    cache: int  # bytes of the reference's cache, made or not

    @property
    def gradients_live_beside(self) -> bool:
        """Whether a gradient is kept over micro-batches or handed on, rather than being one of the
        backward's own tensors."""
        return self.micro_batches > 1 or self.shards > 1

    @property
    def gathered_bytes(self) -> int:
        """All parameters, as they are gathered."""
        return self.frozen * self.width + self.lora * 4

    @property
    def block_bytes(self) -> int:
        return self.block * self.width + self.lora_block * 4


def estimate(
    config: Config,
    gpu: Gpu | None,
    shape: LlamaConfig,
    work: Workload,
    activations: float | None = None,
) -> Estimate:
    """The needs of one configuration; gpu None: a CPU. activations: in bytes, if they are known."""
    sizes = _sizes(config, shape, work)
    if activations is None:
        activations = memory.peak(
            shape,
            config,
            work.examples,
            sizes.reference,
            cpu=gpu is None,
            keep_gradients=not sizes.gradients_live_beside,
            sharded=sizes.shards > 1,
        )
    items = _held(sizes) | _working(sizes, gpu, activations)
    gather_and_scatter, across_replicas = _sent(config, sizes)
    seconds = communication = None
    if gpu:
        seconds = _compute_seconds(config, gpu, shape, work, sizes)
        communication = _send_seconds(config, gpu, sizes, gather_and_scatter, across_replicas)
    return Estimate(
        items=items,
        memory=FILL * gpu.memory_gib * GIB if gpu else None,
        seconds=seconds,
        communication=communication,
        sent=gather_and_scatter + across_replicas,
        disk=_disk(sizes),
    )


def _sizes(config: Config, shape: LlamaConfig, work: Workload) -> Sizes:
    options = config.training
    n = memory.counts(shape, config)
    full = not config.lora.rank
    frozen = n["block"] * shape.num_hidden_layers + n["root"] + n["embedding"]
    per_rank = ceil_div(options.batch_preferences, config.plan.gpus)
    reference, cache = _reference(config, shape, work)
    return Sizes(
        full=full,
        frozen=frozen,
        trained=frozen if full else n["lora"],
        lora=n["lora"],
        block=n["block"],
        lora_block=n["lora_block"],
        root=n["root"],
        width=getattr(torch, config.model.dtype).itemsize,
        shards=config.plan.gpus // options.replicas,
        micro_batches=ceil_div(per_rank, options.micro_preferences),
        reference=reference,
        cache=cache,
    )


def _reference(config: Config, shape: LlamaConfig, work: Workload) -> tuple[str, int]:
    """(the kind of reference that the run has, bytes of its cache, made or not)."""
    if not objectives.get(config.objective).needs(config.objective).frozen_model:
        return "none", 0
    dtype, width = getattr(torch, config.model.dtype), shape.hidden_size
    if work.source:
        _, cache = cache_size(unique([*work.source.used(), *work.held_out]), width, dtype)
        passes = work.source.passes
    else:
        _, each = cache_size(work.examples[:1], width, dtype)
        cache = each * different_preferences(config.training, work.steps)
        passes = 1
    return reference_kind(config, passes, cache), cache


def _held(sizes: Sizes) -> dict[str, float]:
    """What stays from step to step."""
    if sizes.full:
        stored = sizes.frozen * 4
    else:
        stored = sizes.frozen * sizes.width + sizes.lora * 4
    shards = sizes.shards
    parameters = f"parameters, 1/{shards}" if shards > 1 else "parameters"
    items = {
        parameters: stored / shards,
        "optimizer (two float32 moments)": MOMENTS * sizes.trained / shards,
    }
    if sizes.gradients_live_beside:
        items["gradients (float32)"] = 4 * sizes.trained / shards
    if sizes.reference == "model":
        items["reference, a second model"] = sizes.frozen * sizes.width / shards
    if sizes.reference == "cache" and sizes.full:
        items["reference's head"] = sizes.root * sizes.width
    return items


def _working(sizes: Sizes, gpu: Gpu | None, activations: float) -> dict[str, float]:
    """What comes and goes within a step, at its highest."""
    items = {}
    if sizes.shards > 1:
        models = 2 if sizes.reference == "model" else 1
        root = sizes.root * sizes.width * models
        items["gathered: norm and head, three blocks"] = root + 3 * sizes.block_bytes
        scattered = sizes.block if sizes.full else sizes.lora_block
        items["reduce-scatter of a block (float32)"] = 4 * scattered
    if gpu:
        items[ACTIVATIONS] = activations
        items["CUDA context (assumed)"] = CONTEXT * GIB
        return items

    # On a CPU the gradients are among the activations, and AdamW makes two temporaries of the
    # largest tensor; fused on CUDA.
    gradients = 0 if sizes.gradients_live_beside else 4 * sizes.trained
    temporaries = 8 * sizes.root if sizes.full else 0
    items[ACTIVATIONS] = max(activations, gradients + temporaries)
    items["lost between the allocator's blocks (measured)"] = SLACK * items[ACTIVATIONS]
    items["interpreter and libraries, as now"] = resident()
    return items


def _disk(sizes: Sizes) -> dict[str, float]:
    disk = {"checkpoint (x training.keep_checkpoints)": 12 * sizes.trained}
    if sizes.cache:
        name = "reference cache"
        if sizes.reference != "cache":
            name += f" (training.reference=cache; now {sizes.reference})"
        disk[name] = sizes.cache
    return disk


def _sent(config: Config, sizes: Sizes) -> tuple[float, float]:
    """Bytes that a GPU sends and receives in a step: (gathering parameters and scattering
    gradients over the shards, all-reducing a shard's gradient over the replicas)."""
    forwards = 2 if sizes.reference in ("adapter-off", "model") else 1
    once = (forwards + 1) * sizes.gathered_bytes + 4 * sizes.trained
    shards, replicas = sizes.shards, config.training.replicas
    over_shards = sizes.micro_batches * (shards - 1) / shards * once
    reduced = 4 * sizes.trained / shards
    over_replicas = sizes.micro_batches * 2 * (replicas - 1) / replicas * reduced
    return over_shards, over_replicas


def _compute_seconds(
    config: Config, gpu: Gpu, shape: LlamaConfig, work: Workload, sizes: Sizes
) -> float:
    reference = 1 if sizes.reference in ("adapter-off", "model") else 0
    again = RECOMPUTED[config.training.activation_checkpointing]
    flops = step_flops(shape, work.tokens, work.rows, sizes.full, reference + again)
    return sizes.micro_batches * flops / (config.plan.mfu * gpu.flops)


def _send_seconds(
    config: Config, gpu: Gpu, sizes: Sizes, over_shards: float, over_replicas: float
) -> float:
    """Within a machine over its links, otherwise over the network."""
    plan = config.plan
    shard_speed = gpu.link if sizes.shards <= plan.gpus_per_node else gpu.network
    replica_speed = gpu.link if plan.gpus <= plan.gpus_per_node else gpu.network
    return over_shards / shard_speed + over_replicas / replica_speed


def resident() -> int:
    """Resident bytes of this process, which has loaded what a training process loads."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 if status.exists() else 0
