"""The fused head's matrix products, by the vendor's library."""

import functools

import torch
from torch import Tensor

from kernels.common import on_gpu

WIDENED = 4096  # vocabulary rows widened to float32 at a time


@functools.cache
def residual_is_exact(dtype: torch.dtype) -> bool:
    """Does addmm of this CPU add before it rounds?

    Then x y and its rounding error are two products in `dtype` instead of one in float32.
    """
    if dtype != torch.bfloat16:  # float16 would overflow
        return False
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 96, generator=g).to(dtype)
    y = torch.randn(96, 128, generator=g).to(dtype)
    rounded = torch.mm(-x, y)
    exact = x.double() @ y.double()
    error = torch.addmm(rounded, x, y).double() - rounded - exact
    return bool((error.abs() < 2e-5 * exact.abs().max()).all())


def logits(hidden_ND: Tensor, weight_VD: Tensor, out_NV: Tensor, half_NV: Tensor | None) -> None:
    """out = hidden W^T in float32; half_NV: a buffer in the head's dtype, if there is one.

    Never rounded to half precision: bfloat16 logits would bias the KL by up to 2.7e-3 nats a token.
    On a CPU bfloat16 operands give 16 significant bits: the rounded product, then what the rounding
    lost, both by the bfloat16 units.
    """
    half = weight_VD.dtype != torch.float32 and hidden_ND.dtype == weight_VD.dtype
    if half and on_gpu(hidden_ND) and hasattr(torch.ops.aten.mm, "dtype_out"):
        torch.ops.aten.mm.dtype_out(hidden_ND, weight_VD.T, torch.float32, out=out_NV)
        return

    on_cpu = half and half_NV is not None and not on_gpu(hidden_ND)
    if on_cpu and residual_is_exact(weight_VD.dtype):
        torch.mm(-hidden_ND, weight_VD.T, out=half_NV)
        out_NV.copy_(half_NV)
        lost_NV = half_NV.addmm_(hidden_ND, weight_VD.T)
        torch.sub(lost_NV, out_NV, out=out_NV)
        return

    # Operands of two dtypes, or a library without the above: float32, a part of the head at a time.
    step = weight_VD.shape[0] if weight_VD.dtype == torch.float32 else WIDENED
    wide_ND = hidden_ND.float()
    for start in range(0, weight_VD.shape[0], step):
        at = slice(start, start + step)
        torch.mm(wide_ND, weight_VD[at].float().T, out=out_NV[:, at])


def both_logits(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    ref_hidden_ND: Tensor | None,
    ref_weight_VD: Tensor | None,
    out_MV: Tensor,
    half_MV: Tensor | None,
) -> None:
    """Policy logits above reference logits; ref_weight_VD None: a shared head.

    On CUDA a shared head is read once, by one product of both. On a CPU two products of one shape:
    there a row's bits depend on its place in the product, and equal models must give a KL of
    exactly 0.
    """
    n = len(hidden_ND)
    if ref_hidden_ND is None:
        logits(hidden_ND, weight_VD, out_MV, half_MV)
        return
    if ref_weight_VD is None and on_gpu(hidden_ND) and ref_hidden_ND.dtype == hidden_ND.dtype:
        logits(torch.cat((hidden_ND, ref_hidden_ND)), weight_VD, out_MV, half_MV)
        return

    policy_half_NV = None
    reference_half_NV = None
    if half_MV is not None:
        policy_half_NV = half_MV[:n]
        reference_half_NV = half_MV[n:]
    ref_head_VD = weight_VD if ref_weight_VD is None else ref_weight_VD
    logits(hidden_ND, weight_VD, out_MV[:n], policy_half_NV)
    logits(ref_hidden_ND, ref_head_VD, out_MV[n:], reference_half_NV)
