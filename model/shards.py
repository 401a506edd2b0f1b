"""Parameters that may be sharded: rows that a rank keeps, giving them values, gathering them."""

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def kept_rows(parameter: torch.Tensor) -> tuple[int, int]:
    """(first, end) of the rows that this rank keeps of a parameter.

    All of a plain one, a chunk of dimension 0 of a DTensor.
    """
    rows = parameter.shape[0]
    if not isinstance(parameter, DTensor):
        return 0, rows
    sharded = [n for n, placement in enumerate(parameter.placements) if placement.is_shard()]
    if not sharded:
        return 0, rows
    (dimension,) = sharded
    mesh = parameter.device_mesh

    # As torch.chunk cuts: the last ranks may keep fewer rows, or none.
    ranks = mesh.size(dimension)
    chunk = (rows + ranks - 1) // ranks
    first = min(mesh.get_local_rank(dimension) * chunk, rows)
    return first, min(first + chunk, rows)


@torch.no_grad()
def assign(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Give the parameter `name` these values.

    Copied into the storage of a shard, a new Parameter otherwise.
    """
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    parameter = getattr(module, leaf)
    if isinstance(parameter, DTensor):
        parameter.to_local().copy_(tensor)
    else:
        setattr(module, leaf, nn.Parameter(tensor, requires_grad=parameter.requires_grad))


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """The full tensor of a parameter, detached.

    Itself, or gathered from every rank's shard (all ranks must call).
    """
    if isinstance(parameter, DTensor):
        return parameter.detach().full_tensor()
    return parameter.detach()
