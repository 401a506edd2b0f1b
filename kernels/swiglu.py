"""swiglu: silu(gate) * up, without keeping silu(gate) for the backward.

    s = 1 / (1 + e^-g)    h = g s    y = h u
    dh = dy u    dg = dh s (1 + g (1 - s))    du = dy h

Letters: N rows (every axis but the last), F width; g, u: gate and up. On chip everything is float32; h and dh are rounded to the
inputs' dtype between the two steps, as torch's silu and product do. The backward keeps g and u alone, and makes s and h again.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.common import INTERPRET, expect, expect_once, expect_plain, operator, rows_of

BLOCK = 1024  # elements of a row that one program takes


def reference(gate, up):
    """The same in torch; any device, also float64."""
    return torch.nn.functional.silu(gate) * up


# Kernels


@triton.jit
def swiglu_forward(G, U, Y, g_step, u_step, F, blocks, BLOCK: tl.constexpr):
    """BLOCK elements of one row: G[N, F] and U[N, F], rows g_step and u_step apart -> Y[N, F]."""
    row, f = (
        tl.program_id(0).to(tl.int64) // blocks,
        tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK),
    )
    g = tl.load(G + row * g_step + f, mask=f < F, other=0.0).to(tl.float32)
    u = tl.load(U + row * u_step + f, mask=f < F, other=0.0).to(tl.float32)
    h = (g / (1 + tl.exp(-g))).to(Y.dtype.element_ty).to(tl.float32)
    tl.store(Y + row * F + f, (h * u).to(Y.dtype.element_ty), mask=f < F)


@triton.jit
def swiglu_backward(DY, G, U, DG, DU, dy_step, g_step, u_step, F, blocks, BLOCK: tl.constexpr):
    """BLOCK elements of one row: DY[N, F], G[N, F], U[N, F], rows dy_step, g_step, u_step apart -> DG[N, F], DU[N, F]."""
    row, f = (
        tl.program_id(0).to(tl.int64) // blocks,
        tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK),
    )
    dy = tl.load(DY + row * dy_step + f, mask=f < F, other=0.0).to(tl.float32)
    g = tl.load(G + row * g_step + f, mask=f < F, other=0.0).to(tl.float32)
    u = tl.load(U + row * u_step + f, mask=f < F, other=0.0).to(tl.float32)
    below = 1 + tl.exp(-g)
    h, s = (g / below).to(DU.dtype.element_ty).to(tl.float32), 1 / below
    dh = (dy * u).to(DG.dtype.element_ty).to(tl.float32)
    tl.store(DG + row * F + f, (dh * s * (1 + g * (1 - s))).to(DG.dtype.element_ty), mask=f < F)
    tl.store(DU + row * F + f, (dy * h).to(DU.dtype.element_ty), mask=f < F)


# Launchers


def _shape(gate_NF, up_NF):
    return gate_NF.new_empty(gate_NF.shape)


@operator("swiglu", _shape)
def _forward(gate_NF: Tensor, up_NF: Tensor) -> Tensor:
    (N, F), y_NF = gate_NF.shape, _shape(gate_NF, up_NF)
    if N and F:
        g, u, blocks = rows_of(gate_NF), rows_of(up_NF), triton.cdiv(F, BLOCK)
        swiglu_forward[(N * blocks,)](g, u, y_NF, g.stride(0), u.stride(0), F, blocks, BLOCK=BLOCK)
    return y_NF


def _backward_shapes(dy_NF, gate_NF, up_NF):
    return gate_NF.new_empty(gate_NF.shape), up_NF.new_empty(up_NF.shape)


@operator("swiglu_backward", _backward_shapes)
def _backward(dy_NF: Tensor, gate_NF: Tensor, up_NF: Tensor) -> tuple[Tensor, Tensor]:
    (N, F), (dg_NF, du_NF) = gate_NF.shape, _backward_shapes(dy_NF, gate_NF, up_NF)
    if N and F:
        dy, g, u, blocks = rows_of(dy_NF), rows_of(gate_NF), rows_of(up_NF), triton.cdiv(F, BLOCK)
        swiglu_backward[(N * blocks,)](
            dy, g, u, dg_NF, du_NF, dy.stride(0), g.stride(0), u.stride(0), F, blocks, BLOCK=BLOCK
        )
    return dg_NF, du_NF


# Autograd


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _gradients(ctx, dy_NF):
    expect_once("swiglu")
    return tuple(
        grad if wanted else None
        for grad, wanted in zip(
            _backward(dy_NF, *ctx.saved_tensors), ctx.needs_input_grad, strict=True
        )
    )


torch.library.register_autograd("ecliptica::swiglu", _gradients, setup_context=_keep)


def swiglu(gate, up):
    """gate and up of one shape [..., F], dtype and device; any row stride. Differentiable once, in both; deterministic.

    Returns silu(gate) * up, contiguous. Raises ValueError naming the argument, what was expected and what came.
    """
    for name, x in (("gate", gate), ("up", up)):
        expect_plain("swiglu", name, x)
    expect(
        gate.is_cuda or INTERPRET,
        "swiglu",
        "gate",
        "a CUDA tensor (or TRITON_INTERPRET=1)",
        str(gate.device),
    )
    expect(gate.dim() > 0, "swiglu", "gate", "at least one axis", "a scalar")
    expect(
        up.shape == gate.shape,
        "swiglu",
        "up",
        f"shape {list(gate.shape)}, as gate",
        f"shape {list(up.shape)}",
    )
    expect(up.dtype == gate.dtype, "swiglu", "up", f"{gate.dtype}, as gate", str(up.dtype))
    expect(
        up.device == gate.device, "swiglu", "up", f"device {gate.device}, as gate", str(up.device)
    )
    if gate.dim() == 2:
        return _forward(gate, up)
    return _forward(
        gate.flatten(0, -2) if gate.dim() > 1 else gate[None],
        up.flatten(0, -2) if up.dim() > 1 else up[None],
    ).view(gate.shape)


# Bench cases: kernels/bench_layers.py

SIZES = {
    "cpu": [(2048, 1536)],
    "cuda": [(2048, 14336), (8192, 14336), (16384, 14336)],
}  # N, F: of SmolLM2-135M, of Llama-3-8B
WEIGHTS = ("-",)  # it has none
fused = swiglu


def bench_inputs(N, F, dtype, device, weight):
    """Arguments, of which those that need a gradient get one."""
    return tuple(torch.randn(N, F, device=device, dtype=dtype).requires_grad_() for _ in range(2))
