"""LoRA by hand: y = W x + (alpha / r) B A x, A and B float32, W frozen. PEFT's files, both ways.

Letters: D inputs of a layer, F its outputs, R the rank; A is [R, D], B is [F, R].
"""

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from model.adapter_config import FILE
from model.adapters import PREFIX, SIDES, WEIGHTS, Adapter, Pair, joined, linear_layers
from model.errors import InputError
from model.llama import Linear, Llama
from model.shards import assign, kept_rows
from model.tensors import write_tensors
from model.weights import Edit, meta_model

# Keys that PEFT writes and that say "plain LoRA on all layers of these names".
PLAIN = {
    "use_dora": False,
    "use_rslora": False,
    "bias": "none",
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layers_to_transform": None,
}


class LoRALinear(nn.Module):
    """A frozen Linear and its low-rank update. Not `enabled`, it is the base layer, bit for bit."""

    def __init__(self, base: Linear, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        device = base.weight.device
        outputs, inputs = base.weight.shape
        self.base = base
        self.rank = rank
        self.alpha = alpha
        self.scale = alpha / rank
        self.dropout = dropout
        # float32: an AdamW step of lr 1e-5 on a bfloat16 weight of size 0.1 is rounded away
        self.lora_A = nn.Parameter(torch.empty(rank, inputs, device=device))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank, device=device))
        self.enabled = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., F]."""
        if not self.enabled:
            return self.base(x)
        if self._merges(x):
            scaled_B = self.scale * self.lora_B
            return _MergedProduct.apply(x, self.base.weight, self.base.bias, self.lora_A, scaled_B)
        low = F.linear(F.dropout(x, self.dropout, self.training), self.lora_A.to(x.dtype))
        return self.base(x) + F.linear(low, (self.scale * self.lora_B).to(x.dtype))

    def _merges(self, x: torch.Tensor) -> bool:
        """Whether W + scale B A is made first: on a CPU, for enough rows to pay for making it.

        Only in float32, where a small update is not rounded away by the weight that it joins.
        """
        exact = x.dtype == self.base.weight.dtype == torch.float32
        drops = self.training and self.dropout > 0
        many = x.dim() == 2 and len(x) >= min(self.base.weight.shape)
        eager = not torch.compiler.is_compiling()
        return x.device.type == "cpu" and exact and many and eager and not drops


class _MergedProduct(torch.autograd.Function):
    """y = x (W + B A)^T + b by one product, W and b (or None) frozen, B already scaled.

    The merged weight is made again in the backward: [F, D] once more costs less than a pass over
    the [rows, F] of y, of which B (A x) beside W x takes several. Letters: N rows of x.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: torch.Tensor,
        weight_FD: torch.Tensor,
        bias_F: torch.Tensor | None,
        A_RD: torch.Tensor,
        B_FR: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(x_ND, weight_FD, A_RD, B_FR)
        return F.linear(x_ND, torch.addmm(weight_FD, B_FR, A_RD), bias_F)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_NF: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """dx = dy (W + B A), dA = (dy B)^T x, dB = dy^T (x A^T)."""
        x_ND, weight_FD, A_RD, B_FR = ctx.saved_tensors
        dx_ND = None
        if ctx.needs_input_grad[0]:
            dx_ND = dy_NF @ torch.addmm(weight_FD, B_FR, A_RD)
        # Thin factors lie along the long axis: the library is several times slower otherwise.
        dlow_NR = F.linear(dy_NF, B_FR.T.contiguous())
        low_NR = F.linear(x_ND, A_RD)
        return dx_ND, None, None, dlow_NR.T @ x_ND, (low_NR.T @ dy_NF).T


# Layers


def add_lora(
    model: Llama,
    rank: int,
    alpha: float,
    targets: Iterable[str],
    dropout: float = 0.0,
    seed: int = 0,
) -> Llama:
    """Replace every Linear whose last name is in `targets`.

    A is drawn as in PEFT (Kaiming uniform), B = 0. Only A and B are trained: everything else is
    frozen. On the meta device only the layers are made: `draw_lora` fills them after the model has
    storage. Raises InputError if a target names no layer.
    """
    model.requires_grad_(False)
    linears = linear_layers(model)
    leaves = {name: name.rpartition(".")[2] for name in linears}
    absent = sorted(set(targets) - set(leaves.values()))
    if absent:
        known = ", ".join(sorted(set(leaves.values())))
        raise InputError(
            f"lora.targets: no layer is named {', '.join(absent)}; this model has {known}"
        )
    for name, linear in linears.items():
        if leaves[name] in targets:
            _replace(model, name, LoRALinear(linear, rank, alpha, dropout))
    return model if model.head_weight_VD.is_meta else draw_lora(model, seed)


def _replace(model: Llama, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)


def draw_lora(model: Llama, seed: int) -> Llama:
    """The starting values of every adapter.

    A shard gets its rows of the same draw, so the number of ranks changes nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        device = layer.base.weight.device
        for side in SIDES:
            parameter = getattr(layer, side)
            value = torch.zeros(parameter.shape)
            if side == "lora_A":
                bound = 1 / math.sqrt(parameter.shape[1])
                value.uniform_(-bound, bound, generator=generator)
            first, end = kept_rows(parameter)
            assign(layer, side, value[first:end].to(device))
    return model


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """{layer name in the Hugging Face tree: LoRALinear}."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)
    }


def lora_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """(name, parameter) of every A and B."""
    return [
        (f"{name}.{side}", getattr(layer, side))
        for name, layer in lora_layers(model).items()
        for side in SIDES
    ]


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[nn.Module]:
    """Inside the block the model is its base: the frozen reference of a LoRA run."""
    layers = lora_layers(model).values()
    before = [layer.enabled for layer in layers]
    for layer in layers:
        layer.enabled = False
    try:
        yield model
    finally:
        for layer, enabled in zip(layers, before):
            layer.enabled = enabled


def merge_lora(model: Llama) -> Llama:
    """Fold every update into its weight and take the adapters out.

    W + (alpha / r) B A, summed in float32.
    """
    for name, layer in lora_layers(model).items():
        weight = layer.base.weight.data
        update = layer.scale * layer.lora_B.data @ layer.lora_A.data
        weight.copy_((weight.float() + update).to(weight.dtype))
        _replace(model, name, layer.base)
    return model


# Files


def load_adapter(model: Llama, adapter_dir: str | Path) -> Llama:
    """Add the adapter in `adapter_dir` (ours or PEFT's) to a model without one.

    Raises InputError naming what does not fit.
    """
    adapter = Adapter(adapter_dir, model)
    config = adapter.config
    linears = linear_layers(model)
    model.requires_grad_(False)
    for name, (A_RD, B_FR) in adapter.pairs.items():
        layer = LoRALinear(
            linears[name], config.rank_of(name), config.alpha_of(name), config.dropout
        )
        layer.lora_A.data.copy_(A_RD)
        layer.lora_B.data.copy_(B_FR)
        _replace(model, name, layer)
    return model


def adapter_rows(model_dir: str | Path, adapter_dir: str | Path) -> Edit:
    """The edit of model.weights.fill that merges an adapter while reading.

    W + (alpha / r) B A, in float32, rows of a shard too.
    """
    adapter = Adapter(adapter_dir, meta_model(model_dir))

    def merged(name: str, rows: torch.Tensor, first: int) -> torch.Tensor:
        layer = name.removesuffix(".weight")
        if layer not in adapter.pairs:
            return rows
        A_RD, B_FR = (tensor.float() for tensor in adapter.pairs[layer])
        scale = adapter.config.scale_of(layer)
        return rows.float() + scale * B_FR[first : first + len(rows)] @ A_RD

    return merged


def save_adapter(
    model: Llama,
    out_dir: str | Path,
    base_model: str | Path,
    tensors: Iterable[tuple[str, torch.Tensor]] | None = None,
    first_dir: str | Path | None = None,
) -> None:
    """adapter_config.json and adapter_model.safetensors as PEFT writes them (float32).

    base_model: the directory of the base, written down as an absolute path. tensors: (name, tensor)
    of `lora_parameters`, gathered, if the model is sharded. first_dir: the adapter that was merged
    into the base before these layers were trained; what is written then holds both, relative to
    `base_model`.
    """
    trained = next(iter(lora_layers(model).values()))
    rank, alpha = trained.rank, trained.alpha
    values = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in tensors or lora_parameters(model)
    }
    if first_dir:
        base = meta_model(base_model)
        second = {name: _pair(values, name) for name in lora_layers(model)}
        rank, values = joined(base, Adapter(first_dir, base), second, trained.scale)
        alpha = rank  # at scale 1: the scales are in B
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(Path(base_model).absolute()),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": trained.dropout,
        "init_lora_weights": True,
        "target_modules": sorted({name.split(".")[-2] for name in values}),
        **PLAIN,
    }
    out_dir = Path(out_dir)
    write_tensors(
        {f"{PREFIX}{name}.weight": tensor for name, tensor in values.items()}, out_dir / WEIGHTS
    )
    (out_dir / FILE).write_text(json.dumps(config, indent=2) + "\n")


def _pair(values: dict[str, torch.Tensor], layer: str) -> Pair:
    """(A [R, D], B [F, R]) of one layer."""
    return tuple(values[f"{layer}.{side}"] for side in SIDES)
