"""rms_norm: rows divided by their root mean square, times a weight.

    r = (mean x^2 + eps)^(-1/2)    n = x r    y = w n
    dn = w dy    dx = r (dn - n mean(dn n))    dw = sum over rows of dy n
    (means over the D elements of a row)

Letters: N rows (every axis of x but the last), D width, P programs of the backward. Everything on
chip is float32 and y is rounded once, as in torch's rms_norm. (Hugging Face's Llama rounds n as
well, before it multiplies.) The backward keeps x, w and r.
"""

import torch
import torch.nn.functional as F
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

WIDEST = 16384  # a row stays on chip

# Programs that share the rows of a trained weight's backward: a constant, so that no chip sums in
# an order of its own
PROGRAMS = 512


def reference(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """The same in torch; any device, also float64."""
    return F.rms_norm(x, x.shape[-1:], weight_D, eps)


# Kernels


@triton.jit
def rms_norm_forward(
    X,  # [N, D], rows x_step apart
    W,  # [D]
    Y,  # [N, D]
    RSTD,  # float32 [N]: r
    x_step,
    D,
    eps,
    BLOCK: tl.constexpr,
):
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    x = tl.load(X + row * x_step + d, mask=d < D, other=0.0).to(tl.float32)
    w = tl.load(W + d, mask=d < D, other=0.0).to(tl.float32)
    r = tl.rsqrt(tl.sum(x * x, 0) / D + eps)
    tl.store(Y + row * D + d, (x * r * w).to(Y.dtype.element_ty), mask=d < D)
    tl.store(RSTD + row, r)


@triton.jit(do_not_specialize=["N", "rows"])
def rms_norm_backward(
    DY,  # [N, D], rows dy_step apart
    X,  # [N, D], rows x_step apart
    W,  # [D]
    RSTD,  # float32 [N]: r
    DX,  # [N, D]
    PART,  # float32 [P, D]: each program's part of dw; not written without TRAIN
    dy_step,
    x_step,
    N,
    D,
    rows,  # of a program, in order
    TRAIN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`rows` rows."""
    program = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    dw = tl.zeros((BLOCK,), tl.float32)
    for row in range(program * rows, tl.minimum(program * rows + rows, N)):
        dy = tl.load(DY + row * dy_step + d, mask=d < D, other=0.0).to(tl.float32)
        r = tl.load(RSTD + row)
        n = tl.load(X + row * x_step + d, mask=d < D, other=0.0).to(tl.float32) * r
        w = tl.load(W + d, mask=d < D, other=0.0).to(tl.float32)
        mean = tl.sum(dy * w * n, 0) / D
        # Too wide to hold dy, n and dw through the sum: read the row again.
        if TRAIN and BLOCK > 8192:
            tl.debug_barrier()
            dy = tl.load(DY + row * dy_step + d, mask=d < D, other=0.0).to(tl.float32)
            n = tl.load(X + row * x_step + d, mask=d < D, other=0.0).to(tl.float32) * r
            w = tl.load(W + d, mask=d < D, other=0.0).to(tl.float32)
        if TRAIN:
            dw += dy * n
        dx = r * (dy * w - n * mean)
        tl.store(DX + row * D + d, dx.to(DX.dtype.element_ty), mask=d < D)
    if TRAIN:
        tl.store(PART + program * D + d, dw, mask=d < D)


# Launchers


def options(D: int) -> dict[str, int]:
    """Block size and warps for rows of D elements."""
    block = triton.next_power_of_2(D)
    if block <= 1024:
        warps = 4
    elif block <= 4096:
        warps = 8
    else:
        warps = 16
    return {"BLOCK": block, "num_warps": warps}


def _shapes(x_ND: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    N = x_ND.shape[0]
    return x_ND.new_empty(x_ND.shape), x_ND.new_empty(N, dtype=torch.float32)


def run_forward(x_ND: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y_ND and r_N."""
    N, D = x_ND.shape
    y_ND, r_N = _shapes(x_ND, weight_D, eps)
    if N:
        x_ND = rows_of(x_ND)
        launch(
            rms_norm_forward,
            grid=(N,),
            X=x_ND,
            W=weight_D.contiguous(),
            Y=y_ND,
            RSTD=r_N,
            x_step=x_ND.stride(0),
            D=D,
            eps=eps,
            **options(D),
        )
    return y_ND, r_N


_forward = operator("rms_norm", run_forward, _shapes)


def _backward_shapes(
    dy_ND: Tensor, x_ND: Tensor, weight_D: Tensor, r_N: Tensor, train: bool
) -> tuple[Tensor, Tensor]:
    dw_shape = weight_D.shape if train else 0
    return x_ND.new_empty(x_ND.shape), weight_D.new_empty(dw_shape)


def run_backward(
    dy_ND: Tensor, x_ND: Tensor, weight_D: Tensor, r_N: Tensor, train: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x_ND and weight_D; the second is empty for a frozen weight."""
    N, D = x_ND.shape
    dx_ND = x_ND.new_empty(x_ND.shape)
    rows = triton.cdiv(N, PROGRAMS) if train else 1
    programs = triton.cdiv(N, rows) if N else 0
    part_PD = r_N.new_empty(programs if train else 0, D)
    if N:
        dy_ND = rows_of(dy_ND)
        x_ND = rows_of(x_ND)
        launch(
            rms_norm_backward,
            grid=(programs,),
            DY=dy_ND,
            X=x_ND,
            W=weight_D.contiguous(),
            RSTD=r_N,
            DX=dx_ND,
            PART=part_PD if train else r_N,
            dy_step=dy_ND.stride(0),
            x_step=x_ND.stride(0),
            N=N,
            D=D,
            rows=rows,
            TRAIN=train,
            **options(D),
        )
    if not train:
        return dx_ND, weight_D.new_empty(0)
    return dx_ND, part_PD.sum(0).to(weight_D.dtype)


_backward = operator("rms_norm_backward", run_backward, _backward_shapes)


# Autograd


def _save(ctx, inputs, output):
    x_ND, weight_D, _ = inputs
    _, r_N = output
    ctx.mark_non_differentiable(r_N)
    ctx.save_for_backward(x_ND, weight_D, r_N)


def _gradients(ctx, dy_ND, _):
    expect_once("rms_norm")
    train_x, train_weight, _ = ctx.needs_input_grad
    dx_ND, dw_D = _backward(dy_ND, *ctx.saved_tensors, train_weight)
    return dx_ND if train_x else None, dw_D if train_weight else None, None


torch.library.register_autograd("ecliptica::rms_norm", _gradients, setup_context=_save)


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """y of x's shape and dtype, contiguous. Differentiable once, in both tensors; deterministic.

    x: shape [..., D], any row stride. weight_D: of x's dtype and device. eps: >= 0.
    Raises ValueError naming the argument, what was expected and what came.
    """
    expect_plain("rms_norm", "x", x)
    expect_plain("rms_norm", "weight_D", weight_D)
    expect_cuda("rms_norm", "x", x, INTERPRET)
    fits = x.dim() > 0 and 0 < x.shape[-1] <= WIDEST
    expect(fits, "rms_norm", "x", f"rows of 1 to {WIDEST} elements", f"shape {list(x.shape)}")
    shape = f"shape {list(x.shape[-1:])}"
    got = f"shape {list(weight_D.shape)}"
    expect(weight_D.shape == x.shape[-1:], "rms_norm", "weight_D", shape, got)
    expect_alike("rms_norm", "weight_D", weight_D, "x", x)
    expect(isinstance(eps, float) and eps >= 0, "rms_norm", "eps", "a float >= 0", eps)

    if x.dim() == 2:
        y_ND, _ = _forward(x, weight_D, eps)
        return y_ND
    y_ND, _ = _forward(x.reshape(-1, x.shape[-1]), weight_D, eps)
    return y_ND.view(x.shape)


# Bench cases: kernels/tools/bench_layers.py

SIZES = {  # N, D: of SmolLM2-135M, of Llama-3-8B
    "cpu": [(2048, 576)],
    "cuda": [(2048, 4096), (8192, 4096), (16384, 4096)],
}
WEIGHTS = ("frozen", "trained")
fused = rms_norm


def bench_inputs(
    N: int, D: int, dtype: torch.dtype, device: str, weight: str
) -> tuple[Tensor, Tensor, float]:
    """Arguments, of which those that need a gradient get one."""
    x_ND = torch.randn(N, D, device=device, dtype=dtype)
    weight_D = 1 + 0.1 * torch.randn(D, device=device, dtype=dtype)
    return x_ND.requires_grad_(), weight_D.requires_grad_(weight == "trained"), 1e-5
