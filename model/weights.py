"""Hugging Face layout in and out: config.json and safetensors, one file or an index with shards."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor

from model.config import load_config
from model.errors import InputError
from model.files import read_json
from model.llama import Llama

INDEX = "model.safetensors.index.json"
COMPANIONS = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
)
DERIVED = ("rotary_emb.inv_freq",)  # buffers that old exports store and that the model computes


def write_tensors(tensors, path):
    """A safetensors file. A disk that is full or gone is an InputError that names the file."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise InputError(
            f"{path}: could not be written ({error}); make room and start the same command again"
        ) from error


def pick_device(name):
    """ "auto" is CUDA where there is one. Raises InputError for CUDA where there is none."""
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
        raise InputError(
            f"{path}: no such file; the index or the directory is incomplete: copy the model again"
        ) from error
    except SafetensorError as error:
        raise InputError(
            f"{path}: not a whole safetensors file ({error}); it may be cut short: copy it again"
        ) from error


def tensor_files(model_dir):
    """{tensor name: file}, read from the index or from the one file's header."""
    model_dir = Path(model_dir)
    if (model_dir / INDEX).exists():
        weight_map = read_json(model_dir / INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise InputError(
                f"{model_dir / INDEX}: no weight_map; expected {{tensor name: file name}}"
            )
        return {name: model_dir / file for name, file in weight_map.items()}
    path = model_dir / "model.safetensors"
    with opened(path) as file:
        return dict.fromkeys(file.keys(), path)


def read_tensor(model_dir, name):
    """One tensor by its Hugging Face name."""
    path = tensor_files(model_dir)[name]
    with opened(path) as file:
        return file.get_tensor(name)


def meta_model(model_dir, dtype=torch.float32):
    """The frozen Llama of a Hugging Face directory on the meta device: shapes and names, no storage. For `fill`."""
    with torch.device("meta"):
        model = Llama(load_config(model_dir), dtype)
    return model.requires_grad_(False).eval()


def load_model(model_dir, dtype=torch.float32, device="cpu", param_dtype=None):
    """A frozen Llama from a Hugging Face directory, in evaluation mode.

    dtype: what it computes in; param_dtype: what it is stored in (None: dtype). Built on the meta device and filled
    tensor by tensor from the mapped file: never a second full copy. Raises InputError naming missing, extra or misshapen tensors.
    """
    return fill(meta_model(model_dir, dtype), model_dir, device, param_dtype)


def fill(model, model_dir, device="cpu", param_dtype=None, merged=None):
    """Read the tensors of `model_dir` into a meta model, plain or sharded: of a DTensor each rank reads the rows that it keeps.

    param_dtype: what they are stored in (None: the dtype the model computes in). merged(name, rows, first): an edit of the rows
    read, the first of them row `first` of the tensor (model/lora.py: adapter_rows); None: as they are. LoRA's own tensors are left out.
    """
    wanted = {
        file_name(name): (name, p) for name, p in model.named_parameters() if "lora_" not in name
    }
    files = {
        name: file for name, file in tensor_files(model_dir).items() if not name.endswith(DERIVED)
    }
    if model.config.tie_word_embeddings:
        files.pop("lm_head.weight", None)  # some exports repeat the tied head
    missing, extra = sorted(wanted.keys() - files.keys()), sorted(files.keys() - wanted.keys())
    if missing or extra:
        what = (
            f"{len(missing)} missing (first: {missing[0]})"
            if missing
            else f"{len(extra)} not of this model (first: {extra[0]})"
        )
        raise InputError(
            f"{model_dir}: tensors do not match config.json: {what}; expected {len(wanted)} tensors"
        )
    for path in sorted(set(files.values())):
        with opened(path) as file:
            for name in sorted(n for n in files if files[n] == path):
                place, parameter = wanted[name]
                first, end = kept_rows(parameter)
                tensor = _read(file, name, path, parameter.shape, first, end)
                tensor = merged(name, tensor, first) if merged else tensor
                assign(model, place, tensor.to(device=device, dtype=param_dtype or model.dtype))
    return model


def file_name(name):
    """The Hugging Face name of a parameter: a LoRA layer holds its frozen Linear as `base`."""
    return name.replace(".base.weight", ".weight")


def kept_rows(parameter):
    """(first, end) of the rows that this rank keeps of a parameter: all of a plain one, a chunk of dimension 0 of a DTensor."""
    if not isinstance(parameter, DTensor):
        return 0, parameter.shape[0]
    mesh, at = (
        parameter.device_mesh,
        [n for n, place in enumerate(parameter.placements) if place.is_shard()],
    )
    if not at:
        return 0, parameter.shape[0]
    (dimension,) = at
    chunk = -(
        -parameter.shape[0] // mesh.size(dimension)
    )  # as torch.chunk cuts: the last ranks may keep fewer rows, or none
    first = min(mesh.get_local_rank(dimension) * chunk, parameter.shape[0])
    return first, min(first + chunk, parameter.shape[0])


@torch.no_grad()
def assign(model, name, tensor):
    """Give the parameter `name` these values: copied into the storage of a shard, a new Parameter otherwise."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    parameter = getattr(module, leaf)
    if isinstance(parameter, DTensor):
        parameter.to_local().copy_(tensor)
    else:
        setattr(module, leaf, nn.Parameter(tensor, requires_grad=parameter.requires_grad))


def whole(parameter):
    """The full tensor of a parameter, detached: itself, or gathered from every rank's shard (all ranks must call)."""
    return (
        parameter.detach().full_tensor() if isinstance(parameter, DTensor) else parameter.detach()
    )


def _read(file, name, path, shape, first, end):
    if name not in file.keys():
        raise InputError(f"{path}: the tensor {name} is missing, though the index names it here")
    rows = file.get_slice(name)
    if tuple(rows.get_shape()) != tuple(shape):
        raise InputError(
            f"{path}: {name} has shape {list(rows.get_shape())}; config.json makes it {list(shape)}"
        )
    return file.get_tensor(name) if (first, end) == (0, shape[0]) else rows[first:end]


def save_model(model, out_dir, source_dir, dtype=torch.bfloat16, shard_bytes=5 << 30):
    """Write `model` in Hugging Face layout: its tensors in `dtype`, config and tokenizer files from `source_dir`.

    A directory that transformers and vLLM load. The caller makes the write atomic (replaced_directory).
    """
    save_tensors(
        ((name, p.detach()) for name, p in model.named_parameters()),
        out_dir,
        source_dir,
        dtype,
        shard_bytes,
    )


def save_tensors(tensors, out_dir, source_dir, dtype, shard_bytes=5 << 30):
    """save_model for (name, tensor) pairs from wherever they come."""
    out_dir, source_dir = Path(out_dir), Path(source_dir)
    parts, shard, size = [], {}, 0

    def write():
        parts.append((out_dir / f"part-{len(parts)}", list(shard)))
        write_tensors(shard, parts[-1][0])
        shard.clear()

    total = 0
    for name, tensor in tensors:
        tensor = tensor.to("cpu", dtype).contiguous()
        if shard and size + tensor.nbytes > shard_bytes:
            write()
            size = 0
        shard[name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    write()
    names = (
        [f"model-{n:05d}-of-{len(parts):05d}.safetensors" for n in range(1, len(parts) + 1)]
        if len(parts) > 1
        else ["model.safetensors"]
    )
    for name, (path, _) in zip(names, parts):
        path.rename(out_dir / name)
    if len(parts) > 1:
        weight_map = {tensor: name for name, (_, held) in zip(names, parts) for tensor in held}
        (out_dir / INDEX).write_text(
            json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1)
        )
    config = read_json(source_dir / "config.json")
    config["dtype" if "dtype" in config else "torch_dtype"] = str(dtype).removeprefix(
        "torch."
    )  # transformers 5 renamed it
    (out_dir / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    copy_tokenizer(source_dir, out_dir)


def copy_tokenizer(source_dir, out_dir):
    """Tokenizer and generation files, those that there are."""
    for name in COMPANIONS:
        if (Path(source_dir) / name).exists():
            shutil.copyfile(Path(source_dir) / name, Path(out_dir) / name)
