"""What the kernels share: registering an operator, launching a kernel, errors of one line."""

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)

# Triton's own switch: its kernels run on the CPU, slowly
INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"

# Fixed here and not left to Triton's version: speed and bits hang on it
LAUNCH_OPTIONS = {"enable_fp_fusion": True}


def operator(name: str, function: Callable, shapes: Callable) -> Callable:
    """`function` registered as ecliptica::name, which torch.compile takes whole.

    shapes: the same arguments to empty results of the right shapes.
    (torch.library.custom_op would import the compiler at the first call: 65 MiB.)
    """
    schema = torch.library.infer_schema(function, mutates_args=())
    torch.library.define(f"ecliptica::{name}", schema)
    torch.library.impl(f"ecliptica::{name}", "CompositeExplicitAutograd", function)
    torch.library.register_fake(f"ecliptica::{name}", shapes)
    return getattr(torch.ops.ecliptica, name).default


@dataclass(frozen=True)
class Launch:
    """A kernel, its grid, and its arguments and options by name."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]


_recorders: list[Callable[[Launch], None]] = []


def launch(kernel: Any, grid: tuple[int, ...], **arguments: Any) -> None:
    """Run a Triton kernel on `grid`; within `recording`, write it down instead."""
    if _recorders:
        _recorders[-1](Launch(kernel, grid, arguments))
        return
    kernel[grid](**arguments, **LAUNCH_OPTIONS)


@contextmanager
def recording(record: Callable[[Launch], None]) -> Iterator[None]:
    """Hand launches to `record` instead of a GPU: for tensors on the meta device, shapes alone."""
    _recorders.append(record)
    try:
        yield
    finally:
        _recorders.pop()


def on_gpu(x: Tensor) -> bool:
    """On a CUDA device, or on the meta device, where shapes stand for one (see `recording`)."""
    return x.is_cuda or x.is_meta


def expect(condition: bool, function: str, name: str, expected: Any, got: Any) -> None:
    """ValueError of one line, unless `condition`."""
    if not condition:
        raise ValueError(f"{function}: {name}: expected {expected}, got {got}")


def expect_tensor(function: str, name: str, x: Any) -> None:
    """A tensor, not a DTensor."""
    kind = type(x).__name__
    expect(isinstance(x, Tensor), function, name, "a tensor", kind)
    plain = not hasattr(x, "device_mesh")
    remedy = "a plain tensor (gather a sharded one first: full_tensor())"
    expect(plain, function, name, remedy, kind)


def expect_plain(function: str, name: str, x: Any) -> None:
    """A tensor, not a DTensor, of a dtype that the kernels take."""
    expect_tensor(function, name, x)
    expect(x.dtype in FLOATS, function, name, "float32, bfloat16 or float16", str(x.dtype))


def expect_cuda(function: str, name: str, x: Tensor, interpret: bool) -> None:
    """A CUDA tensor, or any while Triton's interpreter runs its kernels on the CPU."""
    where = "a CUDA tensor (or TRITON_INTERPRET=1)"
    expect(x.is_cuda or interpret, function, name, where, str(x.device))


def expect_alike(function: str, name: str, x: Tensor, other: str, y: Tensor) -> None:
    """x of y's dtype and device; `other` is y's name."""
    expect(x.dtype == y.dtype, function, name, f"{y.dtype}, as {other}", str(x.dtype))
    expect(x.device == y.device, function, name, f"device {y.device}, as {other}", str(x.device))


def expect_once(function: str) -> None:
    """For a backward: gradients are on there only to be differentiated again, which ours cannot."""
    once = not torch.is_grad_enabled()
    expect(once, function, "create_graph", "False, since it is differentiable once", "True")


def rows_of(x_ND: Tensor) -> Tensor:
    """x_ND itself if the elements of a row are neighbours, whatever the row stride; else a copy."""
    neighbours = x_ND.stride(1) == 1 or x_ND.shape[1] == 1
    return x_ND if neighbours else x_ND.contiguous()


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line; exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {self.prog}: {' '.join(message.split())}; see {self.prog} --help\n")
