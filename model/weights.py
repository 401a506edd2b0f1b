"""Hugging Face layout in and out: config.json and safetensors, one file or an index with shards."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from model.config import load_config
from model.errors import InputError
from model.files import read_json
from model.llama import Llama
from model.shards import assign, kept_rows
from model.tensors import INDEX, SINGLE, opened, read_rows, tensor_files, write_tensors

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
DERIVED = ("rotary_emb.inv_freq",)  # buffers that old exports store and that the model computes

# What travels with a model into its exports, as patterns of file names: tokenizers of every kind,
# chat templates, generation settings, and the licences that ask to be passed on.
COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "*.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)

# An edit of tensors while they are read: merged(name, rows, first) -> rows, the first of them row
# `first` of the tensor `name`.
Edit = Callable[[str, torch.Tensor, int], torch.Tensor]


# In


def meta_model(model_dir: str | Path, dtype: torch.dtype = torch.float32) -> Llama:
    """The frozen Llama of a directory on the meta device: shapes and names, no storage.

    For `fill`.
    """
    with torch.device("meta"):
        model = Llama(load_config(model_dir), dtype)
    return model.requires_grad_(False).eval()


def load_model(
    model_dir: str | Path,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    param_dtype: torch.dtype | None = None,
) -> Llama:
    """A frozen Llama from a Hugging Face directory, in evaluation mode.

    dtype: what it computes in; param_dtype: what it is stored in (None: dtype). Built on the meta
    device and filled tensor by tensor from the mapped file: never a second full copy. Raises
    InputError naming tensors that are missing, extra, misshapen, not finite or no floats.
    """
    return fill(meta_model(model_dir, dtype), model_dir, device, param_dtype)


def fill(
    model: Llama,
    model_dir: str | Path,
    device: str = "cpu",
    param_dtype: torch.dtype | None = None,
    merged: Edit | None = None,
) -> Llama:
    """Read the tensors of `model_dir` into a meta model, plain or sharded.

    Of a DTensor each rank reads the rows that it keeps. param_dtype: what they are stored in (None:
    the dtype the model computes in). merged: an edit of the rows read (model/lora.py:
    adapter_rows); None: as they are. What was added to the model is left out.
    """
    parameters = {
        file_name(name): (name, parameter)
        for name, parameter in model.named_parameters()
        if not is_added(name)
    }
    files = _files_that_fit(parameters.keys(), model_dir, model.config.tie_word_embeddings)
    stored = param_dtype or model.dtype

    # File by file, so that each is opened once.
    for path in sorted(set(files.values())):
        names = sorted(name for name, file in files.items() if file == path)
        with opened(path) as file:
            _check_nothing_else(file, path, names)
            for name in names:
                place, parameter = parameters[name]
                first, end = kept_rows(parameter)
                rows = read_rows(file, name, path, parameter.shape, (first, end))
                if merged:
                    rows = merged(name, rows, first)
                assign(model, place, rows.to(device=device, dtype=stored))
    return model


def _files_that_fit(names: Iterable[str], model_dir: str | Path, tied: bool) -> dict[str, Path]:
    """tensor_files, less what the model derives. Raises InputError unless they are `names`."""
    files = {
        name: path for name, path in tensor_files(model_dir).items() if not name.endswith(DERIVED)
    }
    if tied and HEAD in files and EMBEDDING in files:
        _check_repeated_head(files, model_dir)
        files.pop(HEAD)
    expected = set(names)
    missing = sorted(expected - files.keys())
    extra = sorted(files.keys() - expected)
    if missing or extra:
        difference = f"{len(extra)} not of this model (first: {extra[0] if extra else None})"
        if missing:
            difference = f"{len(missing)} missing (first: {missing[0]})"
        raise InputError(
            f"{model_dir}: tensors do not match config.json: {difference}; expected "
            f"{len(expected)} tensors"
        )
    return files


def _check_repeated_head(files: dict[str, Path], model_dir: str | Path) -> None:
    """Some exports repeat the tied head. One that differs contradicts config.json."""
    tensors = []
    for name in (EMBEDDING, HEAD):
        with opened(files[name]) as file:
            tensors.append(read_rows(file, name, files[name]))
    if not torch.equal(*tensors):
        raise InputError(
            f"{model_dir}: config.json says tie_word_embeddings, but {HEAD} differs from "
            f"{EMBEDDING}; set tie_word_embeddings to false to use the head, or delete the head"
        )


def _check_nothing_else(file: Any, path: Path, names: list[str]) -> None:
    """A tensor that the index does not name is a sign of an index of another model."""
    stored = {name for name in file.keys() if not name.endswith(DERIVED) and name != HEAD}
    others = stored - set(names)
    if others:
        raise InputError(
            f"{path}: holds {min(others)!r}, which {INDEX} does not place there; the index may be "
            "of another model: copy both again"
        )


def is_added(name: str) -> bool:
    """Whether a parameter is no part of the base model: an adapter's, or a scalar head's."""
    return "lora_" in name or name.startswith("scalar_heads.")


def file_name(name: str) -> str:
    """The Hugging Face name of a parameter: a LoRA layer holds its frozen Linear as `base`."""
    return name.replace(".base.weight", ".weight")


# Out


def save_model(
    model: Llama,
    out_dir: str | Path,
    source_dir: str | Path,
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int = 5 << 30,
) -> None:
    """Write `model` in Hugging Face layout: a directory that transformers and vLLM load.

    Its tensors in `dtype`; config and companion files from `source_dir`. The caller makes the
    write atomic (replaced_directory).
    """
    tensors = (
        (name, parameter.detach())
        for name, parameter in model.named_parameters()
        if not is_added(name)
    )
    save_tensors(tensors, out_dir, source_dir, dtype, shard_bytes)


def save_tensors(
    tensors: Iterable[tuple[str, torch.Tensor]],
    out_dir: str | Path,
    source_dir: str | Path,
    dtype: torch.dtype,
    shard_bytes: int = 5 << 30,
) -> None:
    """save_model for (name, tensor) pairs from wherever they come."""
    out_dir, source_dir = Path(out_dir), Path(source_dir)
    shards = _write_shards(tensors, out_dir, dtype, shard_bytes)

    # The number of shards is part of their names, and known only now.
    names = [SINGLE]
    if len(shards) > 1:
        names = [
            f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)
        ]
        _write_index(out_dir / INDEX, dict(zip(names, shards)))
    for number, name in enumerate(names):
        _part(out_dir, number).rename(out_dir / name)

    config = read_json(source_dir / "config.json")
    dtype_key = "dtype" if "dtype" in config else "torch_dtype"  # transformers 5 renamed it
    config[dtype_key] = str(dtype).removeprefix("torch.")
    (out_dir / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    copy_companions(source_dir, out_dir)


def _write_shards(
    tensors: Iterable[tuple[str, torch.Tensor]], out_dir: Path, dtype: torch.dtype, limit: int
) -> list[dict[str, int]]:
    """Part files of at most `limit` bytes (or one tensor); of each, {tensor name: bytes}."""
    shards = []
    shard = {}

    def write() -> None:
        write_tensors(shard, _part(out_dir, len(shards)))
        shards.append({name: tensor.nbytes for name, tensor in shard.items()})
        shard.clear()

    size = 0
    for name, tensor in tensors:
        tensor = tensor.to("cpu", dtype).contiguous()
        if shard and size + tensor.nbytes > limit:
            write()
            size = 0
        shard[name] = tensor
        size += tensor.nbytes
    write()
    return shards


def _part(out_dir: Path, number: int) -> Path:
    """Where a shard lies until all are written."""
    return out_dir / f"part-{number}"


def _write_index(path: Path, shards: dict[str, dict[str, int]]) -> None:
    """The index of {file name: {tensor name: bytes}}."""
    total = sum(sum(sizes.values()) for sizes in shards.values())
    weight_map = {tensor: name for name, sizes in shards.items() for tensor in sizes}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    path.write_text(json.dumps(index, indent=1))


def copy_companions(source_dir: str | Path, out_dir: str | Path) -> None:
    """Copy the files of COMPANIONS, those that there are."""
    source_dir, out_dir = Path(source_dir), Path(out_dir)
    for pattern in COMPANIONS:
        for path in source_dir.glob(pattern):
            if path.is_file():
                copy = out_dir / path.relative_to(source_dir)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy)
