"""LoRA by hand: y = W x + (alpha / r) B A x, A and B float32, W frozen. PEFT's files, both ways.

Several adapters by name over one base (policy, critic, reward): a model computes with one of them
at a time, `with adapter(model, "critic"):`, or with none, `with adapters_off(model):`. The first
one that is added is active until told otherwise. Which of them are trained is `set_trained`'s word.

Letters: D inputs of a layer, F its outputs, R the rank; A is [R, D], B is [F, R].
"""

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import nn

from model import scalar_head
from model.adapter_config import FILE
from model.adapters import PREFIX, WEIGHTS, Adapter, Pair, joined, linear_layers
from model.errors import InputError
from model.llama import Linear, Llama
from model.lora_layer import POLICY, SIDES, LoRALinear, parameter_name
from model.shards import assign, kept_rows, whole
from model.tensors import write_tensors
from model.weights import Edit, is_added, meta_model

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


# Layers


def add_lora(
    model: Llama,
    rank: int,
    alpha: float,
    targets: Iterable[str],
    dropout: float = 0.0,
    seed: int = 0,
    name: str = POLICY,
) -> Llama:
    """Put the adapter `name` on every Linear whose last name is in `targets`.

    A is drawn as in PEFT (Kaiming uniform), B = 0. The base is frozen; the new A and B are trained,
    and other adapters go on as they were (`set_trained`). On the meta device only the layers are
    made: `draw_lora` fills them after the model has storage. Raises InputError if a target names no
    layer.
    """
    linears = linear_layers(model)
    leaves = {layer: layer.rpartition(".")[2] for layer in linears}
    absent = sorted(set(targets) - set(leaves.values()))
    if absent:
        known = ", ".join(sorted(set(leaves.values())))
        raise InputError(
            f"lora.targets: no layer is named {', '.join(absent)}; this model has {known}"
        )
    _begin(model, name)
    for layer, linear in linears.items():
        if leaves[layer] in targets:
            _put(model, layer, linear, (rank, alpha, dropout), name)
    return model if model.head_weight_VD.is_meta else draw_lora(model, seed, name)


def _begin(model: Llama, name: str) -> None:
    """Before the layers of an adapter: the base is frozen, and the first adapter is active."""
    if not adapter_names(model):
        model.active.name = name
    for parameter_of, parameter in model.named_parameters():
        if not is_added(parameter_of):
            parameter.requires_grad_(False)


def _put(
    model: Llama, layer: str, linear: Linear, settings: tuple[int, float, float], name: str
) -> None:
    """One more adapter on a layer; settings: rank, alpha, dropout."""
    parent, _, leaf = layer.rpartition(".")
    there = model.get_submodule(layer)
    if isinstance(there, LoRALinear):
        there.add(name, *settings)
        return
    new = LoRALinear(linear, *settings, name=name, active=model.active)
    setattr(model.get_submodule(parent), leaf, new)


def draw_lora(model: Llama, seed: int, name: str = POLICY) -> Llama:
    """The starting values of an adapter.

    A shard gets its rows of the same draw, so the number of ranks changes nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model, name).values():
        device = layer.base.weight.device
        for side in SIDES:
            own_name = parameter_name(side, name)
            parameter = getattr(layer, own_name)
            value = torch.zeros(parameter.shape)
            if side == "lora_A":
                bound = 1 / math.sqrt(parameter.shape[1])
                value.uniform_(-bound, bound, generator=generator)
            first, end = kept_rows(parameter)
            assign(layer, own_name, value[first:end].to(device))
    return model


def lora_layers(model: nn.Module, name: str | None = None) -> dict[str, LoRALinear]:
    """{layer name in the Hugging Face tree: LoRALinear} of an adapter; None: of any."""
    return {
        layer: module
        for layer, module in model.named_modules()
        if isinstance(module, LoRALinear) and (name is None or name in module.updates)
    }


def lora_parameters(model: nn.Module, name: str = POLICY) -> list[tuple[str, nn.Parameter]]:
    """(name, parameter) of every A and B of an adapter; in names no adapter is told from another:
    `...q_proj.lora_A`."""
    return [
        (f"{layer_name}.{side}", parameter)
        for layer_name, layer in lora_layers(model, name).items()
        for side, parameter in zip(SIDES, layer.factors(name))
    ]


# Which one computes, which are trained


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """The names of a model's adapters, sorted."""
    return tuple(sorted({name for layer in lora_layers(model).values() for name in layer.updates}))


@contextmanager
def adapter(model: Llama, name: str | None) -> Iterator[Llama]:
    """Inside the block the model computes with the adapter `name`; None: with none.

    Raises ValueError for a name that no adapter has.
    """
    if name is not None and name not in adapter_names(model):
        raise ValueError(f"no adapter {name!r} in this model; it has {adapter_names(model)}")
    with model.active.switched(name):
        yield model


def adapters_off(model: Llama) -> AbstractContextManager[Llama]:
    """Inside the block the model is its base: the frozen reference of a LoRA run."""
    return adapter(model, None)


def set_trained(model: Llama, names: Iterable[str]) -> Llama:
    """Exactly these adapters are trained, with their scalar heads; all else is frozen.

    Raises ValueError for a name that no adapter has.
    """
    names = set(names)
    unknown = names - set(adapter_names(model))
    if unknown:
        raise ValueError(f"no adapter {sorted(unknown)} in this model")
    model.requires_grad_(False)
    for name in names:
        for _, parameter in lora_parameters(model, name):
            parameter.requires_grad_(True)
        if name in model.scalar_heads:
            model.scalar_heads[name].requires_grad_(True)
    return model


def merge_lora(model: Llama) -> Llama:
    """Fold every update of the one adapter into its weight and take it out.

    W + (alpha / r) B A, summed in float32. Raises ValueError for a model with several.
    """
    names = adapter_names(model)
    if len(names) > 1:
        raise ValueError(f"several adapters, {names}: merging one would move the others' base")
    for layer_name, layer in lora_layers(model).items():
        (name,) = names
        A_RD, B_FR = layer.factors(name)
        weight = layer.base.weight.data
        update = layer.updates[name].scale * B_FR.data @ A_RD.data
        weight.copy_((weight.float() + update).to(weight.dtype))
        parent, _, leaf = layer_name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer.base)
    model.active.name = None
    return model


# Files


def load_adapter(
    model: Llama, adapter_dir: str | Path, name: str = POLICY, trained: bool = True
) -> Llama:
    """Add the adapter in `adapter_dir` (ours or PEFT's), and the scalar head beside it, if any.

    On the meta device only the layers are made: `fill_adapter` after the model has storage. Raises
    InputError naming what does not fit.
    """
    stored = Adapter(adapter_dir, model)
    config = stored.config
    linears = linear_layers(model)
    _begin(model, name)
    for layer in stored.pairs:
        settings = (config.rank_of(layer), config.alpha_of(layer), config.dropout)
        _put(model, layer, linears[layer], settings, name)
    for _, parameter in lora_parameters(model, name):
        parameter.requires_grad_(trained)
    if scalar_head.has_scalar_head(adapter_dir):
        scalar_head.load_scalar_head(model, adapter_dir, name, trained)
    return model if model.head_weight_VD.is_meta else _fill(model, stored, name)


def fill_adapter(model: Llama, adapter_dir: str | Path, name: str = POLICY) -> Llama:
    """The values of an adapter that `load_adapter` has made on the meta device, and its head's.

    Each rank of a sharded model keeps its rows.
    """
    if scalar_head.has_scalar_head(adapter_dir):
        scalar_head.load_scalar_head(model, adapter_dir, name)
    return _fill(model, Adapter(adapter_dir, model), name)


def _fill(model: Llama, stored: Adapter, name: str) -> Llama:
    for layer_name, pair in stored.pairs.items():
        layer = model.get_submodule(layer_name)
        for side, tensor in zip(SIDES, pair):
            parameter = getattr(layer, parameter_name(side, name))
            first, end = kept_rows(parameter)
            rows = tensor[first:end].to(layer.base.weight.device, torch.float32)
            assign(layer, parameter_name(side, name), rows)
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


def adapter_pieces(model: Llama, name: str = POLICY) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, whole tensor) of all that an adapter's directory holds, for `save_adapter`.

    Collective if the model is sharded: a tensor is gathered when it is asked for.
    """
    for parameter_of, parameter in lora_parameters(model, name):
        yield parameter_of, whole(parameter)
    yield from scalar_head.head_pieces(model, name)


def save_adapter(
    model: Llama,
    out_dir: str | Path,
    base_model: str | Path,
    pieces: Iterable[tuple[str, torch.Tensor]] | None = None,
    first_dir: str | Path | None = None,
    name: str = POLICY,
) -> None:
    """adapter_config.json and adapter_model.safetensors as PEFT writes them (float32), and the
    adapter's scalar head beside them, if it has one.

    base_model: the directory of the base, written down as an absolute path. pieces: what
    `adapter_pieces` gives, gathered, if the model is sharded. first_dir: the adapter that was
    merged into the base before these layers were trained; what is written then holds both, relative
    to `base_model`.
    """
    out_dir = Path(out_dir)
    layers = lora_layers(model, name)
    trained = next(iter(layers.values())).updates[name]
    rank, alpha = trained.rank, trained.alpha
    pieces = scalar_head.write_of(pieces or adapter_pieces(model, name), out_dir)
    values = {key: tensor.detach().cpu().contiguous() for key, tensor in pieces}
    if first_dir:
        base = meta_model(base_model)
        second = {layer: _pair(values, layer) for layer in layers}
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
        "target_modules": sorted({key.split(".")[-2] for key in values}),
        **PLAIN,
    }
    write_tensors(
        {f"{PREFIX}{key}.weight": tensor for key, tensor in values.items()}, out_dir / WEIGHTS
    )
    (out_dir / FILE).write_text(json.dumps(config, indent=2) + "\n")


def _pair(values: dict[str, torch.Tensor], layer: str) -> Pair:
    """(A [R, D], B [F, R]) of one layer."""
    return tuple(values[f"{layer}.{side}"] for side in SIDES)
