"""What there is to compile: every kernel, as its launcher launches it, on shapes alone."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.common import FLOATS, Launch, recording

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS}
POINTER = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
}
# Rows: a number that is no multiple of 16. About Llama-3-8B's head, in full slices.
ROWS, WIDTH, VOCABULARY = 1001, 4096, 31 * 4096
WORKSPACE = 64 << 20


@dataclass(frozen=True)
class Case:
    """A kernel and its launch, on shapes."""

    name: str
    launch: Launch


def cases(dtypes: Iterable[torch.dtype] = FLOATS) -> list[Case]:
    """Every kernel, in every type and variant that its launcher can choose on a GPU."""
    by_name: dict[str, Case] = {}
    for dtype in dtypes:

        def record(launch: Launch, dtype: torch.dtype = dtype) -> None:
            name = variant_name(launch, dtype)
            by_name.setdefault(name, Case(name, launch))

        with recording(record):
            for call in [*head_calls(dtype), *layer_calls(dtype)]:
                call()
    return list(by_name.values())


def variant_name(launch: Launch, dtype: torch.dtype) -> str:
    """The kernel, the dtype, the flags that are set, and the block if it has one."""
    arguments = launch.arguments
    pointers = {x.dtype for x in arguments.values() if isinstance(x, Tensor)}
    one_type = dtype if dtype in pointers else torch.float32
    flags = [name.lower() for name, value in arguments.items() if value is True]
    blocks = [str(arguments["BLOCK"])] if "BLOCK" in arguments else []
    return " ".join([launch.kernel.__name__, POINTER[one_type][1:], *flags, *blocks])


def head_calls(dtype: torch.dtype) -> Iterator[Callable[[], Any]]:
    """The fused head: log-prob alone, a shared head, two heads; a frozen head, a trained one."""
    from kernels.head import operators
    from kernels.head.rows import Wanted

    def matrix(rows: int) -> Tensor:
        return torch.empty(rows, WIDTH, dtype=dtype, device="meta")

    index_R = torch.empty(ROWS, dtype=torch.int64, device="meta")
    hidden_TD = matrix(ROWS)
    weight_VD = matrix(VOCABULARY)
    policy = (hidden_TD, weight_VD, index_R, index_R, index_R, ROWS)
    references = [(None, None), (matrix(ROWS), None), (matrix(ROWS), matrix(VOCABULARY))]
    for reference in references:
        streamed = (*reference, "triton-stream", WORKSPACE, Wanted.NONE)
        yield lambda options=streamed: operators.run_forward(*policy, *options)
    for reference in references[:2]:
        for backend, wanted in itertools.product(("triton-chunk", "triton-sliced"), Wanted):
            options = (*reference, backend, WORKSPACE, wanted)
            yield lambda options=options: operators.run_forward(*policy, *options)

    grad_S = torch.empty(ROWS, device="meta")
    table_5R = torch.empty(5, ROWS, device="meta")
    wide_RD = torch.empty(ROWS, WIDTH, device="meta")
    saved = (table_5R, wide_RD, wide_RD, "triton-chunk", WORKSPACE)
    for reference in references[:2]:
        for wanted in (Wanted.NONE, Wanted.BOTH):
            options = (*reference, *saved, wanted, wanted == Wanted.NONE)
            yield lambda options=options: operators.run_backward(
                grad_S, grad_S, *policy[:5], *options
            )


def layer_calls(dtype: torch.dtype) -> Iterator[Callable[[], Any]]:
    """RMSNorm at its two largest blocks, the larger reading its rows twice if trained; SwiGLU; RoPE
    there and back."""
    from kernels import rms_norm, rope, swiglu

    def matrix(width: int) -> Tensor:
        return torch.empty(ROWS, width, dtype=dtype, device="meta")

    r_N = torch.empty(ROWS, device="meta")
    widest_ND = matrix(rms_norm.WIDEST)
    yield lambda: rms_norm.run_forward(widest_ND, widest_ND[0], 1e-5)
    for x_ND, train in (
        (widest_ND, False),
        (widest_ND, True),
        (matrix(rms_norm.WIDEST // 2), True),
    ):
        yield lambda x_ND=x_ND, train=train: rms_norm.run_backward(x_ND, x_ND, x_ND[0], r_N, train)
    x_NF = matrix(14336)
    yield lambda: swiglu.run_forward(x_NF, x_NF)
    yield lambda: swiglu.run_backward(x_NF, x_NF, x_NF)

    x_THE = torch.empty(ROWS, 32, 128, dtype=dtype, device="meta")
    for back in (False, True):
        yield lambda back=back: rope.run(x_THE, x_THE[:, 0], x_THE[:, 1], back)
