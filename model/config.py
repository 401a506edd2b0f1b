"""config.json of a LLaMA-architecture model: what of it the model here reads, and what it refuses."""

from dataclasses import dataclass
from pathlib import Path

from model.errors import InputError
from model.files import read_json

ROPE_FIELDS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclass(frozen=True)
class LlamaConfig:
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: dict | None  # type llama3: its four numbers; None: plain RoPE
    tie_word_embeddings: bool


def existing(model_dir):
    """The directory as a Path. Raises InputError if there is none."""
    if not Path(model_dir).is_dir():
        raise InputError(
            f"{model_dir}: no such model directory; expected config.json, *.safetensors and tokenizer files"
        )
    return Path(model_dir)


def load_config(model_dir):
    """Read `model_dir/config.json`. Raises InputError for another architecture or a setting this model has no code for."""
    path = existing(model_dir) / "config.json"
    raw = read_json(path)
    if raw.get("model_type") != "llama":
        raise InputError(
            f"{path}: model_type is {raw.get('model_type')!r}; this model is 'llama' (LlamaForCausalLM) only"
        )
    for key, only in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
        if raw.get(key, only) != only:
            raise InputError(f"{path}: {key} is {raw[key]!r}; only {only!r} is supported")
    try:
        heads = int(raw["num_attention_heads"])
        return LlamaConfig(
            hidden_size=int(raw["hidden_size"]),
            intermediate_size=int(raw["intermediate_size"]),
            num_hidden_layers=int(raw["num_hidden_layers"]),
            num_attention_heads=heads,
            num_key_value_heads=int(raw.get("num_key_value_heads") or heads),
            head_dim=int(raw.get("head_dim") or raw["hidden_size"] // heads),
            vocab_size=int(raw["vocab_size"]),
            max_position_embeddings=int(raw.get("max_position_embeddings", 2048)),
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            **_rope(raw, path),
        )
    except KeyError as error:
        raise InputError(
            f"{path}: the key {error} is missing; every LLaMA config has it"
        ) from error
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: a number was expected ({error})") from error


def _rope(raw, path):
    """transformers before 5 writes rope_theta and rope_scaling; from 5 on one rope_parameters holds both."""
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = float(raw.get("rope_theta") or parameters.get("rope_theta") or 10000.0)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "default":
        return {"rope_theta": theta, "rope_scaling": None}
    if kind != "llama3":
        raise InputError(
            f"{path}: RoPE type {kind!r} is not supported; expected 'default' or 'llama3'"
        )
    missing = [field for field in ROPE_FIELDS if field not in parameters]
    if missing:
        raise InputError(f"{path}: RoPE type llama3 needs {', '.join(missing)}")
    return {
        "rope_theta": theta,
        "rope_scaling": {field: float(parameters[field]) for field in ROPE_FIELDS},
    }
