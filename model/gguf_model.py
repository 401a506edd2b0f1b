"""The model that a GGUF file holds: config.json and the weights by their Hugging Face names."""

from typing import Any

import torch
from tqdm import tqdm

from model.config import parse_config
from model.errors import InputError
from model.families import FAMILIES
from model.gguf_file import Gguf
from model.llama import rope_frequencies
from model.tensors import check_finite

NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
FREQUENCIES = "rope_freqs.weight"  # Llama-3.1's scaling, one divisor a frequency

# What GGUF calls the families; a Mistral is stored as a llama, its q and k in llama's order too.
ARCHITECTURES = ("llama", "qwen2", "qwen3")
INTERLEAVED = "llama"  # whose q and k llama.cpp stores with rotary pairs side by side

# Fields for which no family has code, with the values that say nothing; each after the name of the
# architecture.
NEUTRAL = {
    "rope.scaling.type": ("none", ""),
    "rope.scaling.factor": (0, 1),
    "rope.scale_linear": (0, 1),
    "rope.scaling.attn_factor": (0, 1),
    "expert_count": (0,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.scale": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "use_parallel_residual": (False,),
}


def config_of(gguf: Gguf) -> dict[str, Any]:
    """config.json of the file's numbers. Raises InputError for another or no whole model."""
    kind = _architecture(gguf)
    heads = gguf.integer(f"{kind}.attention.head_count")
    width = gguf.integer(f"{kind}.embedding_length")
    config = {
        "architectures": [FAMILIES[kind].architecture],
        "model_type": kind,
        "hidden_act": "silu",
        **_settings_of_family(kind),
        "hidden_size": width,
        "intermediate_size": gguf.integer(f"{kind}.feed_forward_length"),
        "num_hidden_layers": gguf.integer(f"{kind}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": gguf.integer(f"{kind}.attention.head_count_kv", heads),
        "head_dim": _head_dim(gguf, kind, width, heads),
        "rms_norm_eps": round(gguf.number(f"{kind}.attention.layer_norm_rms_epsilon"), 9),
        "rope_theta": gguf.number(f"{kind}.rope.freq_base", 10000.0),
        "max_position_embeddings": gguf.integer(f"{kind}.context_length"),
        "vocab_size": len(gguf.texts("tokenizer.ggml.tokens")),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "torch_dtype": "bfloat16",
        "bos_token_id": gguf.integer("tokenizer.ggml.bos_token_id", None),
        "eos_token_id": gguf.integer("tokenizer.ggml.eos_token_id", None),
    }
    parse_config(config, gguf.path)
    if FREQUENCIES in gguf.tensors:
        config["rope_scaling"] = _llama3_scaling(gguf, config)
        parse_config(config, gguf.path)
    return config


def _architecture(gguf: Gguf) -> str:
    """The family. Raises InputError for another one, a part of a file, settings without code."""
    kind = gguf.text("general.architecture")
    if kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise InputError(f"{gguf.path}: architecture {kind!r:.80}; only {known} can be imported")
    parts = gguf.integer("split.count", 1)
    if parts > 1:
        raise InputError(
            f"{gguf.path}: one part of {parts}; join them first with llama-gguf-split --merge"
        )
    for name, neutral in NEUTRAL.items():
        key = f"{kind}.{name}"
        value = gguf.any(key, neutral[0])
        if value not in neutral:
            raise InputError(
                f"{gguf.path}: {key} is {value!r:.80}, for which this model has no code; it cannot "
                "be imported"
            )
    return kind


def _settings_of_family(kind: str) -> dict[str, Any]:
    """What config.json of a family says besides numbers."""
    if kind == "llama":
        return {"attention_bias": False, "mlp_bias": False}
    return {"use_sliding_window": False}


def _head_dim(gguf: Gguf, kind: str, width: int, heads: int) -> int:
    """The width of a head, stated in up to three places, which must agree: all of it is rotated."""
    keys = (
        f"{kind}.attention.key_length",
        f"{kind}.attention.value_length",
        f"{kind}.rope.dimension_count",
    )
    stated = {key: gguf.integer(key) for key in keys if key in gguf.fields}
    if len(set(stated.values())) > 1:
        listed = ", ".join(f"{key} {value}" for key, value in stated.items())
        raise InputError(
            f"{gguf.path}: {listed}; heads of several widths or rotated in part cannot be imported"
        )
    return next(iter(stated.values()), None) or width // max(heads, 1)


def _llama3_scaling(gguf: Gguf, config: dict[str, Any]) -> dict[str, Any]:
    """The settings that made the stored divisors, recovered and checked against them."""
    stored = gguf.tensor(FREQUENCIES).float()
    scaling = {
        "rope_type": "llama3",
        "factor": float(stored.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain = rope_frequencies(parse_config(config, gguf.path))
    scaled = rope_frequencies(parse_config(config | {"rope_scaling": scaling}, gguf.path))
    fits = stored.shape == plain.shape and torch.allclose(plain / scaled, stored, rtol=1e-3)
    if not fits:
        raise InputError(
            f"{gguf.path}: {FREQUENCIES} is not Llama-3.1's scaling (factors 1 and 4, original "
            "context 8192)"
        )
    return scaling


def shapes_of(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """{GGUF name: shape} of every tensor that a model of this config has."""
    family = FAMILIES[config["model_type"]]
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    key = config["num_key_value_heads"] * config["head_dim"]
    block = {
        "attn_norm.weight": (hidden,),
        "ffn_norm.weight": (hidden,),
        "attn_q.weight": (query, hidden),
        "attn_k.weight": (key, hidden),
        "attn_v.weight": (key, hidden),
        "attn_output.weight": (hidden, query),
        "ffn_gate.weight": (inner, hidden),
        "ffn_up.weight": (inner, hidden),
        "ffn_down.weight": (hidden, inner),
    }
    if family.qkv_bias:
        block |= {"attn_q.bias": (query,), "attn_k.bias": (key,), "attn_v.bias": (key,)}
    if family.qk_norm:
        width = (config["head_dim"],)
        block |= {"attn_q_norm.weight": width, "attn_k_norm.weight": width}
    shapes = {
        "token_embd.weight": (config["vocab_size"], hidden),
        "output_norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["output.weight"] = (config["vocab_size"], hidden)
    for number in range(config["num_hidden_layers"]):
        shapes |= {f"blk.{number}.{name}": shape for name, shape in block.items()}
    return shapes


def check_tensors(gguf: Gguf, config: dict[str, Any]) -> None:
    """Raises InputError, before anything is read, unless the tensors are those of the config."""
    shapes = shapes_of(config)
    extra = sorted(gguf.tensors.keys() - shapes.keys() - {FREQUENCIES})
    if extra:
        raise InputError(
            f"{gguf.path}: the tensor {extra[0]} is not of a plain {config['model_type']} model; "
            "it cannot be imported"
        )
    missing = [name for name in shapes if name not in gguf.tensors]
    if missing:
        raise InputError(
            f"{gguf.path}: {len(missing)} tensors are missing (first: {missing[0]}); it may be one "
            "part of several, or cut: get the whole file"
        )
    for name, shape in shapes.items():
        if gguf.shape(name) != shape:
            raise InputError(
                f"{gguf.path}: {name} has shape {list(gguf.shape(name))}; its fields make it "
                f"{list(shape)}"
            )


def weights_of(gguf: Gguf, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """{Hugging Face name: bf16 tensor}.

    Of a llama, llama.cpp stores q and k with each head's rotary pairs interleaved: undone here.
    """
    heads = {}
    if config["model_type"] == INTERLEAVED:
        heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors = {}
    for name in tqdm(shapes_of(config), unit="tensor", desc="dequantizing", disable=None):
        tensor = gguf.tensor(name)
        target = TOP.get(name)
        if target is None:
            _, layer, part, side = name.split(".")
            target = f"model.layers.{layer}.{NAMES[part]}.{side}"
            if part in heads:
                tensor = _rotate_half_order(tensor, heads[part])
        tensors[target] = tensor.to(torch.bfloat16).contiguous()
        check_finite(tensors[target], name, gguf.path)
    return tensors


def _rotate_half_order(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from pairs side by side to all firsts, then all seconds."""
    rows, columns = weight.shape
    pairs = weight.view(heads, rows // heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)
