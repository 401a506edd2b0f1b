"""What a piece of code computes, moves and holds, counted on the meta device: no data, no GPU.

Products, other operations and Triton launches (kernels/common.py: recording) become Events.
"""

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels.common import Launch, recording

# Reads as much of its first argument as it returns.
GATHERS = ("index_select", "gather", "index.Tensor")


@dataclass(frozen=True)
class Event:
    """One launch."""

    name: str
    bytes: int  # read and written
    flops: int = 0
    tiles: tuple[int, int, int] = (0, 0, 0)  # batch, rows, columns of a product
    cached_bytes: int = 0  # read through the L2 cache


@dataclass
class Counts:
    """The events in order, and the most bytes that lived at once."""

    events: list[Event] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def products(self) -> list[Event]:
        return [event for event in self.events if event.flops]


def tensor_bytes(tensors: Any) -> int:
    return sum(x.numel() * x.element_size() for x in tree_leaves(tensors) if isinstance(x, Tensor))


class Counter(TorchDispatchMode):
    """Counts operations on meta tensors, and the storages that they make while they live."""

    def __init__(self, inputs: tuple) -> None:
        super().__init__()
        self.counts = Counts()
        self.living = 0
        tensors = [x for x in tree_leaves(inputs) if isinstance(x, Tensor)]
        self.seen = {x.untyped_storage()._cdata for x in tensors}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        if launches_nothing(function, args, out):
            self.note_storages(out)
            return out
        self.counts.events.append(operation(function, args, kwargs, out))
        self.note_storages(out)
        return out

    def note_storages(self, out: Any) -> None:
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.note_storage(tensor.untyped_storage())

    def note_storage(self, storage: Any) -> None:
        key = storage._cdata
        size = storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.living += size
        self.counts.peak_bytes = max(self.counts.peak_bytes, self.living)
        weakref.finalize(storage, self.drop, key, size)

    def drop(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.living -= size

    def record(self, launch: Launch) -> None:
        self.counts.events.append(launched(launch))


def launches_nothing(function: Any, args: tuple, out: Any) -> bool:
    """Views, and memory that is only allocated."""
    if function.is_view or "empty" in str(function):
        return True
    if not isinstance(out, Tensor) or "out" in function._overloadname:
        return False
    # A conversion to the dtype that it has, or a contiguous tensor made contiguous.
    inputs = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
    in_place = function._schema.is_mutable
    return not in_place and any(x is out for x in inputs)


def operation(function: Any, args: tuple, kwargs: dict, out: Any) -> Event:
    """An operation of torch."""
    name = str(function).removeprefix("aten.")
    inputs = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
    written = tensor_bytes(out)
    if name.split(".")[0] in ("mm", "addmm", "bmm", "baddbmm"):
        *before, x, y = inputs
        *batch, rows, inner = x.shape
        columns = y.shape[-1]
        flops = 2 * math.prod(batch) * rows * inner * columns
        moved = tensor_bytes([before, x, y]) + written
        return Event(name, moved, flops, (math.prod(batch), rows, columns))
    if name.startswith(GATHERS):
        return Event(name, 2 * written + tensor_bytes(inputs[1:]))
    if name.startswith(("zeros", "zero_", "fill", "full", "arange", "new_zeros")):
        return Event(name, written)
    return Event(name, tensor_bytes(inputs) + written)


# Triton's kernels


def statistics_bytes(a: dict[str, Any]) -> int:
    """The logits once, and once more for the Jacobians, which are written."""
    models = 2 if a["HAS_REF"] else 1
    operands = a["LOGP"] + a["KL"]
    written = a["OUT"].element_size()
    return a["N"] * a["P"] * (4 * models + (4 + written) * operands)


def dlogits_bytes(a: dict[str, Any]) -> int:
    models = 2 if a["HAS_REF"] else 1
    return a["POLICY"].numel() * (4 * models + a["OUT"].element_size())


def sum_bytes(a: dict[str, Any]) -> int:
    read = tensor_bytes([a["X"], a["Y"]]) if a["HAS_Y"] else tensor_bytes(a["X"])
    return read + tensor_bytes(a["OUT"])


def slice_bytes(a: dict[str, Any]) -> int:
    models = 2 if a["HAS_REF"] else 1
    operands = a["LOGP"] + a["KL"]
    return a["N"] * a["P"] * (4 * models + a["OUT"].element_size() * operands)


def finish_bytes(a: dict[str, Any]) -> int:
    """A row of the head, and the sums, read and written."""
    sums = 1 + a["KL"]
    return a["SUM_P"].numel() * (8 * sums + a["HEAD"].element_size())


KERNEL_BYTES: dict[str, Callable[[dict[str, Any]], int]] = {
    "logp_kl_statistics": statistics_bytes,
    "logp_kl_dlogits": dlogits_bytes,
    "sum_rows": sum_bytes,
    "slice_logp_kl": slice_bytes,
    "finish_jacobians": finish_bytes,
    # Rows whose scale and shift stay are not touched: the usual case.
    "rescale_sums": lambda a: 8 * a["N"],
    "merge_logp_kl": lambda a: tensor_bytes([a["PART"], a["TABLE"]]),
}


def launched(launch: Launch) -> Event:
    """A kernel of ours."""
    name = launch.kernel.__name__
    if name == "stream_logp_kl":
        return streamed(launch.arguments)
    return Event(name, KERNEL_BYTES[name](launch.arguments))


def streamed(a: dict[str, Any]) -> Event:
    """Each program reads its rows and its span of the head, tile by tile, through the cache."""
    models = 2 if a["HAS_REF"] else 1
    heads = 2 if a["HAS_REF"] and not a["SHARED"] else 1
    flops = models * 2 * a["R"] * a["V"] * a["D"]
    tiles = a["row_blocks"] * math.ceil(a["V"] / a["BV"])
    tile_rows = models * a["BR"] + heads * a["BV"]
    cached = tiles * tile_rows * a["D"] * a["H"].element_size()
    once = tensor_bytes([a["H"], a["W"]]) * heads + tensor_bytes(a["PART"])
    shape = (models, a["R"], a["V"])
    return Event("stream_logp_kl", once, flops, shape, cached_bytes=cached)


def count(function: Callable[..., Any], *arguments: Any) -> Counts:
    """Run `function` on arguments of the meta device."""
    counter = Counter(arguments)
    with counter, recording(counter.record):
        results = function(*arguments)
    # The results live until here.
    del results
    return counter.counts
