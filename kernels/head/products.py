"""The fused head's matrix products, by the vendor's library."""

import functools

import torch
from torch import Tensor

from kernels.common import on_gpu

WIDENED = 4096  # vocabulary rows widened to float32 at a time

# Of a long product: parts at most, tiles that fill the 132 or more processors of a GPU twice, and
# what the width of a part is a multiple of, so that each begins at 16 bytes
MOST_PARTS = 4
FULL = 256
PART_MULTIPLE = 64


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
    if half and on_gpu(hidden_ND):
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
    ref_hidden_ND: Tensor | None,
    heads: tuple[Tensor, Tensor | None],
    out_MV: Tensor,
    half_MV: Tensor | None,
) -> None:
    """Policy logits above reference logits. heads: the policy's, the reference's; None: the same.

    Always two products of one shape: in one product of both, a row's bits may depend on its place,
    and equal models must give a KL of exactly 0.
    """
    n = len(hidden_ND)
    weight_VD, ref_weight_VD = heads
    policy_half_NV = None
    reference_half_NV = None
    if half_MV is not None:
        policy_half_NV = half_MV[:n]
        reference_half_NV = half_MV[n:]
    logits(hidden_ND, weight_VD, out_MV[:n], policy_half_NV)
    if ref_hidden_ND is not None:
        ref_head_VD = weight_VD if ref_weight_VD is None else ref_weight_VD
        logits(ref_hidden_ND, ref_head_VD, out_MV[n:], reference_half_NV)


def add_product(out_MD: Tensor, x_MW: Tensor, y_WD: Tensor) -> None:
    """out += x y, out in float32: nothing is rounded on the way where the library adds."""
    if x_MW.dtype == torch.float32:
        out_MD.addmm_(x_MW, y_WD)
    elif on_gpu(x_MW):
        torch.ops.aten.addmm.dtype_out(out_MD, x_MW, y_WD, torch.float32, out=out_MD)
    else:
        out_MD += (x_MW @ y_WD).float()


def parts_of(rows: int, columns: int) -> int:
    """In how many parts a long product is taken: enough that tiles of 128 x 256 fill a GPU."""
    tiles = -(-rows // 128) * -(-columns // 256)
    return max(1, min(MOST_PARTS, FULL // tiles))


def wide_product(x_MV: Tensor, y_VD: Tensor) -> Tensor:
    """x y in float32, for a sum as long as the vocabulary and a result of few tiles.

    On a GPU the sum is taken in parts, which are added in order.
    """
    if x_MV.dtype == torch.float32 or not on_gpu(x_MV):
        return (x_MV @ y_VD).float()
    M, V = x_MV.shape
    D = y_VD.shape[1]
    parts = parts_of(M, D)
    width = V // (parts * PART_MULTIPLE) * PART_MULTIPLE
    if parts == 1 or width == 0:
        out_MD = torch.empty(M, D, dtype=torch.float32, device=x_MV.device)
        torch.ops.aten.mm.dtype_out(x_MV, y_VD, torch.float32, out=out_MD)
        return out_MD

    # Parts of one width in one call, then the columns that are left.
    end = parts * width
    sums_PMD = torch.empty(parts, M, D, dtype=torch.float32, device=x_MV.device)
    x_PMW = x_MV[:, :end].unflatten(1, (parts, width)).transpose(0, 1)
    y_PWD = y_VD[:end].unflatten(0, (parts, width))
    torch.ops.aten.bmm.dtype_out(x_PMW, y_PWD, torch.float32, out=sums_PMD)
    if end < V:
        add_product(sums_PMD[-1], x_MV[:, end:], y_VD[end:])
    return sums_PMD.sum(0)
