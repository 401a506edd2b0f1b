"""A head of one number: the value of a state (critic) or the reward of a response.

A head has the name of the adapter that it was trained with, and lies beside it in files. It is
float32 whatever the model computes in. Letters: D hidden width, N rows.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import nn

from model.errors import InputError
from model.llama import Llama
from model.lora_layer import POLICY
from model.shards import assign, kept_rows, whole
from model.tensors import check_finite, opened, write_tensors
from model.weights import is_added, save_tensors

FILE = "scalar_head.safetensors"
PREFIX = "scalar_head."  # of its pieces among others
PARAMETERS = ("weight", "bias")

Pieces = Iterator[tuple[str, torch.Tensor]]


class ScalarHead(nn.Module):
    """(h w + b - mean) / std. mean and std are 0 and 1 until they have been measured."""

    def __init__(self, width: int, device: torch.device | str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, device=device))
        self.bias = nn.Parameter(torch.zeros(1, device=device))
        self.mean = 0.0
        self.std = 1.0

    def forward(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """[N, D] -> [N], float32."""
        raw_N = hidden_ND.float() @ self.weight + self.bias
        return (raw_N - self.mean) / self.std


def add_scalar_head(model: Llama, name: str = POLICY, trained: bool = True) -> Llama:
    """A head of zeros, called as its adapter. Raises ValueError if there is one of this name."""
    if name in model.scalar_heads:
        raise ValueError(f"this model has a scalar head {name!r} already")
    head = ScalarHead(model.config.hidden_size, model.head_weight_VD.device)
    model.scalar_heads[name] = head.requires_grad_(trained)
    return model


def reward_deviation(width: int) -> float:
    """The standard deviation that a reward's head is drawn with."""
    return 1 / math.sqrt(width + 1)


def draw_scalar_head(
    model: Llama, name: str = POLICY, seed: int = 0, deviation: float = 0.0
) -> Llama:
    """The starting values of a head: N(0, deviation) for the weight, zero for the bias.

    A shard gets its part of the same draw.
    """
    head = model.scalar_heads[name]
    generator = torch.Generator().manual_seed(seed)
    weight_D = deviation * torch.randn(model.config.hidden_size, generator=generator)
    device = model.head_weight_VD.device
    _assign(head, "weight", weight_D, device)
    _assign(head, "bias", torch.zeros(1), device)
    return model


def _assign(head: ScalarHead, name: str, tensor: torch.Tensor, device: torch.device) -> None:
    first, end = kept_rows(getattr(head, name))
    assign(head, name, tensor[first:end].to(device, torch.float32))


# Files


def has_scalar_head(directory: str | Path) -> bool:
    """Whether a model's or an adapter's directory holds a head."""
    return (Path(directory) / FILE).exists()


def head_pieces(model: Llama, name: str = POLICY) -> Pieces:
    """(name, whole tensor) of what a head is made of; nothing if there is no such head.

    Collective if the model is sharded: a tensor is gathered when it is asked for.
    """
    if name not in model.scalar_heads:
        return
    head = model.scalar_heads[name]
    for part in PARAMETERS:
        yield f"{PREFIX}{part}", whole(getattr(head, part))
    yield f"{PREFIX}mean", torch.tensor([head.mean], dtype=torch.float64)
    yield f"{PREFIX}std", torch.tensor([head.std], dtype=torch.float64)


def model_pieces(model: Llama, name: str = POLICY) -> Pieces:
    """(name, whole tensor) of a model without adapters, then of its head, if it has one.

    Collective if the model is sharded.
    """
    for parameter_of, parameter in model.named_parameters():
        if not is_added(parameter_of):
            yield parameter_of, whole(parameter)
    yield from head_pieces(model, name)


def write_of(pieces: Iterable[tuple[str, torch.Tensor]], directory: str | Path) -> Pieces:
    """The pieces that are no head's, as they come; then the head's are in scalar_head.safetensors:
    weight [D], bias [1] in float32; mean [1], std [1] in float64."""
    head = {}
    for name, tensor in pieces:
        if name.startswith(PREFIX):
            head[name.removeprefix(PREFIX)] = tensor.detach().cpu().contiguous()
        else:
            yield name, tensor
    if head:
        write_tensors(head, Path(directory) / FILE)


def save_whole(
    pieces: Iterable[tuple[str, torch.Tensor]],
    out_dir: str | Path,
    source_dir: str | Path,
    dtype: torch.dtype,
) -> None:
    """A whole model in Hugging Face layout (model/weights.py: save_tensors), and its head."""
    save_tensors(write_of(pieces, out_dir), out_dir, source_dir, dtype)


def load_scalar_head(
    model: Llama, directory: str | Path, name: str = POLICY, trained: bool = False
) -> Llama:
    """Add the head of a directory to a model, or fill the one of this name that it has.

    Raises InputError for a head that is not there, or of another width.
    """
    tensors = read_scalar_head(directory, model.config.hidden_size)
    if name not in model.scalar_heads:
        add_scalar_head(model, name, trained)
    head = model.scalar_heads[name]
    head.mean = float(tensors["mean"])
    head.std = float(tensors["std"])
    device = model.head_weight_VD.device
    if device.type == "meta":
        return model
    for part in PARAMETERS:
        _assign(head, part, tensors[part], device)
    return model


def read_scalar_head(directory: str | Path, width: int) -> dict[str, torch.Tensor]:
    """The tensors of a directory's head. Raises InputError for what does not fit."""
    path = Path(directory) / FILE
    if not path.exists():
        raise InputError(
            f"{directory}: no {FILE} in it, so it gives no reward or value; expected the export "
            "of a run with objective.name=reward"
        )
    shapes = {"weight": [width], "bias": [1], "mean": [1], "std": [1]}
    tensors = {}
    with opened(path) as file:
        for name, shape in shapes.items():
            if name not in file.keys():
                raise InputError(f"{path}: the tensor {name} is missing; copy the file again")
            tensor = file.get_tensor(name)
            if list(tensor.shape) != shape or not tensor.is_floating_point():
                raise InputError(
                    f"{path}: {name} is {tensor.dtype} of shape {list(tensor.shape)}; this model "
                    f"needs floats of shape {shape}"
                )
            check_finite(tensor, name, path)
            tensors[name] = tensor
    if float(tensors["std"]) <= 0:
        raise InputError(f"{path}: std is {float(tensors['std'])}; expected > 0")
    return tensors
