"""RMSNorm, RoPE and SwiGLU on a CPU in float32: as few passes over memory as torch allows.

Composed of torch's operators by autograd, each of them reads and writes a row some ten times on its
way forward and back: on a CPU that is the cost, not the arithmetic. Here each is one autograd
function with its backward written out, working in place on tensors that nobody else has seen.
Formulas: kernels/rms_norm.py, kernels/swiglu.py. Values are torch's to rounding, and the same with
and without a gradient, so that policy and reference agree bit for bit where they are equal.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


def suits(x: torch.Tensor) -> bool:
    """Whether these are to be used for `x`: float32 in an eager block on a CPU.

    A compiler joins the passes itself; half precision rounds between them as torch does.
    """
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()


class _RMSNorm(torch.autograd.Function):
    """y = n w, n = x r, r = (mean x^2 + eps)^(-1/2)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        r = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_D, r)
        return (x * r).mul_(weight_D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """dn = w dy, dx = r dn - x r^3 mean(dn x), dw = sum over rows of dy n."""
        x, weight_D, r = ctx.saved_tensors
        dw_D = None
        if ctx.needs_input_grad[1]:
            dw_D = (x * r).mul_(dy).flatten(0, -2).sum(0)
        if not ctx.needs_input_grad[0]:
            return None, dw_D, None
        dn = dy * weight_D
        along_x = torch.linalg.vecdot(dn, x).unsqueeze(-1).div_(x.shape[-1])
        dx = dn.mul_(r).addcmul_(x, along_x.mul_(r.pow(3)), value=-1)
        return dx, dw_D, None


def rms_norm(x: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """x of shape [..., D], at least two axes, normed over the last and multiplied by weight_D."""
    return _RMSNorm.apply(x, weight_D, eps)


class _Rotate(torch.autograd.Function):
    """(a, b) -> (a cos - b sin, b cos + a sin) for the two halves of a head."""

    @staticmethod
    def forward(
        ctx: Any, x_THE: torch.Tensor, cos_TE: torch.Tensor, sin_TE: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(cos_TE, sin_TE)
        return _turned(x_THE, cos_TE, sin_TE, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_THE: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """A rotation's transpose is the rotation back."""
        return _turned(dy_THE, *ctx.saved_tensors, -1), None, None


def _turned(
    x_THE: torch.Tensor, cos_TE: torch.Tensor, sin_TE: torch.Tensor, sign: int
) -> torch.Tensor:
    half = x_THE.shape[-1] // 2
    sin_T1E = sin_TE[:, None, :half]  # both halves of the table are the same angles
    y_THE = x_THE * cos_TE[:, None]
    y_THE[..., :half].addcmul_(x_THE[..., half:], sin_T1E, value=-sign)
    y_THE[..., half:].addcmul_(x_THE[..., :half], sin_T1E, value=sign)
    return y_THE


def rotate(x_THE: torch.Tensor, cos_TE: torch.Tensor, sin_TE: torch.Tensor) -> torch.Tensor:
    """Rotate-half RoPE of every head, [T, H, E]; the tables need no gradient."""
    return _Rotate.apply(x_THE, cos_TE, sin_TE)


class _SwiGLU(torch.autograd.Function):
    """y = silu(g) u. silu(g) is made again in the backward: cheaper than to keep it."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """dg = silu'(g) u dy, du = silu(g) dy."""
        gate, up = ctx.saved_tensors
        dup = F.silu(gate).mul_(dy) if ctx.needs_input_grad[1] else None
        dgate = None
        if ctx.needs_input_grad[0]:
            dgate = torch.ops.aten.silu_backward(dy * up, gate)
        return dgate, dup


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, of one shape."""
    return _SwiGLU.apply(gate, up)
