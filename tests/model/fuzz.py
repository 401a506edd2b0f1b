"""Broken files by the thousand: a result or one InputError, nothing else.

python -m tests.model.fuzz SECONDS [NAME ...]: longer than the tests do, counted.
"""

import json
import random
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from model.adapters import Adapter
from model.config import load_config
from model.errors import InputError
from model.gguf_file import Gguf
from model.gguf_model import check_tensors, config_of, weights_of
from model.gguf_tokenizer import tokenizer_of, tokenizer_settings
from model.llama import Llama
from model.lora import add_lora, load_adapter, save_adapter
from model.weights import load_model, meta_model

SEED = 20_251_125

# A model as small as one can be: a broken file is read in a millisecond.
CONFIG = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "vocab_size": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "rope_parameters": None,
    "tie_word_embeddings": False,
    "attention_bias": False,
}

# What stands in files where something else belongs, as JSON text.
VALUES = (
    *("null", "true", "false", "0", "1", "-1", "2", "3", "0.5", "-0.0", "1e308", "1e999", "NaN"),
    *("Infinity", "1" + "0" * 400, "18446744073709551615", "9223372036854775808", "1073741824"),
    *('""', '"4"', '"linear"', '"gaussian"', '"all-linear"', '"(.*"', '".*"', '"*"', '"\\ud800"'),
    *("[]", "[1]", "[null]", '["q_proj"]', "{}", '{"a": 1}', '{"q_proj": 2}', '{"(": 2}'),
    *(
        "[" * 2000 + "]" * 2000,
        '"' + "x" * 5000 + '"',
        '{"type": "llama3"}',
        '"q_proj"',
        "[[0, 1]]",
    ),
)


def broken_json(value: dict, rng: random.Random) -> bytes:
    """An object with some values replaced, or its text with some bytes changed."""
    if rng.random() < 0.25:
        return broken_bytes(json.dumps(value).encode(), rng)
    texts = {key: json.dumps(item) for key, item in value.items()}
    for _ in range(rng.randint(1, 3)):
        key = rng.choice([*texts, "an_unknown_key"])
        inner = value.get(key)
        if isinstance(inner, dict) and inner and rng.random() < 0.7:
            parts = {name: json.dumps(item) for name, item in inner.items()}
            parts[rng.choice([*parts, "type", "x"])] = rng.choice(VALUES)
            texts[key] = as_object(parts)
        elif rng.random() < 0.2:
            texts.pop(key, None)
        else:
            texts[key] = rng.choice(VALUES)
    return as_object(texts).encode()


def as_object(texts: dict[str, str]) -> str:
    return "{" + ", ".join(f"{json.dumps(key)}: {text}" for key, text in texts.items()) + "}"


def broken_bytes(data: bytes, rng: random.Random, head: int | None = None) -> bytes:
    """Some bytes of the first `head` replaced, counts made huge, pieces cut out or doubled."""
    data = bytearray(data)
    head = min(head or len(data), len(data))
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(head)
        how = rng.random()
        if how < 0.5:
            data[place : place + 1] = bytes([rng.randrange(256)])
        elif how < 0.7:
            count = rng.choice((0, 1, 2**16, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1))
            data[place : place + 8] = struct.pack("<Q", count)
        elif how < 0.8:
            del data[place : place + rng.randint(1, 16)]
        elif how < 0.9:
            data[place:place] = data[place : place + rng.randint(1, 16)]
        else:
            del data[place:]
        head = max(1, min(head, len(data)))
        if not data:
            break
    return bytes(data)


# What is broken: each makes its files in a directory and returns one() -> None.


def config_json(path: Path, rng: random.Random) -> Callable[[], None]:
    def one() -> None:
        (path / "config.json").write_bytes(broken_json(CONFIG, rng))
        with torch.device("meta"):
            Llama(load_config(path))

    return one


def adapter_config(path: Path, rng: random.Random) -> Callable[[], None]:
    model_dir = small_model(path / "model")
    model = add_lora(load_model(model_dir), 2, 4, ("q_proj", "v_proj"))
    save_adapter(model, path, model_dir)
    whole = json.loads((path / "adapter_config.json").read_text())
    base = load_model(model_dir)
    keys = ("exclude_modules", "layers_pattern", "use_qalora", "loftq_config", "lora_bias")
    whole |= dict.fromkeys(keys) | {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 4}}

    def one() -> None:
        (path / "adapter_config.json").write_bytes(broken_json(whole, rng))
        Adapter(path, base)

    return one


def adapter_tensors(path: Path, rng: random.Random) -> Callable[[], None]:
    model_dir = small_model(path / "model")
    save_adapter(add_lora(load_model(model_dir), 2, 4, ("q_proj", "v_proj")), path, model_dir)
    return broken_file(
        path / "adapter_model.safetensors", rng, lambda: load_adapter(meta_model(model_dir), path)
    )


def safetensors_header(path: Path, rng: random.Random) -> Callable[[], None]:
    model_dir = small_model(path)
    return broken_file(model_dir / "model.safetensors", rng, lambda: load_model(model_dir))


def index_json(path: Path, rng: random.Random) -> Callable[[], None]:
    model_dir = small_model(path)
    (path / "model.safetensors").rename(path / "model-00001-of-00001.safetensors")
    names = dict(load_parameters(model_dir))
    index = {
        "metadata": {"total_size": 1},
        "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors"),
    }

    def one() -> None:
        (path / "model.safetensors.index.json").write_bytes(broken_json(index, rng))
        load_model(model_dir)

    return one


def gguf(path: Path, rng: random.Random) -> Callable[[], None]:
    from tests.model.test_import_gguf import write

    write(path / "m.gguf", tied=False)

    def read() -> None:
        file = Gguf(path / "m.gguf")
        config = config_of(file)
        check_tensors(file, config)
        tokenizer_of(file)
        tokenizer_settings(file, config)
        weights_of(file, config)

    return broken_file(path / "m.gguf", rng, read)


def broken_file(path: Path, rng: random.Random, read: Callable) -> Callable[[], None]:
    """Break a binary file, mostly in its head, over and over from the whole one."""
    whole = path.read_bytes()
    (header,) = struct.unpack("<Q", whole[:8])
    head = 8 + header if header < len(whole) else len(whole) // 8

    def one() -> None:
        # A new file each time: the old one may still be mapped.
        path.unlink()
        path.write_bytes(broken_bytes(whole, rng, None if rng.random() < 0.2 else head))
        read()

    return one


def small_model(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG))
    tensors = {name: torch.randn(p.shape) for name, p in load_parameters(path)}
    save_file(tensors, path / "model.safetensors")
    return path


def load_parameters(path: Path) -> list[tuple[str, torch.Tensor]]:
    return list(meta_model(path).named_parameters())


TARGETS = {
    target.__name__: target
    for target in (
        config_json,
        adapter_config,
        adapter_tensors,
        safetensors_header,
        index_json,
        gguf,
    )
}


def fuzz(name: str, path: Path, count: int, seconds: float = 1e9, seed: int = SEED) -> Counter:
    """Break one kind of file `count` times, or as long as `seconds`; how often it was read or not.

    Raises whatever is no InputError.
    """
    rng = random.Random(seed)
    one = TARGETS[name](path, rng)
    outcomes: Counter = Counter()
    end = time.monotonic() + seconds
    for _ in range(count):
        if time.monotonic() > end:
            break
        try:
            one()
            outcomes["read"] += 1
        except InputError as error:
            assert str(error) and len(str(error)) < 2000, "a line that nobody can read"
            outcomes["refused"] += 1
    return outcomes


def main(argv: list[str]) -> None:
    seconds, *names = argv
    for name in names or TARGETS:
        with tempfile.TemporaryDirectory() as path:
            outcomes = fuzz(name, Path(path), 10**9, float(seconds))
        print(name, dict(outcomes), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
