"""Adapter directories in PEFT's layout: one that fits a model, and two that become one.

Letters: D inputs of a layer, F its outputs, R the rank; A is [R, D], B is [F, R].
"""

from pathlib import Path

import torch

from model.adapter_config import FILE, AdapterConfig, read_adapter_config
from model.errors import InputError
from model.llama import Linear, Llama
from model.tensors import check_finite, opened

PREFIX = "base_model.model."  # PEFT wraps twice; its files carry the names of both wrappers
WEIGHTS = "adapter_model.safetensors"

Pair = tuple[torch.Tensor, torch.Tensor]  # A [R, D] and B [F, R]


def linear_layers(model: Llama) -> dict[str, Linear]:
    """{name: Linear} of all that LoRA can be on; not the head, which is the fused kernel's."""
    return {
        name.removesuffix(".base"): module
        for name, module in model.named_modules()
        if isinstance(module, Linear) and name != "lm_head"
    }


class Adapter:
    """An adapter directory, ours or PEFT's, that fits a model.

    config: AdapterConfig; pairs: {layer name: (A, B)} as stored. Raises InputError naming what is
    not supported and what does not fit.
    """

    def __init__(self, adapter_dir: str | Path, model: Llama) -> None:
        self.config: AdapterConfig = read_adapter_config(adapter_dir)
        self.path = Path(adapter_dir) / WEIGHTS
        with opened(self.path) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        self._check_reach(adapter_dir)
        layers = {
            name: linear
            for name, linear in linear_layers(model).items()
            if self.config.adapts(name)
        }
        if not layers:
            raise InputError(
                f"{Path(adapter_dir) / FILE}: target_modules = {self.config.targets!r:.80} names "
                "no layer of this model; was the adapter made for another model?"
            )
        self.pairs = {name: self._pair(tensors, name, layers[name]) for name in layers}
        if tensors:
            raise InputError(
                f"{self.path}: {min(tensors)} fits no layer that adapter_config.json names in this "
                f"model ({len(tensors)} such tensors)"
            )

    def _check_reach(self, adapter_dir: str | Path) -> None:
        """Raises InputError for an adapter of the embedding or the head: there is no LoRA here."""
        if self.config.on_all_linear:
            return
        for name in ("model.embed_tokens", "lm_head"):
            if self.config.adapts(name):
                raise InputError(
                    f"{Path(adapter_dir) / FILE}: target_modules name {name}, which cannot be "
                    "adapted here; merge the adapter into the model, or train it without"
                )

    def _pair(self, tensors: dict[str, torch.Tensor], name: str, linear: Linear) -> Pair:
        """Take A [R, D] and B [F, R] of one layer out of `tensors`."""
        outputs, inputs = linear.weight.shape
        rank = self.config.rank_of(name)
        shapes = {"lora_A": [rank, inputs], "lora_B": [outputs, rank]}
        pair = []
        for side, shape in shapes.items():
            key = f"{PREFIX}{name}.{side}.weight"
            if key not in tensors:
                raise InputError(
                    f"{self.path}: the tensor {key} is missing, though adapter_config.json names "
                    "the layer; was the adapter made for another model?"
                )
            tensor = tensors.pop(key)
            if list(tensor.shape) != shape:
                raise InputError(
                    f"{self.path}: {key} has shape {list(tensor.shape)}; this model needs {shape}"
                )
            if not tensor.is_floating_point():
                raise InputError(f"{self.path}: {key} is of {tensor.dtype}; expected floats")
            check_finite(tensor.float(), key, self.path)
            pair.append(tensor)
        return tuple(pair)


def joined(
    base: Llama, first: Adapter, second: dict[str, Pair], second_scale: float
) -> tuple[int, dict[str, torch.Tensor]]:
    """(rank, {name of a factor: tensor}) of the one adapter that does what two do, exactly.

    s1 B1 A1 + s2 B2 A2 = [s1 B1, s2 B2] [A1; A2], at scale 1. Every layer of a name gets the same
    rank, which any reader of such files understands: where one of the two is not on a layer, or has
    a smaller rank there, rows of A and columns of B are zero.

    base: shapes alone are read. first: merged into the base when second, {layer: (A, B)}, was
    trained.
    """
    # What is on each layer: (A, s B) of both, first before second.
    stacks: dict[str, list[Pair]] = {}
    for name, (A_RD, B_FR) in first.pairs.items():
        scaled = first.config.scale_of(name) * B_FR.float()
        stacks.setdefault(name, []).append((A_RD.float(), scaled))
    for name, (A_RD, B_FR) in second.items():
        stacks.setdefault(name, []).append((A_RD.float(), second_scale * B_FR.float()))
    rank = max(sum(len(A_RD) for A_RD, _ in pairs) for pairs in stacks.values())

    # The names stand for all their layers, also for those on which neither is.
    leaves = {name.rpartition(".")[2] for name in stacks}
    factors = {}
    for name, linear in linear_layers(base).items():
        if name.rpartition(".")[2] not in leaves:
            continue
        outputs, inputs = linear.weight.shape
        joint_A_RD = torch.zeros(rank, inputs)
        joint_B_FR = torch.zeros(outputs, rank)
        start = 0
        for A_RD, B_FR in stacks.get(name, []):
            end = start + len(A_RD)
            joint_A_RD[start:end] = A_RD
            joint_B_FR[:, start:end] = B_FR
            start = end
        factors[f"{name}.lora_A"] = joint_A_RD
        factors[f"{name}.lora_B"] = joint_B_FR
    return rank, factors
