"""What the kernels share: registering an operator that torch.compile takes whole, and errors of one line."""

import argparse
import os

import torch

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INTERPRET = (
    os.environ.get("TRITON_INTERPRET") == "1"
)  # Triton's own switch: its kernels run on the CPU, slowly


def operator(name, fake):
    """Register a function as ecliptica::name; fake: the same arguments to empty results of the right shapes.
    (torch.library.custom_op would import the compiler at the first call: 65 MiB.)"""

    def register(function):
        torch.library.define(
            f"ecliptica::{name}", torch.library.infer_schema(function, mutates_args=())
        )
        torch.library.impl(f"ecliptica::{name}", "CompositeExplicitAutograd", function)
        torch.library.register_fake(f"ecliptica::{name}", fake)
        return getattr(torch.ops.ecliptica, name).default

    return register


def expect(condition, function, name, expected, got):
    if not condition:
        raise ValueError(f"{function}: {name}: expected {expected}, got {got}")


def expect_plain(function, name, x):
    """A tensor, not a DTensor, of a dtype that the kernels take."""
    expect(isinstance(x, torch.Tensor), function, name, "a tensor", type(x).__name__)
    expect(
        not hasattr(x, "device_mesh"),
        function,
        name,
        "a plain tensor (gather a sharded one first: full_tensor())",
        type(x).__name__,
    )
    expect(x.dtype in FLOATS, function, name, "float32, bfloat16 or float16", str(x.dtype))


def expect_once(function):
    """Called in a backward: there gradients are on only to be differentiated again, which no operator of ours can."""
    expect(
        not torch.is_grad_enabled(),
        function,
        "create_graph",
        "False, since it is differentiable once",
        "True",
    )


def rows_of(x_ND):
    """x_ND itself if the elements of a row are neighbours, whatever the distance between rows; else a copy."""
    return x_ND if x_ND.stride(1) == 1 or x_ND.shape[1] == 1 else x_ND.contiguous()


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line; exit code 2."""

    def error(self, message):
        self.exit(2, f"error: {self.prog}: {' '.join(message.split())}; see {self.prog} --help\n")
