"""Safetensors files of a Hugging Face directory: which tensor lies where, reading and writing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from model.errors import InputError
from model.files import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")  # what safetensors calls the types that weights are read in


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file, mapped, read tensor by tensor.

    A missing, unreadable or cut file is an InputError that names it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise InputError(_not_there(path)) from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); expected a safetensors file"
        ) from error
    except SafetensorError as error:
        raise InputError(
            f"{path}: not a whole safetensors file ({error}); it may be cut short: copy it again"
        ) from error


def _not_there(path: Path) -> str:
    """The message for a missing file; older formats in its place are named."""
    pickles = sorted(file.name for file in path.parent.glob("*.bin"))
    if pickles:
        return (
            f"{path}: no such file; {pickles[0]} beside it is a pickle, which is not read here: "
            "save the model again as safetensors"
        )
    return f"{path}: no such file; the index or the directory is incomplete: copy the model again"


def write_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """A safetensors file. A disk that is full or gone is an InputError that names the file."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise InputError(
            f"{path}: could not be written ({error}); make room and start the same command again"
        ) from error


def tensor_files(model_dir: str | Path) -> dict[str, Path]:
    """{tensor name: file}, read from the index or from the one file's header.

    Raises InputError for an index that is none, and for one that lies beside a whole
    model.safetensors but names other files: one of the two is of another model.
    """
    model_dir = Path(model_dir)
    index, single = model_dir / INDEX, model_dir / SINGLE
    if not index.exists():
        with opened(single) as file:
            return dict.fromkeys(file.keys(), single)
    files = _read_index(index)
    if single.exists() and set(files.values()) != {single}:
        raise InputError(
            f"{model_dir}: both {SINGLE} and {INDEX}, which names other files; one of them is left "
            "over from another model: delete it"
        )
    return files


def _read_index(index: Path) -> dict[str, Path]:
    """The weight_map of an index: {tensor name: file beside the index}."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise InputError(f"{index}: no weight_map; expected {{tensor name: file name}}")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file or file in (".", "..") or "/" in file:
            raise InputError(
                f"{index}: {name!r:.100} is in {file!r:.100}; expected the name of a safetensors "
                "file beside the index"
            )
    return {name: index.parent / file for name, file in weight_map.items()}


def read_tensor(model_dir: str | Path, name: str) -> torch.Tensor:
    """One tensor by its Hugging Face name. Raises InputError if there is none."""
    path = tensor_files(model_dir).get(name)
    if path is None:
        raise InputError(f"{model_dir}: the tensor {name} is missing")
    with opened(path) as file:
        return read_rows(file, name, path)


def read_rows(
    file: Any,
    name: str,
    path: Path,
    shape: torch.Size | None = None,
    kept: tuple[int, int] | None = None,
) -> torch.Tensor:
    """A tensor of an open file, or its rows kept[0] to kept[1].

    Raises InputError: not there, another shape than `shape`, no floats, not finite.
    """
    if name not in file.keys():
        raise InputError(f"{path}: the tensor {name} is missing, though the index names it here")
    rows = file.get_slice(name)
    stored_shape = rows.get_shape()
    if shape is not None and tuple(stored_shape) != tuple(shape):
        raise InputError(
            f"{path}: {name} has shape {stored_shape}; config.json makes it {list(shape)}"
        )
    if rows.get_dtype() not in FLOATS:
        raise InputError(
            f"{path}: {name} is stored as {rows.get_dtype()}; expected one of {', '.join(FLOATS)}: "
            "quantized models are not read, get the model they were made from"
        )
    whole_tensor = kept is None or kept == (0, stored_shape[0])
    tensor = file.get_tensor(name) if whole_tensor else rows[kept[0] : kept[1]]
    check_finite(tensor, name, path)
    return tensor


def check_finite(tensor: torch.Tensor, name: str, path: Path) -> None:
    """Raises InputError for a tensor with NaN or infinity in it."""
    # One pass without a mask: a sum of finite numbers is only seldom beyond float32.
    if not tensor.sum(dtype=torch.float32).isfinite() and not tensor.isfinite().all():
        raise InputError(
            f"{path}: {name} holds NaN or infinity; the run that wrote it overflowed or the file "
            "is damaged: copy it again, or use an earlier checkpoint"
        )
