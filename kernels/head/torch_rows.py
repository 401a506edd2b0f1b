"""Row operations of the fused head in plain torch: any device, statistics in float32.

Contract: rows.py. Formulas and letters: kernels/head/__init__.py.
"""

import torch
from torch import Tensor

from kernels.head.rows import (
    LSE,
    MEAN_GAP,
    REF_LSE,
    REF_TARGET_LOGIT,
    TARGET_LOGIT,
    Chunk,
    Jacobians,
    RowOperations,
    Slice,
    Upstream,
    Wanted,
)

# 75 MB of logits at V = 49152 in the three buffers of a chunk; twice as many gain a tenth at most
MOST_ROWS = 384


def sum_by_index(x_RD: Tensor, index_R: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """As rows.py says; no atomics, on any device."""
    if x_RD.shape[0] == 0 or size == 0:
        return x_RD.new_zeros(size, *x_RD.shape[1:], dtype=dtype)
    order = torch.argsort(index_R, stable=True)
    bounds = torch.arange(size + 1, device=index_R.device)
    offsets = torch.searchsorted(index_R[order], bounds)
    sorted_RD = x_RD[order].contiguous()
    sums = torch.segment_reduce(sorted_RD, "sum", offsets=offsets, axis=0, initial=0, unsafe=True)
    return sums.to(dtype)


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
    grad_RD = grad_logp_S[segments_R, None] * jacobians.logp_RD
    if jacobians.kl_RD.numel():
        grad_RD.addcmul_(grad_kl_S[segments_R, None], jacobians.kl_RD)
    return sum_by_index(grad_RD, rows_R, T, dtype)


def softmax_in(x_NV: Tensor, out_NV: Tensor) -> Tensor:
    """Softmax of x into out (which may be x); returns log sum e^x of each row."""
    top_N = x_NV.amax(1)
    torch.softmax(x_NV, 1, out=out_NV)
    # the largest probability is e^(top - lse)
    return top_N - out_NV.amax(1).log()


def statistics(chunk: Chunk, table_5N: Tensor, wanted: Wanted, dtype: torch.dtype) -> Tensor | None:
    """As rows.py says."""
    z_NV = chunk.policy_NV
    r_NV = chunk.reference_NV
    target_N1 = chunk.targets_N[:, None]

    # The targets' logits first: everything below overwrites.
    table_5N[TARGET_LOGIT] = z_NV.gather(1, target_N1)[:, 0]
    if r_NV is not None:
        table_5N[REF_TARGET_LOGIT] = r_NV.gather(1, target_N1)[:, 0]
        table_5N[REF_LSE] = softmax_in(r_NV, chunk.scratch_NV)
        torch.sub(z_NV, r_NV, out=r_NV)  # s

    # The policy's logits become p, the reference's p s.
    table_5N[LSE] = softmax_in(z_NV, z_NV)
    if r_NV is not None:
        table_5N[MEAN_GAP] = r_NV.mul_(z_NV).sum(1)
    if wanted == Wanted.NONE:
        return None

    if wanted == Wanted.BOTH and r_NV is not None:
        r_NV.addcmul_(z_NV, table_5N[MEAN_GAP][:, None], value=-1)
        used_MV = chunk.logits_MV
    else:
        used_MV = z_NV
    if chunk.half_MV is None:
        return used_MV
    return chunk.half_MV[: len(used_MV)].copy_(used_MV)


def dlogits(part: Slice, table_5R: Tensor, upstream: Upstream, dtype: torch.dtype) -> Tensor:
    """As rows.py says."""
    policy_RW = part.policy_RW
    reference_RW = part.reference_RW
    lse_R1 = table_5R[LSE][:, None]
    mean_gap_R1 = table_5R[MEAN_GAP][:, None]
    grad_logp_R1 = upstream.logp_R[:, None]

    # k (s - s_bar) - g, times p
    factor_RW = -grad_logp_R1
    if reference_RW is not None:
        gap_RW = torch.sub(policy_RW, reference_RW, out=reference_RW)
        factor_RW = gap_RW.sub_(mean_gap_R1).mul_(upstream.kl_R[:, None]).sub_(grad_logp_R1)
    dz_RW = policy_RW.sub_(lse_R1).exp_().mul_(factor_RW)

    # One target a row, so no two additions meet: no order to keep.
    each_R = torch.arange(len(dz_RW), device=dz_RW.device)
    last = dz_RW.shape[1] - 1
    inside_R = (part.columns_R >= 0) & (part.columns_R <= last)
    dz_RW[each_R, part.columns_R.clamp(0, last)] += torch.where(inside_R, upstream.logp_R, 0)
    if part.half_MW is None:
        return dz_RW
    return part.half_MW[: len(dz_RW)].copy_(dz_RW)


ROWS = RowOperations(
    in_place=False,
    most_rows=MOST_ROWS,
    row_multiple=1,
    statistics=statistics,
    dlogits=dlogits,
    weighted_sum=weighted_sum,
    sum_by_index=sum_by_index,
)
