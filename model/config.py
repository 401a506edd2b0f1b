"""config.json of a model of the LLaMA kind: what of it the model reads, and what it refuses."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import InputError
from model.families import check_no_window, family_of
from model.files import read_json

ROPE_FIELDS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
ROPE_PLACES = ("rope_parameters", "rope_scaling")  # transformers from 5 on, and before

# The largest of each that is taken for a model and not for a broken file.
LARGEST = {
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "head_dim": 1 << 12,
    "vocab_size": 1 << 22,
    "max_position_embeddings": 1 << 31,
}


@dataclass(frozen=True)
class LlamaConfig:
    """The numbers of config.json that the model is built from."""

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
    rope_scaling: dict[str, float] | None  # type llama3: its four numbers; None: plain RoPE
    tie_word_embeddings: bool
    qkv_bias: bool = False  # q, k and v have a bias
    qk_norm: bool = False  # each head of q and k is normed before RoPE


def existing(model_dir: str | Path) -> Path:
    """The directory as a Path. Raises InputError if there is none."""
    if not Path(model_dir).is_dir():
        raise InputError(
            f"{model_dir}: no such model directory; expected config.json, *.safetensors and "
            "tokenizer files"
        )
    return Path(model_dir)


def load_config(model_dir: str | Path) -> LlamaConfig:
    """Read `model_dir/config.json`.

    Raises InputError for another family, a setting this model has no code for, a number that
    is none or out of bounds, and for a file that says two things.
    """
    path = existing(model_dir) / "config.json"
    return parse_config(read_json(path), path)


def parse_config(raw: dict[str, Any], path: Path) -> LlamaConfig:
    """load_config of an object that was read already; `path` is where, for the messages."""
    family = family_of(raw, path)
    hidden = _size(raw, "hidden_size", path)
    heads = _size(raw, "num_attention_heads", path)
    kv_heads = _size(raw, "num_key_value_heads", path, default=heads)
    if heads % kv_heads:
        raise InputError(
            f"{path}: {heads} attention heads cannot share {kv_heads} key-value heads; "
            "num_key_value_heads must divide num_attention_heads"
        )
    layers = _size(raw, "num_hidden_layers", path)
    context = _size(raw, "max_position_embeddings", path, default=2048)
    check_no_window(raw, family, path, layers, context)
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=_size(raw, "intermediate_size", path),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=_head_dim(raw, hidden, heads, path),
        vocab_size=_size(raw, "vocab_size", path),
        max_position_embeddings=context,
        rms_norm_eps=_positive(raw.get("rms_norm_eps", 1e-6), "rms_norm_eps", path),
        rope_theta=_rope_theta(raw, path),
        rope_scaling=_rope_scaling(raw, path),
        tie_word_embeddings=_flag(raw, "tie_word_embeddings", path),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
    )


def _size(raw: dict[str, Any], key: str, path: Path, default: int | None = None) -> int:
    """An integer from 1 to what such a size can be; `default` if it is absent or null."""
    value = raw.get(key)
    if value is None:
        value = default
    if value is None:
        raise InputError(f"{path}: the key {key!r} is missing; every config of such a model has it")
    if type(value) is not int or not 1 <= value <= LARGEST[key]:
        raise InputError(
            f"{path}: {key}: a number was expected, from 1 to {LARGEST[key]}, got {value!r:.80}"
        )
    return value


def _head_dim(raw: dict[str, Any], hidden: int, heads: int, path: Path) -> int:
    """The width of a head, as stated or as the hidden size divides; RoPE turns pairs."""
    if raw.get("head_dim") is None and hidden % heads:
        raise InputError(
            f"{path}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}, and "
            "there is no head_dim"
        )
    width = _size(raw, "head_dim", path, default=max(hidden // heads, 1))
    if width % 2:
        raise InputError(f"{path}: a head of width {width} has no halves for RoPE to rotate")
    return width


def _positive(value: Any, key: str, path: Path) -> float:
    """A finite number above 0, as a float."""
    is_number = type(value) in (int, float)
    if not is_number or not 0 < value < math.inf:
        raise InputError(f"{path}: {key}: a number was expected, above 0, got {value!r:.80}")
    return float(value)


def _flag(raw: dict[str, Any], key: str, path: Path) -> bool:
    """true or false; absent: false."""
    value = raw.get(key, False)
    if not isinstance(value, bool):
        raise InputError(f"{path}: {key}: expected true or false, got {value!r:.80}")
    return value


# RoPE: a config may state it in three places. They are read one by one and must agree.


def _rope_settings(raw: dict[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    """{place: settings} of rope_parameters and rope_scaling, those that say something."""
    settings = {}
    for place in ROPE_PLACES:
        value = raw.get(place)
        if value is not None and not isinstance(value, dict):
            raise InputError(
                f"{path}: {place}: expected an object or null, got {type(value).__name__} "
                f"{value!r:.80}"
            )
        if value:
            settings[place] = value
    return settings


def _rope_theta(raw: dict[str, Any], path: Path) -> float:
    """The base of the frequencies, wherever it is stated; 10000 if nowhere."""
    stated = {"rope_theta": raw.get("rope_theta")}
    for place, settings in _rope_settings(raw, path).items():
        stated[f"{place}.rope_theta"] = settings.get("rope_theta")
    values = {
        place: _positive(value, place, path) for place, value in stated.items() if value is not None
    }
    return _agreed(values, path, default=10000.0)


def _rope_scaling(raw: dict[str, Any], path: Path) -> dict[str, float] | None:
    """The four numbers of type llama3, None for plain RoPE. Other types are refused by name."""
    settings = _rope_settings(raw, path)
    scaling = _agreed(
        {place: _one_scaling(place, value, path) for place, value in settings.items()},
        path,
        default=None,
    )

    # The original context may stand outside too, and there it counts before the one inside.
    key = "original_max_position_embeddings"
    if scaling and raw.get(key) is not None:
        outside = _positive(raw[key], key, path)
        _agreed({key: outside, f"{next(iter(settings))}.{key}": scaling[key]}, path, default=None)
    return scaling


def _one_scaling(place: str, settings: dict[str, Any], path: Path) -> dict[str, float] | None:
    """What one of the two objects says. Raises InputError for a type or key without code here."""
    kinds = {key: settings[key] for key in ("rope_type", "type") if settings.get(key) is not None}
    kind = _agreed({f"{place}.{key}": value for key, value in kinds.items()}, path, "default")
    if kind not in ("default", "llama3"):
        raise InputError(
            f"{path}: RoPE type {kind!r:.80} is not supported; expected 'default' or 'llama3'"
        )
    fields = ROPE_FIELDS if kind == "llama3" else ()

    # A key of another type is half a statement: of a scaling that would be left out.
    known = {*fields, "rope_type", "type", "rope_theta", "partial_rotary_factor"}
    unknown = sorted(settings.keys() - known)
    if unknown or settings.get("partial_rotary_factor", 1.0) != 1.0:
        name = (unknown or ["partial_rotary_factor"])[0]
        raise InputError(
            f"{path}: {place}.{name} = {settings[name]!r:.80} has no meaning here for RoPE type "
            f"{kind!r}; remove it if it is left over, otherwise the model is not supported"
        )
    if kind == "default":
        return None
    missing = [field for field in fields if field not in settings]
    if missing:
        raise InputError(f"{path}: RoPE type llama3 needs {', '.join(missing)}")
    scaling = {field: _positive(settings[field], f"{place}.{field}", path) for field in fields}
    if scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise InputError(
            f"{path}: {place}: high_freq_factor {scaling['high_freq_factor']} must be above "
            f"low_freq_factor {scaling['low_freq_factor']}"
        )
    return scaling


def _agreed(statements: dict[str, Any], path: Path, default: Any) -> Any:
    """The one value of all statements. Raises InputError that names two which differ."""
    if not statements:
        return default
    first, *others = statements.items()
    for other in others:
        if other[1] != first[1]:
            raise InputError(
                f"{path}: {first[0]} says {first[1]!r:.160}, {other[0]} says {other[1]!r:.160}; "
                "remove the one that is stale"
            )
    return first[1]
