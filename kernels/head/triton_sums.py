"""Sums of rows that share an index, in a fixed order and without atomics, in Triton.

    OUT[i] = sum over the rows j with index_j = i, in the order of j, of X[j], or of g_j X[j] + k_j
    Y[j]

Letters: R rows, I indices, D width, S segments.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.common import launch
from kernels.head.rows import Jacobians


@triton.jit
def sum_rows(
    ORDER,  # int64 [R]: the rows, sorted by their index
    OFFSETS,  # int64 [I + 1]: where in ORDER the rows of an index begin
    X,  # float32 [R, D]
    Y,  # float32 [R, D]; not read without HAS_Y
    GRAD_LOGP,  # float32 [S]: X's weight in each segment; not read without WEIGHTED
    GRAD_KL,  # float32 [S]: Y's weight in each segment; not read without HAS_Y
    SEGMENT,  # int64 [R]; not read without WEIGHTED
    OUT,  # [I, D]
    D,
    WEIGHTED: tl.constexpr,
    HAS_Y: tl.constexpr,
    BJ: tl.constexpr,  # rows at a time
    BD: tl.constexpr,  # columns of a program
):
    """BD columns of one index: lanes take every BJ-th row, then the lanes are summed."""
    i = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    start = tl.load(OFFSETS + i)
    end = tl.load(OFFSETS + i + 1)
    acc = tl.zeros((BJ, BD), tl.float32)
    for block in range(tl.cdiv(end - start, BJ)):
        j = start + block * BJ + tl.arange(0, BJ)
        row = tl.load(ORDER + j, mask=j < end, other=0)
        at = row[:, None] * D + d[None, :]
        inside = (j < end)[:, None] & (d < D)[None, :]
        x = tl.load(X + at, mask=inside, other=0.0)
        if WEIGHTED:
            segment = tl.load(SEGMENT + row, mask=j < end, other=0)
            x *= tl.load(GRAD_LOGP + segment, mask=j < end, other=0.0)[:, None]
            if HAS_Y:
                k = tl.load(GRAD_KL + segment, mask=j < end, other=0.0)
                x += k[:, None] * tl.load(Y + at, mask=inside, other=0.0)
        acc += x
    tl.store(OUT + i * D + d, tl.sum(acc, 0).to(OUT.dtype.element_ty), mask=d < D)


def block_sizes(D: int) -> dict[str, int]:
    """A sum of a few scalars over many rows, or of wide rows over a few."""
    return {"BJ": 128, "BD": 4} if D <= 4 else {"BJ": 4, "BD": 256}


def sum_by_index(x_RD: Tensor, index_R: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """As rows.py says. x_RD: float32."""
    unused = {"Y": x_RD, "GRAD_LOGP": x_RD, "GRAD_KL": x_RD, "SEGMENT": index_R}
    return _launch(x_RD, index_R, size, dtype, unused | {"WEIGHTED": False, "HAS_Y": False})


def weighted_sum(
    jacobians: Jacobians,
    grad_logp_S: Tensor,
    grad_kl_S: Tensor,
    segments_R: Tensor,
    rows_R: Tensor,
    T: int,
    dtype: torch.dtype,
) -> Tensor:
    """As rows.py says."""
    has_kl = jacobians.kl_RD.numel() > 0
    weights = {
        "Y": jacobians.kl_RD if has_kl else jacobians.logp_RD,
        "GRAD_LOGP": grad_logp_S,
        "GRAD_KL": grad_kl_S,
        "SEGMENT": segments_R,
        "WEIGHTED": True,
        "HAS_Y": has_kl,
    }
    return _launch(jacobians.logp_RD, rows_R, T, dtype, weights)


def _launch(
    x_RD: Tensor, index_R: Tensor, size: int, dtype: torch.dtype, weights: dict[str, object]
) -> Tensor:
    R, D = x_RD.shape
    out_ID = x_RD.new_zeros(size, D, dtype=dtype)
    if R == 0 or size == 0:
        return out_ID
    order_R = torch.argsort(index_R, stable=True)
    bounds = torch.arange(size + 1, device=index_R.device)
    sizes = block_sizes(D)
    launch(
        sum_rows,
        grid=(size, triton.cdiv(D, sizes["BD"])),
        ORDER=order_R,
        OFFSETS=torch.searchsorted(index_R[order_R], bounds),
        X=x_RD,
        OUT=out_ID,
        D=D,
        **weights,
        **sizes,
    )
    return out_ID
