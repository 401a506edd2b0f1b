"""Row operations of the fused head in Triton, in place: log-prob and KL statistics, and dlogits.

Contract: rows.py. Formulas and letters: kernels/head/__init__.py. One program has one row; sums run
in a fixed order, so the bits are the same every time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.common import launch
from kernels.head.rows import Chunk, RowOperations, Upstream
from kernels.head.triton_sums import sum_by_index, weighted_sum

MOST_ROWS = 1 << 20  # of a chunk: as many as the workspace holds
BLOCK = 4096  # columns of a row at a time
STATISTICS_WARPS = 16
DLOGITS_WARPS = 8
NEG_INF = tl.constexpr(float("-inf"))


# Kernels


@triton.jit
def logp_kl_statistics(
    LOGITS,  # float32 [N, V], or [2 N, V] with HAS_REF: the policy's rows, then the reference's
    TARGET,  # int64 [N]
    TABLE,  # float32 [5, N]: lse, ref_lse, mean_gap, target_logit, ref_target_logit
    OUT,  # the memory of LOGITS in the head's dtype: [.., V HALVES]
    N,
    table_step,  # distance of two rows of TABLE
    V,
    HAS_REF: tl.constexpr,
    JACOBIAN: tl.constexpr,
    HALVES: tl.constexpr,  # elements of OUT in a float32
    BLOCK: tl.constexpr,
):
    """What log-prob and KL need of one row: KL = mean_gap - lse + ref_lse.

    With JACOBIAN, p and p (s - s_bar) take the place of the logits. Column c of OUT lies at or
    before its own float32, so a block is written only when it has been read.
    """
    i = tl.program_id(0).to(tl.int64)
    policy = LOGITS + i * V
    reference = LOGITS + (N + i) * V

    # Over the vocabulary: m = max z, l = sum e^(z - m), a = sum e^(z - m) s; m_r, l_r of the
    # reference.
    l = tl.full((), 0.0, tl.float32)
    a = l
    l_r = l
    m = l + NEG_INF
    m_r = m
    for start in range(0, V, BLOCK):
        col = start + tl.arange(0, BLOCK)
        z = tl.load(policy + col, mask=col < V, other=NEG_INF)
        new = tl.maximum(m, tl.max(z, 0))
        e = tl.exp(z - new)
        old = tl.exp(m - new)
        l = l * old + tl.sum(e, 0)
        m = new
        if HAS_REF:
            r = tl.load(reference + col, mask=col < V, other=NEG_INF)
            # where: outside, s is inf - inf
            a = a * old + tl.sum(e * tl.where(col < V, z - r, 0.0), 0)
            new_r = tl.maximum(m_r, tl.max(r, 0))
            l_r = l_r * tl.exp(m_r - new_r) + tl.sum(tl.exp(r - new_r), 0)
            m_r = new_r

    lse = m + tl.log(l)
    mean_gap = a / l
    target = tl.load(TARGET + i)
    tl.store(TABLE + i, lse)
    tl.store(TABLE + 3 * table_step + i, tl.load(policy + target))
    if HAS_REF:
        tl.store(TABLE + table_step + i, m_r + tl.log(l_r))
        tl.store(TABLE + 2 * table_step + i, mean_gap)
        tl.store(TABLE + 4 * table_step + i, tl.load(reference + target))

    if JACOBIAN:
        # The targets' logits are read before they are overwritten.
        tl.debug_barrier()
        for start in range(0, V, BLOCK):
            col = start + tl.arange(0, BLOCK)
            z = tl.load(policy + col, mask=col < V, other=NEG_INF)
            p = tl.exp(z - lse)
            if HAS_REF:
                s = z - tl.load(reference + col, mask=col < V, other=0.0)
            tl.debug_barrier()
            p_out = OUT + i * V * HALVES + col
            tl.store(p_out, p.to(OUT.dtype.element_ty), mask=col < V)
            if HAS_REF:
                kl_out = OUT + (N + i) * V * HALVES + col
                dkl = p * (s - mean_gap)
                tl.store(kl_out, dkl.to(OUT.dtype.element_ty), mask=col < V)


@triton.jit
def logp_kl_dlogits(
    POLICY,  # float32 [R, W]: logits over a slice of the vocabulary
    REFERENCE,  # float32 [R, W]; not read without HAS_REF
    TABLE,  # float32 [5, R]: lse, ref_lse, mean_gap, target_logit, ref_target_logit
    GRAD_LOGP,  # float32 [R]: upstream
    GRAD_KL,  # float32 [R]: upstream
    COLUMN,  # int64 [R]: the target's number in the slice; outside [0, W): not in it
    OUT,  # the memory of POLICY in the head's dtype: [R, W HALVES]
    table_step,  # distance of two rows of TABLE
    W,
    HAS_REF: tl.constexpr,
    HALVES: tl.constexpr,  # elements of OUT in a float32
    BLOCK: tl.constexpr,
):
    """One row of dz = g (onehot - p) + k p (s - s_bar), in place as in logp_kl_statistics."""
    i = tl.program_id(0).to(tl.int64)
    lse = tl.load(TABLE + i)
    mean_gap = tl.load(TABLE + 2 * table_step + i)
    g = tl.load(GRAD_LOGP + i)
    k = tl.load(GRAD_KL + i)
    target = tl.load(COLUMN + i)
    for start in range(0, W, BLOCK):
        col = start + tl.arange(0, BLOCK)
        z = tl.load(POLICY + i * W + col, mask=col < W, other=NEG_INF)
        dz = -g
        if HAS_REF:
            r = tl.load(REFERENCE + i * W + col, mask=col < W, other=0.0)
            dz += k * (tl.where(col < W, z, 0.0) - r - mean_gap)
        dz = dz * tl.exp(z - lse) + tl.where(col == target, g, 0.0)
        tl.debug_barrier()
        tl.store(OUT + i * W * HALVES + col, dz.to(OUT.dtype.element_ty), mask=col < W)


# Launchers


def statistics(chunk: Chunk, table_5N: Tensor, jacobian: bool, dtype: torch.dtype) -> Tensor | None:
    """As rows.py says; the result is a view of the chunk's logits."""
    logits_MV = chunk.logits_MV
    N = len(chunk.targets_N)
    V = logits_MV.shape[1]
    out = logits_MV.view(dtype)
    launch(
        logp_kl_statistics,
        grid=(N,),
        LOGITS=logits_MV,
        TARGET=chunk.targets_N,
        TABLE=table_5N,
        OUT=out,
        N=N,
        table_step=table_5N.stride(0),
        V=V,
        HAS_REF=len(logits_MV) > N,
        JACOBIAN=jacobian,
        HALVES=4 // dtype.itemsize,
        BLOCK=BLOCK,
        num_warps=STATISTICS_WARPS,
    )
    return out[:, :V] if jacobian else None


def dlogits(
    policy_RW: Tensor,
    reference_RW: Tensor | None,
    table_5R: Tensor,
    upstream: Upstream,
    columns_R: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """As rows.py says; the result is a view of policy_RW."""
    R, W = policy_RW.shape
    out = policy_RW.view(dtype)
    launch(
        logp_kl_dlogits,
        grid=(R,),
        POLICY=policy_RW,
        REFERENCE=policy_RW if reference_RW is None else reference_RW,
        TABLE=table_5R,
        GRAD_LOGP=upstream.logp_R,
        GRAD_KL=upstream.kl_R,
        COLUMN=columns_R,
        OUT=out,
        table_step=table_5R.stride(0),
        W=W,
        HAS_REF=reference_RW is not None,
        HALVES=4 // dtype.itemsize,
        BLOCK=BLOCK,
        num_warps=DLOGITS_WARPS,
    )
    return out[:, :W]


ROWS = RowOperations(
    in_place=True,
    most_rows=MOST_ROWS,
    statistics=statistics,
    dlogits=dlogits,
    weighted_sum=weighted_sum,
    sum_by_index=sum_by_index,
)
