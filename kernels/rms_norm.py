"""rms_norm: rows divided by their root mean square, times a weight.

    r = (mean x^2 + eps)^(-1/2)    n = x r    y = w n
    dn = w dy    dx = r (dn - n mean(dn n))    dw = sum over rows of dy n         means over the D elements of a row

Letters: N rows (every axis of x but the last), D width, P programs of the backward. Everything on chip is float32 and y is rounded
once, as in torch's rms_norm. (Hugging Face's Llama rounds n as well, before it multiplies.) The backward keeps x, w and r.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.common import INTERPRET, expect, expect_once, expect_plain, operator, rows_of

WIDEST = 16384  # a row stays on chip
PROGRAMS = 512  # that share the rows of a trained weight's backward: a constant, so that no chip sums in an order of its own


def reference(x, weight_D, eps):
    """The same in torch; any device, also float64."""
    return F.rms_norm(x, x.shape[-1:], weight_D, eps)


# Kernels


@triton.jit
def rms_norm_forward(X, W, Y, RSTD, x_step, D, eps, BLOCK: tl.constexpr):
    """One row: X[N, D], its rows x_step apart, and W[D] -> Y[N, D]; r -> RSTD[N], float32."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    x = tl.load(X + row * x_step + d, mask=d < D, other=0.0).to(tl.float32)
    w = tl.load(W + d, mask=d < D, other=0.0).to(tl.float32)
    r = tl.rsqrt(tl.sum(x * x, 0) / D + eps)
    tl.store(Y + row * D + d, (x * r * w).to(Y.dtype.element_ty), mask=d < D)
    tl.store(RSTD + row, r)


@triton.jit
def rms_norm_backward(
    DY, X, W, RSTD, DX, PART, dy_step, x_step, N, D, rows, TRAIN: tl.constexpr, BLOCK: tl.constexpr
):
    """`rows` rows, in order: DY[N, D], X[N, D], W[D], RSTD[N] -> DX[N, D]; with TRAIN their part of dw -> PART[P, D], float32."""
    program = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    dw = tl.zeros((BLOCK,), tl.float32)
    for row in range(program * rows, tl.minimum(program * rows + rows, N)):
        dy = tl.load(DY + row * dy_step + d, mask=d < D, other=0.0).to(tl.float32)
        r = tl.load(RSTD + row)
        n = tl.load(X + row * x_step + d, mask=d < D, other=0.0).to(tl.float32) * r
        w = tl.load(W + d, mask=d < D, other=0.0).to(tl.float32)
        mean = tl.sum(dy * w * n, 0) / D
        if (
            TRAIN and BLOCK > 8192
        ):  # too wide to hold dy, n and dw through the sum: read the row again
            tl.debug_barrier()
            dy = tl.load(DY + row * dy_step + d, mask=d < D, other=0.0).to(tl.float32)
            n = tl.load(X + row * x_step + d, mask=d < D, other=0.0).to(tl.float32) * r
            w = tl.load(W + d, mask=d < D, other=0.0).to(tl.float32)
        if TRAIN:
            dw += dy * n
        tl.store(DX + row * D + d, (r * (dy * w - n * mean)).to(DX.dtype.element_ty), mask=d < D)
    if TRAIN:
        tl.store(PART + program * D + d, dw, mask=d < D)


# Launchers


def options(D):
    block = triton.next_power_of_2(D)
    return {"BLOCK": block, "num_warps": 4 if block <= 1024 else 8 if block <= 4096 else 16}


def _shapes(x_ND, weight_D, eps):
    return x_ND.new_empty(x_ND.shape), x_ND.new_empty(x_ND.shape[0], dtype=torch.float32)


@operator("rms_norm", _shapes)
def _forward(x_ND: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y_ND and r_N."""
    y_ND, r_N = _shapes(x_ND, weight_D, eps)
    (N, D), x_ND = x_ND.shape, rows_of(x_ND)
    if N:
        rms_norm_forward[(N,)](
            x_ND, weight_D.contiguous(), y_ND, r_N, x_ND.stride(0), D, eps, **options(D)
        )
    return y_ND, r_N


def _backward_shapes(dy_ND, x_ND, weight_D, r_N, train):
    return x_ND.new_empty(x_ND.shape), weight_D.new_empty(weight_D.shape if train else 0)


@operator("rms_norm_backward", _backward_shapes)
def _backward(
    dy_ND: Tensor, x_ND: Tensor, weight_D: Tensor, r_N: Tensor, train: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x_ND and weight_D; the second is empty for a frozen weight."""
    (N, D), dx_ND = x_ND.shape, x_ND.new_empty(x_ND.shape)
    rows = triton.cdiv(N, PROGRAMS) if train else 1
    programs = triton.cdiv(N, rows) if N else 0
    part_PD = r_N.new_empty(programs if train else 0, D)
    if N:
        dy_ND, x_ND = rows_of(dy_ND), rows_of(x_ND)
        rms_norm_backward[(programs,)](
            dy_ND, x_ND, weight_D.contiguous(), r_N, dx_ND, part_PD if train else r_N, dy_ND.stride(0), x_ND.stride(0), N, D, rows,
            TRAIN=train, **options(D),
        )  # fmt: skip
    return dx_ND, part_PD.sum(0).to(weight_D.dtype) if train else weight_D.new_empty(0)


# Autograd


def _keep(ctx, inputs, output):
    x_ND, weight_D, _ = inputs
    _, r_N = output
    ctx.mark_non_differentiable(r_N)
    ctx.save_for_backward(x_ND, weight_D, r_N)


def _gradients(ctx, dy_ND, _):
    expect_once("rms_norm")
    train = ctx.needs_input_grad[1]
    dx_ND, dw_D = _backward(dy_ND, *ctx.saved_tensors, train)
    return dx_ND if ctx.needs_input_grad[0] else None, dw_D if train else None, None


torch.library.register_autograd("ecliptica::rms_norm", _gradients, setup_context=_keep)


def rms_norm(x, weight_D, eps):
    """x of shape [..., D], any row stride; weight_D of x's dtype and device; eps >= 0. Differentiable once, in both; deterministic.

    Returns y, contiguous, of x's shape and dtype. Raises ValueError naming the argument, what was expected and what came.
    """
    for name, tensor in (("x", x), ("weight_D", weight_D)):
        expect_plain("rms_norm", name, tensor)
    expect(
        x.is_cuda or INTERPRET,
        "rms_norm",
        "x",
        "a CUDA tensor (or TRITON_INTERPRET=1)",
        str(x.device),
    )
    expect(
        x.dim() > 0 and 0 < x.shape[-1] <= WIDEST,
        "rms_norm",
        "x",
        f"rows of 1 to {WIDEST} elements",
        f"shape {list(x.shape)}",
    )
    expect(
        weight_D.shape == x.shape[-1:],
        "rms_norm",
        "weight_D",
        f"shape {list(x.shape[-1:])}",
        f"shape {list(weight_D.shape)}",
    )
    expect(
        weight_D.dtype == x.dtype, "rms_norm", "weight_D", f"{x.dtype}, as x", str(weight_D.dtype)
    )
    expect(
        weight_D.device == x.device,
        "rms_norm",
        "weight_D",
        f"device {x.device}, as x",
        str(weight_D.device),
    )
    expect(isinstance(eps, float) and eps >= 0, "rms_norm", "eps", "a float >= 0", eps)
    y_ND, _ = _forward(x if x.dim() == 2 else x.reshape(-1, x.shape[-1]), weight_D, eps)
    return y_ND if x.dim() == 2 else y_ND.view(x.shape)


# Bench cases: kernels/bench_layers.py

SIZES = {
    "cpu": [(2048, 576)],
    "cuda": [(2048, 4096), (8192, 4096), (16384, 4096)],
}  # N, D: of SmolLM2-135M, of Llama-3-8B
WEIGHTS = ("frozen", "trained")
fused = rms_norm


def bench_inputs(N, D, dtype, device, weight):
    """Arguments, of which those that need a gradient get one."""
    x_ND, weight_D = (
        torch.randn(N, D, device=device, dtype=dtype),
        1 + 0.1 * torch.randn(D, device=device, dtype=dtype),
    )
    return x_ND.requires_grad_(), weight_D.requires_grad_(weight == "trained"), 1e-5
