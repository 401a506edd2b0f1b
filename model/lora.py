"""LoRA by hand: y = W x + (alpha / r) B A x, A and B float32, W frozen. Files in PEFT's layout, both ways."""

import json
import math
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from model.errors import InputError
from model.files import read_json
from model.llama import Linear
from model.weights import assign, kept_rows, meta_model, opened, write_tensors

PREFIX = "base_model.model."  # PEFT wraps twice; its files carry the names of both wrappers
UNSUPPORTED = {
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
    """A frozen Linear and its low-rank update. `enabled = False` gives the base layer, bit for bit."""

    def __init__(self, base, rank, alpha, dropout=0.0):
        super().__init__()
        device = base.weight.device
        outputs, inputs = base.weight.shape
        self.base, self.rank, self.alpha, self.scale, self.dropout = (
            base,
            rank,
            alpha,
            alpha / rank,
            dropout,
        )
        # float32: an AdamW step of lr 1e-5 on a bfloat16 weight of size 0.1 is rounded away
        self.lora_A = nn.Parameter(torch.empty(rank, inputs, device=device))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank, device=device))
        self.enabled = True

    def forward(self, x):
        y = self.base(x)
        if not self.enabled:
            return y
        low = F.linear(F.dropout(x, self.dropout, self.training), self.lora_A.to(x.dtype))
        return y + F.linear(low, (self.scale * self.lora_B).to(x.dtype))


def add_lora(model, rank, alpha, targets, dropout=0.0, seed=0):
    """Replace every Linear whose last name is in `targets`. A is drawn as in PEFT (Kaiming uniform), B = 0.

    Only A and B are trained: everything else is frozen. On the meta device only the layers are made: `draw_lora` fills them
    after the model has storage. Raises InputError if a target names no layer.
    """
    model.requires_grad_(False)
    found = set()
    for name, module in list(model.named_modules()):
        parent, _, leaf = name.rpartition(".")
        if (
            leaf not in targets or not isinstance(module, Linear) or leaf == "lm_head"
        ):  # the head is the fused kernel's
            continue
        setattr(model.get_submodule(parent), leaf, LoRALinear(module, rank, alpha, dropout))
        found.add(leaf)
    if absent := sorted(set(targets) - found):
        known = sorted(
            {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, Linear)}
            - {"lm_head"}
        )
        raise InputError(
            f"lora.targets: no layer is named {', '.join(absent)}; this model has {', '.join(known)}"
        )
    return model if model.head_weight_VD.is_meta else draw_lora(model, seed)


def draw_lora(model, seed):
    """The starting values of every adapter. A shard gets its rows of the same draw, so the number of ranks changes nothing."""
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        for side in ("lora_A", "lora_B"):
            parameter, device = getattr(layer, side), layer.base.weight.device
            value = torch.zeros(parameter.shape)
            if side == "lora_A":
                bound = 1 / math.sqrt(parameter.shape[1])
                value.uniform_(-bound, bound, generator=generator)
            first, end = kept_rows(parameter)
            assign(layer, side, value[first:end].to(device))
    return model


def lora_layers(model):
    """{layer name in the Hugging Face tree: LoRALinear}."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)
    }


@contextmanager
def adapters_off(model):
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


def merge_lora(model):
    """Fold every update into its weight, W + (alpha / r) B A, summed in float32, and take the adapters out."""
    for name, layer in lora_layers(model).items():
        weight = layer.base.weight.data
        weight.copy_(
            (weight.float() + layer.scale * layer.lora_B.data @ layer.lora_A.data).to(weight.dtype)
        )
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer.base)
    return model


def lora_parameters(model):
    """(name, parameter) of every A and B."""
    return [
        (f"{name}.{side}", getattr(layer, side))
        for name, layer in lora_layers(model).items()
        for side in ("lora_A", "lora_B")
    ]


def save_adapter(model, out_dir, base_model, tensors=None):
    """adapter_config.json and adapter_model.safetensors as PEFT writes them (float32). tensors: (name, tensor) of `lora_parameters`,
    gathered, if the model is sharded."""
    out_dir, layers = Path(out_dir), lora_layers(model)
    tensors = {
        f"{PREFIX}{name}.weight": tensor.detach().cpu().contiguous()
        for name, tensor in tensors or lora_parameters(model)
    }
    first = next(iter(layers.values()))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base_model),
        "inference_mode": True,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": first.dropout,
        "init_lora_weights": True,
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
        **UNSUPPORTED,
    }
    write_tensors(tensors, out_dir / "adapter_model.safetensors")
    (out_dir / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def read_adapter(adapter_dir):
    """(adapter_config, {tensor name: tensor}) of an adapter directory, ours or PEFT's. Raises InputError for a kind that is not supported."""
    path = Path(adapter_dir) / "adapter_config.json"
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise InputError(
            f"{path}: peft_type is {config.get('peft_type')!r}; only LORA adapters are supported"
        )
    for key, plain in UNSUPPORTED.items():
        if config.get(key) not in (plain, None) and config[key] != []:
            raise InputError(
                f"{path}: {key} = {config[key]!r} is not supported; expected {plain!r}"
            )
    with opened(Path(adapter_dir) / "adapter_model.safetensors") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    return config, tensors


def adapter_rows(model_dir, adapter_dir):
    """The edit of model.weights.fill that merges an adapter while reading: W + (alpha / r) B A, in float32, rows of a shard too."""
    load_adapter(meta_model(model_dir), adapter_dir)  # says what does not fit
    config, tensors = read_adapter(adapter_dir)
    scale = config["lora_alpha"] / config["r"]

    def merged(name, rows, first):
        key = PREFIX + name.removesuffix(".weight")
        if f"{key}.lora_A.weight" not in tensors:
            return rows
        A, B = (tensors[f"{key}.{side}.weight"].float() for side in ("lora_A", "lora_B"))
        return rows.float() + scale * B[first : first + len(rows)] @ A

    return merged


def load_adapter(model, adapter_dir):
    """Add the adapter in `adapter_dir` (ours or PEFT's) to a model without one. Raises InputError naming what does not fit."""
    config, tensors = read_adapter(adapter_dir)
    file_path = Path(adapter_dir) / "adapter_model.safetensors"
    targets = sorted(
        {
            name.split(".")[-3]
            for name in tensors
            if name.endswith((".lora_A.weight", ".lora_B.weight"))
        }
    )
    if not targets or not all(
        isinstance(config.get(key), (int, float)) and config[key] > 0 for key in ("r", "lora_alpha")
    ):
        raise InputError(
            f"{adapter_dir}: no LoRA tensors, or no positive r and lora_alpha in adapter_config.json"
        )
    add_lora(
        model, config["r"], config["lora_alpha"], targets, float(config.get("lora_dropout") or 0.0)
    )
    for name, layer in lora_layers(model).items():
        for side in ("lora_A", "lora_B"):
            key, parameter = f"{PREFIX}{name}.{side}.weight", getattr(layer, side)
            if key not in tensors:
                raise InputError(
                    f"{file_path}: the tensor {key} is missing; was the adapter made for another model?"
                )
            tensor = tensors.pop(key)
            if tensor.shape != parameter.shape:
                raise InputError(
                    f"{file_path}: {key} has shape {list(tensor.shape)}; this model needs {list(parameter.shape)}"
                )
            parameter.data.copy_(tensor)
    if tensors:
        raise InputError(
            f"{file_path}: {sorted(tensors)[0]} fits no layer of this model ({len(tensors)} such tensors)"
        )
    return model
