"""How the model is sharded over the ranks: FSDP2, or HSDP with several replicas."""

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from ecliptica.running.ranks import Ranks
from model.llama import Llama


def mesh(ranks: Ranks, replicas: int, device: torch.device | str) -> DeviceMesh:
    """replicas x (world / replicas): parameters are sharded along the second dimension and repeated
    along the first (HSDP)."""
    if ranks.world % replicas:
        raise ranks.agreed(
            f"training.replicas: {replicas} does not divide the {ranks.world} processes"
        )
    kind = torch.device(device).type
    if replicas == 1:
        return init_device_mesh(kind, (ranks.world,), mesh_dim_names=("shard",))
    shape = (replicas, ranks.world // replicas)
    return init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard"))


def shard(model: Llama, device_mesh: DeviceMesh, param_dtype: torch.dtype | None = None) -> Llama:
    """FSDP2 over a model on the meta device: a unit for each block, one for an untied embedding,
    one for each scalar head, always in float32, and the root: norm and head.

    The root stays gathered from its forward to the end of the backward, so the fused head reads a
    plain weight. param_dtype: what parameters are gathered in (None: as stored, which keeps LoRA's
    float32 beside a bfloat16 base); gradients are always reduced in float32.
    """
    policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32)
    units = [*model.model.layers]
    if not model.config.tie_word_embeddings:
        units.append(model.model.embed_tokens)
    for unit in units:
        fully_shard(unit, mesh=device_mesh, mp_policy=policy, reshard_after_forward=True)
    # A scalar head runs after the root's forward, by a call of its own.
    exact = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for head in model.scalar_heads.values():
        fully_shard(head, mesh=device_mesh, mp_policy=exact, reshard_after_forward=True)
    fully_shard(model, mesh=device_mesh, mp_policy=policy, reshard_after_forward=False)
    register_fsdp_forward_method(model, "forward_hidden")
    return model


def settle(model: torch.nn.Module) -> None:
    """After forwards without a backward: shard the root again, so that the model's parameters are
    the optimizer's."""
    if isinstance(model, FSDPModule):
        model.reshard()
