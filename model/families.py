"""The families of model that the one decoder covers, and what of config.json is refused in each."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import InputError

DEFAULT_WINDOW = 4096  # what the absence of sliding_window means where a family has one
DEFAULT_WINDOW_LAYERS = 28  # what the absence of max_window_layers means


@dataclass(frozen=True)
class Family:
    """What sets a family apart from a LLaMA."""

    architecture: str  # its class in transformers, as config.json and exports name it
    qkv_bias: bool = False  # q, k and v have a bias; no other layer has one
    qk_norm: bool = False  # each head of q and k is normed before RoPE
    has_window: bool = False  # sliding_window is read
    window_switch: bool = False  # and only if use_sliding_window says so
    required: tuple[str, ...] = ()  # keys whose absence means other numbers than for a LLaMA


FAMILIES = {
    "llama": Family("LlamaForCausalLM"),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        qkv_bias=True,
        has_window=True,
        window_switch=True,
        required=("num_key_value_heads", "max_position_embeddings"),
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        qk_norm=True,
        has_window=True,
        window_switch=True,
        required=("num_key_value_heads", "max_position_embeddings", "head_dim"),
    ),
    "mistral": Family(
        "MistralForCausalLM",
        has_window=True,
        required=("num_key_value_heads", "max_position_embeddings"),
    ),
}

# Settings for which no family has code: refused if they are not these.
ONLY = {
    "mlp_bias": False,
    "hidden_act": "silu",
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}


def family_of(raw: dict[str, Any], path: Path) -> Family:
    """The family that a config.json names.

    Raises InputError for another one, for a setting without code here, and for a key that is
    absent where its absence has a meaning of the family's own.
    """
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise InputError(
            f"{path}: model_type is {kind!r:.80}; the models read here are {', '.join(FAMILIES)}"
        )
    family = FAMILIES[kind]
    for key, only in {"attention_bias": family.qkv_bias, **ONLY}.items():
        if raw.get(key, only) != only:
            shown = f"{raw[key]!r:.80}"
            raise InputError(f"{path}: {key} is {shown}; only {only!r} is supported")
    missing = [key for key in family.required if key not in raw]
    if missing:
        raise InputError(f"{path}: the key {missing[0]!r} is missing; every {kind} config has it")
    return family


def check_no_window(
    raw: dict[str, Any], family: Family, path: Path, layers: int, context: int
) -> None:
    """Raises InputError for a window that could hide a token from a later one.

    layers, context: num_hidden_layers and max_position_embeddings. A window that is switched off,
    on no layer, or at least as long as the context hides nothing.
    """
    if not family.has_window:
        return
    kinds = raw.get("layer_types") or []
    others = [kind for kind in kinds if kind != "full_attention"]
    if others:
        raise InputError(
            f"{path}: layer_types has {others[0]!r:.80}; only 'full_attention' is supported"
        )
    if family.window_switch and (kinds or not _is_switched_on(raw, path, layers)):
        return
    window = raw.get("sliding_window", DEFAULT_WINDOW)
    if window is None:
        return
    if type(window) is not int or window < 1:
        raise InputError(
            f"{path}: sliding_window: expected null or a number from 1, got {window!r:.80}"
        )
    if window < context:
        stated = "" if "sliding_window" in raw else " (by its absence)"
        raise InputError(
            f"{path}: sliding_window is {window}{stated} in a context of {context}: tokens beyond "
            "it would not be seen, for which there is no code here; a model without a window says "
            "null, and one used within it max_position_embeddings of that length"
        )


def _is_switched_on(raw: dict[str, Any], path: Path, layers: int) -> bool:
    """Whether use_sliding_window puts the window on any layer: those from max_window_layers on."""
    switch = raw.get("use_sliding_window", False)
    if not isinstance(switch, bool):
        raise InputError(f"{path}: use_sliding_window: expected true or false, got {switch!r:.80}")
    first = raw.get("max_window_layers", DEFAULT_WINDOW_LAYERS)
    if type(first) is not int:
        raise InputError(f"{path}: max_window_layers: expected a number, got {first!r:.80}")
    return switch and first < layers
