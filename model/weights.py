"""Hugging Face layout in and out: config.json and safetensors, one file or an index with shards."""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from model.config import load_config, read_json
from model.errors import InputError
from model.llama import Llama

INDEX = "model.safetensors.index.json"
COMPANIONS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
DERIVED = ("rotary_emb.inv_freq",)  # buffers that old exports store and that the model computes


@contextmanager
def replaced_directory(path):
    """A temporary directory beside `path` that takes its name only if the block ends well: a cut leaves the old one whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def pick_device(name):
    """"auto" is CUDA where there is one. Raises InputError for CUDA where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: this torch sees no CUDA device; use cpu or auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


@contextmanager
def opened(path):
    """A safetensors file, mapped, tensor by tensor. A missing or cut file is an InputError that names it."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; the index or the directory is incomplete: copy the model again") from error
    except SafetensorError as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}); it may be cut short: copy it again") from error


def tensor_files(model_dir):
    """{tensor name: file}, read from the index or from the one file's header."""
    model_dir = Path(model_dir)
    if (model_dir / INDEX).exists():
        weight_map = read_json(model_dir / INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise InputError(f"{model_dir / INDEX}: no weight_map; expected {{tensor name: file name}}")
        return {name: model_dir / file for name, file in weight_map.items()}
    path = model_dir / "model.safetensors"
    with opened(path) as file:
        return dict.fromkeys(file.keys(), path)


def load_model(model_dir, dtype=torch.float32, device="cpu", param_dtype=None):
    """A frozen Llama from a Hugging Face directory, in evaluation mode.

    dtype: what it computes in; param_dtype: what it is stored in (None: dtype). Built on the meta device and filled
    tensor by tensor from the mapped file: never a second full copy. Raises InputError naming missing, extra or misshapen tensors.
    """
    config = load_config(model_dir)
    with torch.device("meta"):
        model = Llama(config, dtype)
    wanted = dict(model.named_parameters())
    files = {name: file for name, file in tensor_files(model_dir).items() if not name.endswith(DERIVED)}
    if config.tie_word_embeddings:
        files.pop("lm_head.weight", None)  # some exports repeat the tied head
    missing, extra = sorted(wanted.keys() - files.keys()), sorted(files.keys() - wanted.keys())
    if missing or extra:
        what = f"{len(missing)} missing (first: {missing[0]})" if missing else f"{len(extra)} not of this model (first: {extra[0]})"
        raise InputError(f"{model_dir}: tensors do not match config.json: {what}; expected {len(wanted)} tensors")
    for path in sorted(set(files.values())):
        with opened(path) as file:
            for name in sorted(n for n in files if files[n] == path):
                tensor = _read(file, name, path, wanted[name].shape)
                owner, _, leaf = name.rpartition(".")
                tensor = tensor.to(device=device, dtype=param_dtype or dtype)
                setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
    return model.eval()


def _read(file, name, path, shape):
    if name not in file.keys():
        raise InputError(f"{path}: the tensor {name} is missing, though the index names it here")
    found = tuple(file.get_slice(name).get_shape())
    if found != tuple(shape):
        raise InputError(f"{path}: {name} has shape {list(found)}; config.json makes it {list(shape)}")
    return file.get_tensor(name)


def save_model(model, out_dir, source_dir, dtype=torch.bfloat16, shard_bytes=5 << 30):
    """Write `model` in Hugging Face layout: its tensors in `dtype`, config and tokenizer files from `source_dir`.

    A directory that transformers and vLLM load. The caller makes the write atomic (replaced_directory).
    """
    out_dir, source_dir = Path(out_dir), Path(source_dir)
    shards, size = [{}], 0
    for name, parameter in model.named_parameters():
        tensor = parameter.detach().to("cpu", dtype).contiguous()
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{n + 1:05d}-of-{len(shards):05d}.safetensors" for n in range(len(shards))]
        weight_map = {tensor: name for name, shard in zip(names, shards) for tensor in shard}
        total = sum(t.nbytes for shard in shards for t in shard.values())
        (out_dir / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1))
    for name, shard in zip(names, shards):
        save_file(shard, out_dir / name, metadata={"format": "pt"})
    config = read_json(source_dir / "config.json")
    config["dtype" if "dtype" in config else "torch_dtype"] = str(dtype).removeprefix("torch.")  # transformers 5 renamed it
    (out_dir / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    copy_tokenizer(source_dir, out_dir)


def copy_tokenizer(source_dir, out_dir):
    """Tokenizer and generation files, those that there are."""
    for name in COMPANIONS:
        if (Path(source_dir) / name).exists():
            shutil.copyfile(Path(source_dir) / name, Path(out_dir) / name)
