"""rope: rotate-half rotary embedding of every head, each token by its own angles.

    a, b = the halves of a head    y = (a cos - b sin, b cos + a sin)
    da, db = (dya cos + dyb sin, dyb cos - dya sin)

Letters: T tokens, H heads, E head width. Both halves of a row of the tables are the same angles, so
that the first is read. On chip everything is float32; the two products are rounded to the inputs'
dtype before they are added, as torch does, which makes it of six operations. The backward is the
same kernel with the angle reversed, and keeps the tables alone.
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
)

WIDEST = 1024  # half a head stays on chip
ELEMENTS = 2048  # of each half that one program takes: some heads of a token


def reference(x_THE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """The same in torch; any device, also float64."""
    first, second = x_THE.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x_THE * cos_TE[:, None] + turned * sin_TE[:, None]


# Kernels


@triton.jit
def rounded(x, Y):
    """x as a number of Y's dtype, in float32."""
    return x.to(Y.dtype.element_ty).to(tl.float32)


@triton.jit(do_not_specialize=["blocks"])
def rope_turn(
    X,  # [T, H, E], tokens x_step apart, heads x_head apart
    COS,  # [T, E], rows cos_step apart
    SIN,  # [T, E], rows sin_step apart
    Y,  # [T, H, E]
    x_step,
    x_head,
    cos_step,
    sin_step,
    H,
    HALF,  # E / 2
    blocks,  # of a token's heads
    BACK: tl.constexpr,  # turn the other way: the backward
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """HEADS heads of one token."""
    token = tl.program_id(0).to(tl.int64) // blocks
    h = tl.program_id(0) % blocks * HEADS + tl.arange(0, HEADS)
    e = tl.arange(0, BLOCK)
    inside = (h < H)[:, None] & (e < HALF)[None, :]
    cos = tl.load(COS + token * cos_step + e, mask=e < HALF, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(SIN + token * sin_step + e, mask=e < HALF, other=0.0).to(tl.float32)[None, :]
    if BACK:
        sin = -sin
    x = X + token * x_step + h[:, None] * x_head + e[None, :]
    a = tl.load(x, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x + HALF, mask=inside, other=0.0).to(tl.float32)
    first = rounded(a * cos, Y) - rounded(b * sin, Y)
    second = rounded(b * cos, Y) + rounded(a * sin, Y)
    y = Y + (token * H + h[:, None]) * (2 * HALF) + e[None, :]
    tl.store(y, first.to(Y.dtype.element_ty), mask=inside)
    tl.store(y + HALF, second.to(Y.dtype.element_ty), mask=inside)


# Launchers


def _shape(x_THE: Tensor, cos_TE: Tensor, sin_TE: Tensor, back: bool) -> Tensor:
    return x_THE.new_empty(x_THE.shape)


def run(x_THE: Tensor, cos_TE: Tensor, sin_TE: Tensor, back: bool) -> Tensor:
    """Every head turned; back: by the reversed angles."""
    T, H, E = x_THE.shape
    y_THE = _shape(x_THE, cos_TE, sin_TE, back)
    if not x_THE.numel():
        return y_THE

    # Elements of a head are neighbours; tokens and heads may be any distance apart.
    if x_THE.stride(2) != 1:
        x_THE = x_THE.contiguous()
    cos_TE, sin_TE = (x if x.stride(1) == 1 else x.contiguous() for x in (cos_TE, sin_TE))
    block = triton.next_power_of_2(E // 2)
    heads = min(triton.next_power_of_2(H), max(1, ELEMENTS // block))
    blocks = triton.cdiv(H, heads)
    launch(
        rope_turn,
        grid=(T * blocks,),
        X=x_THE,
        COS=cos_TE,
        SIN=sin_TE,
        Y=y_THE,
        x_step=x_THE.stride(0),
        x_head=x_THE.stride(1),
        cos_step=cos_TE.stride(0),
        sin_step=sin_TE.stride(0),
        H=H,
        HALF=E // 2,
        blocks=blocks,
        BACK=back,
        HEADS=heads,
        BLOCK=block,
    )
    return y_THE


_turn = operator("rope", run, _shape)


# Autograd


def _save(ctx, inputs, output):
    _, cos_TE, sin_TE, back = inputs
    ctx.back = back
    ctx.save_for_backward(cos_TE, sin_TE)


def _gradients(ctx, dy_THE):
    expect_once("rope")
    return _turn(dy_THE, *ctx.saved_tensors, not ctx.back), None, None, None


torch.library.register_autograd("ecliptica::rope", _gradients, setup_context=_save)


def rope(x_THE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """y of x's shape and dtype, contiguous. Differentiable once, in x; deterministic.

    x_THE: shape [T, H, E], E even, any strides. cos_TE, sin_TE: [T, E], of x's dtype and device,
    the two halves of a row alike; they need no gradient.
    Raises ValueError naming the argument, what was expected and what came.
    """
    expect_plain("rope", "x_THE", x_THE)
    expect_cuda("rope", "x_THE", x_THE, INTERPRET)
    got = f"shape {list(x_THE.shape)}"
    even = x_THE.dim() == 3 and 0 < x_THE.shape[2] <= 2 * WIDEST and x_THE.shape[2] % 2 == 0
    wanted = f"three axes, the last even and at most {2 * WIDEST}"
    expect(even, "rope", "x_THE", wanted, got)
    T, _, E = x_THE.shape
    for name, table_TE in (("cos_TE", cos_TE), ("sin_TE", sin_TE)):
        expect_plain("rope", name, table_TE)
        fits = table_TE.shape == (T, E)
        expect(fits, "rope", name, f"shape {[T, E]}", f"shape {list(table_TE.shape)}")
        expect_alike("rope", name, table_TE, "x_THE", x_THE)
        expect(not table_TE.requires_grad, "rope", name, "no gradient", "one that needs it")
    return _turn(x_THE, cos_TE, sin_TE, False)


# Bench cases: kernels/tools/bench_layers.py

SIZES = {  # T, H x E: of SmolLM2-135M, of Llama-3-8B
    "cpu": [(2048, 576)],
    "cuda": [(2048, 4096), (8192, 4096), (16384, 4096)],
}
WEIGHTS = ("-",)  # it has none
HEAD_WIDTHS = {576: 64, 4096: 128}
fused = rope


def bench_inputs(
    T: int, width: int, dtype: torch.dtype, device: str, weight: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments, of which x needs a gradient."""
    E = HEAD_WIDTHS.get(width, 128)
    x_THE = torch.randn(T, width // E, E, device=device, dtype=dtype)
    angle_TE = torch.rand(T, E // 2, device=device).repeat(1, 2)
    return x_THE.requires_grad_(), angle_TE.cos().to(dtype), angle_TE.sin().to(dtype)
