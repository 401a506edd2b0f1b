"""Row operations of the fused head in Triton, in place: log-prob and KL statistics, and dlogits.

Contract: rows.py. Formulas and letters: kernels/head/__init__.py. One program has one row; sums run
in a fixed order, so the bits are the same every time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.common import launch
from kernels.head.rows import Chunk, RowOperations, Slice, Upstream, Wanted
from kernels.head.triton_sums import sum_by_index, weighted_sum

MOST_ROWS = 1 << 20  # of a chunk: as many as the workspace holds
ROW_MULTIPLE = 64  # floats: rows begin at multiples of 256 bytes, so that 16 are read at a time
STATISTICS_BLOCK = 2048  # columns of a row at a time
STATISTICS_WARPS = 16
DLOGITS_BLOCK = 4096
DLOGITS_WARPS = 8
NEG_INF = tl.constexpr(float("-inf"))
LOWEST = tl.constexpr(-3.0e38)  # below any logit, and not infinite: LOWEST - LOWEST is 0


# Kernels. Sizes that change from call to call must not make Triton compile again.


@triton.jit(do_not_specialize=["N", "table_step", "V"])
def logp_kl_statistics(
    LOGITS,  # float32 [N, P], or [2 N, P] with HAS_REF: the policy's rows, then the reference's
    TARGET,  # int64 [N]
    TABLE,  # float32 [5, N]: lse, ref_lse, mean_gap, target_logit, ref_target_logit
    OUT,  # the memory of LOGITS in the head's dtype: [.., P HALVES]
    N,
    table_step,  # distance of two rows of TABLE
    V,  # columns of a row that are logits
    P,  # columns of a row: a multiple of ROW_MULTIPLE
    HAS_REF: tl.constexpr,
    LOGP: tl.constexpr,
    KL: tl.constexpr,
    HALVES: tl.constexpr,  # elements of OUT in a float32
    BLOCK: tl.constexpr,
):
    """What log-prob and KL need of one row: KL = mean_gap - lse + ref_lse.

    With LOGP p, and with KL p (s - s_bar), take the place of the logits. Column c of OUT lies at or
    before its own float32, so a block is written only when it has been read.
    """
    i = tl.program_id(0).to(tl.int64)
    policy = LOGITS + i * P
    reference = LOGITS + (N + i) * P
    lane = tl.arange(0, BLOCK)

    # Each lane over its own columns, so that nothing waits within the loop: m = max z,
    # l = sum e^(z - m), a = sum e^(z - m) s; m_r and l_r of the reference. Columns from V to P hold
    # anything: they are read, since a mask at V would undo the wide reads, and replaced.
    m = tl.full((BLOCK,), LOWEST, tl.float32)
    l = tl.zeros((BLOCK,), tl.float32)
    a = tl.zeros((BLOCK,), tl.float32)
    m_r = m
    l_r = l
    for start in range(0, V, BLOCK):
        col = start + lane
        inside = col < V
        z = tl.load(policy + col, mask=col < P, other=0.0)
        if HAS_REF:
            r = tl.load(reference + col, mask=col < P, other=0.0)
            gap = tl.where(inside, z - r, 0.0)
            r = tl.where(inside, r, NEG_INF)
        z = tl.where(inside, z, NEG_INF)
        new = tl.maximum(m, z)
        e = tl.exp(z - new)
        old = tl.exp(m - new)
        l = l * old + e
        m = new
        if HAS_REF:
            a = a * old + e * gap
            new_r = tl.maximum(m_r, r)
            l_r = l_r * tl.exp(m_r - new_r) + tl.exp(r - new_r)
            m_r = new_r

    # The lanes together.
    top = tl.max(m, 0)
    scale = tl.exp(m - top)
    total = tl.sum(l * scale, 0)
    lse = top + tl.log(total)
    mean_gap = 0.0
    target = tl.load(TARGET + i)
    tl.store(TABLE + i, lse)
    tl.store(TABLE + 3 * table_step + i, tl.load(policy + target))
    if HAS_REF:
        top_r = tl.max(m_r, 0)
        total_r = tl.sum(l_r * tl.exp(m_r - top_r), 0)
        mean_gap = tl.sum(a * scale, 0) / total
        tl.store(TABLE + table_step + i, top_r + tl.log(total_r))
        tl.store(TABLE + 2 * table_step + i, mean_gap)
        tl.store(TABLE + 4 * table_step + i, tl.load(reference + target))

    if LOGP:
        # The targets' logits are read before they are overwritten.
        tl.debug_barrier()
        for start in range(0, V, BLOCK):
            col = start + lane
            z = tl.load(policy + col, mask=col < P, other=0.0)
            if KL:
                r = tl.load(reference + col, mask=col < P, other=0.0)
                s = tl.where(col < V, z - r, 0.0)
            p = tl.exp(tl.where(col < V, z, NEG_INF) - lse)
            # Every load of a block comes before any store of it.
            tl.debug_barrier()
            p_out = OUT + i * P * HALVES + col
            tl.store(p_out, p.to(OUT.dtype.element_ty), mask=col < P)
            if KL:
                kl_out = OUT + (N + i) * P * HALVES + col
                dkl = p * (s - mean_gap)
                tl.store(kl_out, dkl.to(OUT.dtype.element_ty), mask=col < P)


@triton.jit(do_not_specialize=["table_step", "W"])
def logp_kl_dlogits(
    POLICY,  # float32 [R, P]: logits over a slice of the vocabulary
    REFERENCE,  # float32 [R, P]; not read without HAS_REF
    TABLE,  # float32 [5, R]: lse, ref_lse, mean_gap, target_logit, ref_target_logit
    GRAD_LOGP,  # float32 [R]: upstream
    GRAD_KL,  # float32 [R]: upstream
    COLUMN,  # int64 [R]: the target's number in the slice; outside [0, W): not in it
    OUT,  # the memory of POLICY in the head's dtype: [R, P HALVES]
    table_step,  # distance of two rows of TABLE
    W,  # columns of a row that are logits
    P,  # columns of a row: a multiple of ROW_MULTIPLE
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
        z = tl.load(POLICY + i * P + col, mask=col < P, other=0.0)
        dz = -g
        if HAS_REF:
            r = tl.load(REFERENCE + i * P + col, mask=col < P, other=0.0)
            dz += k * (tl.where(col < W, z - r, 0.0) - mean_gap)
        p = tl.exp(tl.where(col < W, z, NEG_INF) - lse)
        dz = dz * p + tl.where(col == target, g, 0.0)
        # Every load of a block comes before any store of it.
        tl.debug_barrier()
        tl.store(OUT + i * P * HALVES + col, dz.to(OUT.dtype.element_ty), mask=col < P)


# Launchers


def statistics(chunk: Chunk, table_5N: Tensor, wanted: Wanted, dtype: torch.dtype) -> Tensor | None:
    """As rows.py says; the result is a view of the chunk's buffer."""
    N = len(chunk.targets_N)
    M, P = chunk.buffer_MP.shape
    has_ref = M > N
    both = has_ref and wanted == Wanted.BOTH
    out = chunk.buffer_MP.view(dtype)
    launch(
        logp_kl_statistics,
        grid=(N,),
        LOGITS=chunk.buffer_MP,
        TARGET=chunk.targets_N,
        TABLE=table_5N,
        OUT=out,
        N=N,
        table_step=table_5N.stride(0),
        V=chunk.V,
        P=P,
        HAS_REF=has_ref,
        LOGP=wanted != Wanted.NONE,
        KL=both,
        HALVES=4 // dtype.itemsize,
        BLOCK=STATISTICS_BLOCK,
        num_warps=STATISTICS_WARPS,
    )
    if wanted == Wanted.NONE:
        return None
    return out[: M if both else N, : chunk.V]


def dlogits(part: Slice, table_5R: Tensor, upstream: Upstream, dtype: torch.dtype) -> Tensor:
    """As rows.py says; the result is a view of the slice's buffer."""
    R = len(part.columns_R)
    M, P = part.buffer_MP.shape
    policy_RP = part.buffer_MP[:R]
    has_ref = M > R
    out = policy_RP.view(dtype)
    launch(
        logp_kl_dlogits,
        grid=(R,),
        POLICY=policy_RP,
        REFERENCE=part.buffer_MP[R:] if has_ref else policy_RP,
        TABLE=table_5R,
        GRAD_LOGP=upstream.logp_R,
        GRAD_KL=upstream.kl_R,
        COLUMN=part.columns_R,
        OUT=out,
        table_step=table_5R.stride(0),
        W=part.W,
        P=P,
        HAS_REF=has_ref,
        HALVES=4 // dtype.itemsize,
        BLOCK=DLOGITS_BLOCK,
        num_warps=DLOGITS_WARPS,
    )
    return out[:, : part.W]


ROWS = RowOperations(
    in_place=True,
    most_rows=MOST_ROWS,
    row_multiple=ROW_MULTIPLE,
    statistics=statistics,
    dlogits=dlogits,
    weighted_sum=weighted_sum,
    sum_by_index=sum_by_index,
)
