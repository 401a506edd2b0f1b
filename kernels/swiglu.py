"""swiglu: silu(gate) * up, without keeping silu(gate) for the backward.

    s = 1 / (1 + e^-g)    h = g s    y = h u
    dh = dy u    dg = dh s (1 + g (1 - s))    du = dy h

Letters: N rows (every axis but the last), F width; g, u: gate and up. On chip everything is
float32; h and dh are rounded to the inputs' dtype between the two steps, as torch's silu and
product do. The backward keeps g and u alone, and makes s and h again.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.common import (
    INTERPRET,
    expect,
    expect_alike,
    expect_cuda,
    expect_once,
    expect_plain,
    launch,
    operator,
    rows_of,
)

BLOCK = 1024  # elements of a row that one program takes


def reference(gate: Tensor, up: Tensor) -> Tensor:
    """The same in torch; any device, also float64."""
    return torch.nn.functional.silu(gate) * up


# Kernels


@triton.jit(do_not_specialize=["blocks"])
def swiglu_forward(
    G,  # [N, F], rows g_step apart
    U,  # [N, F], rows u_step apart
    Y,  # [N, F]
    g_step,
    u_step,
    F,
    blocks,  # of a row
    BLOCK: tl.constexpr,
):
    """BLOCK elements of one row."""
    row = tl.program_id(0).to(tl.int64) // blocks
    f = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(G + row * g_step + f, mask=f < F, other=0.0).to(tl.float32)
    u = tl.load(U + row * u_step + f, mask=f < F, other=0.0).to(tl.float32)
    h = (g / (1 + tl.exp(-g))).to(Y.dtype.element_ty).to(tl.float32)
    tl.store(Y + row * F + f, (h * u).to(Y.dtype.element_ty), mask=f < F)


@triton.jit(do_not_specialize=["blocks"])
def swiglu_backward(
    DY,  # [N, F], rows dy_step apart
    G,  # [N, F], rows g_step apart
    U,  # [N, F], rows u_step apart
    DG,  # [N, F]
    DU,  # [N, F]
    dy_step,
    g_step,
    u_step,
    F,
    blocks,  # of a row
    BLOCK: tl.constexpr,
):
    """BLOCK elements of one row."""
    row = tl.program_id(0).to(tl.int64) // blocks
    f = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    dy = tl.load(DY + row * dy_step + f, mask=f < F, other=0.0).to(tl.float32)
    g = tl.load(G + row * g_step + f, mask=f < F, other=0.0).to(tl.float32)
    u = tl.load(U + row * u_step + f, mask=f < F, other=0.0).to(tl.float32)
    below = 1 + tl.exp(-g)
    h = (g / below).to(DU.dtype.element_ty).to(tl.float32)
    s = 1 / below
    dh = (dy * u).to(DG.dtype.element_ty).to(tl.float32)
    dg = dh * s * (1 + g * (1 - s))
    tl.store(DG + row * F + f, dg.to(DG.dtype.element_ty), mask=f < F)
    tl.store(DU + row * F + f, (dy * h).to(DU.dtype.element_ty), mask=f < F)


# Launchers


def _shape(gate_NF: Tensor, up_NF: Tensor) -> Tensor:
    return gate_NF.new_empty(gate_NF.shape)


def run_forward(gate_NF: Tensor, up_NF: Tensor) -> Tensor:
    N, F = gate_NF.shape
    y_NF = _shape(gate_NF, up_NF)
    if N and F:
        g_NF = rows_of(gate_NF)
        u_NF = rows_of(up_NF)
        blocks = triton.cdiv(F, BLOCK)
        launch(
            swiglu_forward,
            grid=(N * blocks,),
            G=g_NF,
            U=u_NF,
            Y=y_NF,
            g_step=g_NF.stride(0),
            u_step=u_NF.stride(0),
            F=F,
            blocks=blocks,
            BLOCK=BLOCK,
        )
    return y_NF


_forward = operator("swiglu", run_forward, _shape)


def _backward_shapes(dy_NF: Tensor, gate_NF: Tensor, up_NF: Tensor) -> tuple[Tensor, Tensor]:
    return gate_NF.new_empty(gate_NF.shape), up_NF.new_empty(up_NF.shape)


def run_backward(dy_NF: Tensor, gate_NF: Tensor, up_NF: Tensor) -> tuple[Tensor, Tensor]:
    N, F = gate_NF.shape
    dg_NF, du_NF = _backward_shapes(dy_NF, gate_NF, up_NF)
    if N and F:
        dy_NF = rows_of(dy_NF)
        g_NF = rows_of(gate_NF)
        u_NF = rows_of(up_NF)
        blocks = triton.cdiv(F, BLOCK)
        launch(
            swiglu_backward,
            grid=(N * blocks,),
            DY=dy_NF,
            G=g_NF,
            U=u_NF,
            DG=dg_NF,
            DU=du_NF,
            dy_step=dy_NF.stride(0),
            g_step=g_NF.stride(0),
            u_step=u_NF.stride(0),
            F=F,
            blocks=blocks,
            BLOCK=BLOCK,
        )
    return dg_NF, du_NF


_backward = operator("swiglu_backward", run_backward, _backward_shapes)


# Autograd


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _gradients(ctx, dy_NF):
    expect_once("swiglu")
    train_gate, train_up = ctx.needs_input_grad
    dg_NF, du_NF = _backward(dy_NF, *ctx.saved_tensors)
    return dg_NF if train_gate else None, du_NF if train_up else None


torch.library.register_autograd("ecliptica::swiglu", _gradients, setup_context=_save)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, contiguous. Differentiable once, in both; deterministic.

    gate, up: one shape [..., F], dtype and device; any row stride.
    Raises ValueError naming the argument, what was expected and what came.
    """
    expect_plain("swiglu", "gate", gate)
    expect_plain("swiglu", "up", up)
    expect_cuda("swiglu", "gate", gate, INTERPRET)
    expect(gate.dim() > 0, "swiglu", "gate", "at least one axis", "a scalar")
    shape = f"shape {list(gate.shape)}, as gate"
    expect(up.shape == gate.shape, "swiglu", "up", shape, f"shape {list(up.shape)}")
    expect_alike("swiglu", "up", up, "gate", gate)

    if gate.dim() == 2:
        return _forward(gate, up)
    if gate.dim() == 1:
        return _forward(gate[None], up[None]).view(gate.shape)
    return _forward(gate.flatten(0, -2), up.flatten(0, -2)).view(gate.shape)


# Bench cases: kernels/tools/bench_layers.py

SIZES = {  # N, F: of SmolLM2-135M, of Llama-3-8B
    "cpu": [(2048, 1536)],
    "cuda": [(2048, 14336), (8192, 14336), (16384, 14336)],
}
WEIGHTS = ("-",)  # it has none
fused = swiglu


def bench_inputs(
    N: int, F: int, dtype: torch.dtype, device: str, weight: str
) -> tuple[Tensor, Tensor]:
    """Arguments, of which those that need a gradient get one."""
    gate_NF = torch.randn(N, F, device=device, dtype=dtype)
    up_NF = torch.randn(N, F, device=device, dtype=dtype)
    return gate_NF.requires_grad_(), up_NF.requires_grad_()
