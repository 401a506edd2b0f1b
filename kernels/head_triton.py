"""The fused head in Triton. Formulas and letters: kernels/head.py; the loop around `statistics` and `dlogits`: kernels/head_chunks.py.

Two strategies. stream: `stream` and `merge`; logits live on chip only. chunk: the vendor's products fill a workspace, `row_statistics`
and `row_dlogits` work on it in place. All sums run in a fixed order: no atomics, the same bits every time.
"""

import torch
import triton
import triton.language as tl

from kernels.common import INTERPRET

ROWS = 1 << 20  # of a chunk: as many as the workspace holds
IN_PLACE = True  # p in half precision overwrites its own float32 row
BLOCK = 4096  # columns of a row at a time
SPANS = 32  # parts of the vocabulary that different programs own
NEG_INF = tl.constexpr(float("-inf"))


def stream_tiles(dtype, has_ref, shared):
    """Block sizes: the largest found that spill on none of sm_80, sm_90, sm_100 (python -m kernels.aot). float32 runs on the plain units,
    whose operands sit in registers."""
    if dtype == torch.float32:
        return {"BR": 32, "BV": 32, "BD": 32, "num_warps": 4, "num_stages": 2}
    BR, BV, BD = (64, 128, 64) if shared else (128, 64, 32) if has_ref else (128, 64, 64)
    return {"BR": BR, "BV": BV, "BD": BD, "num_warps": 8, "num_stages": 3}


# Kernels


@triton.jit
def tile_logits(
    H, W, rows, cols, D, WIDEN: tl.constexpr, BR: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr
):
    """[BR, BV] of H W^T, float32; H and W point at the tile's first row, of which `rows` and `cols` exist."""
    i, j, z = tl.arange(0, BR), tl.arange(0, BV), tl.zeros((BR, BV), tl.float32)
    for d0 in range(0, D, BD):
        d = d0 + tl.arange(0, BD)
        h = tl.load(
            H + i[:, None] * D + d[None, :], mask=(i < rows)[:, None] & (d < D)[None, :], other=0.0
        )
        w = tl.load(
            W + j[:, None] * D + d[None, :], mask=(j < cols)[:, None] & (d < D)[None, :], other=0.0
        )
        if WIDEN:
            h, w = h.to(tl.float32), w.to(tl.float32)
        z = tl.dot(h, tl.trans(w), z, input_precision="ieee")
    return z


@triton.jit
def tile_logits_of_two(
    H,
    H0,
    W,
    rows,
    cols,
    D,
    WIDEN: tl.constexpr,
    BR: tl.constexpr,
    BV: tl.constexpr,
    BD: tl.constexpr,
):
    """[BR, BV] of H W^T and of H0 W^T: a shared head is read once."""
    i, j, z = tl.arange(0, BR), tl.arange(0, BV), tl.zeros((BR, BV), tl.float32)
    r = z
    for d0 in range(0, D, BD):
        d = d0 + tl.arange(0, BD)
        at, inside = i[:, None] * D + d[None, :], (i < rows)[:, None] & (d < D)[None, :]
        h = tl.load(H + at, mask=inside, other=0.0)
        h0 = tl.load(H0 + at, mask=inside, other=0.0)
        w = tl.load(
            W + j[:, None] * D + d[None, :], mask=(j < cols)[:, None] & (d < D)[None, :], other=0.0
        )
        if WIDEN:
            h, h0, w = h.to(tl.float32), h0.to(tl.float32), w.to(tl.float32)
        z = tl.dot(h, tl.trans(w), z, input_precision="ieee")
        r = tl.dot(h0, tl.trans(w), r, input_precision="ieee")
    return z, r


@triton.jit
def stream(
    H, W, H0, W0, TARGET, PART, R, V, D, D0, row_blocks, span, step,
    HAS_REF: tl.constexpr, SHARED: tl.constexpr, WIDEN: tl.constexpr, BR: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """A block of rows over one span of the vocabulary; PART[7, spans, R] takes m, l, a, z_target, m_r, l_r, r_target.

    Programs of neighbouring ids hold different rows of the same span, so that its part of W is read from L2. Only the tile's
    own address is 64 bits wide; inside a tile offsets are 32 bits.
    """
    pid = tl.program_id(0).to(tl.int64)
    part, first = pid // row_blocks, pid % row_blocks * BR
    i, j = tl.arange(0, BR), tl.arange(0, BV)
    rows = (R - first).to(tl.int32)
    target = tl.load(TARGET + first + i, mask=i < rows, other=-1).to(tl.int32)
    m = tl.full((BR,), NEG_INF, tl.float32)
    l, a, z_target = (
        tl.zeros((BR,), tl.float32),
        tl.zeros((BR,), tl.float32),
        tl.zeros((BR,), tl.float32),
    )
    m_r, l_r, r_target = m, l, l
    for v0 in range(part * span, tl.minimum(part * span + span, V), BV):
        cols = (V - v0).to(tl.int32)
        inside, is_target = (j < cols)[None, :], j[None, :] == (target - v0).to(tl.int32)[:, None]
        if SHARED:
            z, r = tile_logits_of_two(
                H + first * D, H0 + first * D, W + v0 * D, rows, cols, D, WIDEN, BR, BV, BD
            )
        else:
            z = tile_logits(H + first * D, W + v0 * D, rows, cols, D, WIDEN, BR, BV, BD)
            if HAS_REF:
                r = tile_logits(H0 + first * D0, W0 + v0 * D0, rows, cols, D0, WIDEN, BR, BV, BD)
        z_target += tl.sum(tl.where(is_target, z, 0.0), 1)
        new = tl.maximum(m, tl.max(tl.where(inside, z, NEG_INF), 1))
        e, old = tl.where(inside, tl.exp(z - new[:, None]), 0.0), tl.exp(m - new)
        l = l * old + tl.sum(e, 1)
        m = new
        if HAS_REF:
            r_target += tl.sum(tl.where(is_target, r, 0.0), 1)
            a = a * old + tl.sum(e * (z - r), 1)
            new_r = tl.maximum(m_r, tl.max(tl.where(inside, r, NEG_INF), 1))
            l_r = l_r * tl.exp(m_r - new_r) + tl.sum(
                tl.where(inside, tl.exp(r - new_r[:, None]), 0.0), 1
            )
            m_r = new_r
    out, kept = PART + part * R + first + i, i < rows
    tl.store(out, m, mask=kept)
    tl.store(out + step, l, mask=kept)
    tl.store(out + 2 * step, a, mask=kept)
    tl.store(out + 3 * step, z_target, mask=kept)
    if HAS_REF:
        tl.store(out + 4 * step, m_r, mask=kept)
        tl.store(out + 5 * step, l_r, mask=kept)
        tl.store(out + 6 * step, r_target, mask=kept)


@triton.jit
def merge(PART, STATS, R, spans, step, HAS_REF: tl.constexpr, BR: tl.constexpr):
    """Spans in order: rescale l and a to the larger maximum. STATS[5, R]: lse, lse_r, s_bar, z_target, r_target."""
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    kept, at = row < R, PART + row
    m = tl.full((BR,), NEG_INF, tl.float32)
    l, a, z_target = (
        tl.zeros((BR,), tl.float32),
        tl.zeros((BR,), tl.float32),
        tl.zeros((BR,), tl.float32),
    )
    m_r, l_r, r_target = m, l, l
    for part in range(spans):
        m_part = tl.load(at, mask=kept, other=0.0)
        new = tl.maximum(m, m_part)
        old, scale = tl.exp(m - new), tl.exp(m_part - new)
        l = l * old + tl.load(at + step, mask=kept, other=1.0) * scale
        z_target += tl.load(at + 3 * step, mask=kept, other=0.0)
        m = new
        if HAS_REF:
            a = a * old + tl.load(at + 2 * step, mask=kept, other=0.0) * scale
            r_target += tl.load(at + 6 * step, mask=kept, other=0.0)
            m_part = tl.load(at + 4 * step, mask=kept, other=0.0)
            new = tl.maximum(m_r, m_part)
            l_r = l_r * tl.exp(m_r - new) + tl.load(at + 5 * step, mask=kept, other=1.0) * tl.exp(
                m_part - new
            )
            m_r = new
        at += R
    tl.store(STATS + row, m + tl.log(l), mask=kept)
    tl.store(STATS + 3 * R + row, z_target, mask=kept)
    if HAS_REF:
        tl.store(STATS + R + row, m_r + tl.log(l_r), mask=kept)
        tl.store(STATS + 2 * R + row, a / l, mask=kept)
        tl.store(STATS + 4 * R + row, r_target, mask=kept)


@triton.jit
def row_statistics(
    Z,
    TARGET,
    STATS,
    OUT,
    n,
    stats_step,
    V,
    HAS_REF: tl.constexpr,
    JACOBIAN: tl.constexpr,
    HALVES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row of logits Z[i], its reference Z[n + i]; with JACOBIAN, p and p (s - s_bar) go to OUT, the same memory seen in the head's
    dtype, HALVES elements to a float32. Column c lands at or before its own float32, so a block is written only when it has been read.
    """
    i = tl.program_id(0).to(tl.int64)
    z_row, r_row = Z + i * V, Z + (n + i) * V
    l = tl.full((), 0.0, tl.float32)
    m, m_r, a, l_r = l + NEG_INF, l + NEG_INF, l, l
    for start in range(0, V, BLOCK):
        col = start + tl.arange(0, BLOCK)
        z = tl.load(z_row + col, mask=col < V, other=NEG_INF)
        new = tl.maximum(m, tl.max(z, 0))
        e, old = tl.exp(z - new), tl.exp(m - new)
        l = l * old + tl.sum(e, 0)
        m = new
        if HAS_REF:
            r = tl.load(r_row + col, mask=col < V, other=NEG_INF)
            a = a * old + tl.sum(e * tl.where(col < V, z - r, 0.0), 0)
            new_r = tl.maximum(m_r, tl.max(r, 0))
            l_r = l_r * tl.exp(m_r - new_r) + tl.sum(tl.exp(r - new_r), 0)
            m_r = new_r
    lse, s_bar, target = m + tl.log(l), a / l, tl.load(TARGET + i)
    tl.store(STATS + i, lse)
    tl.store(STATS + 3 * stats_step + i, tl.load(z_row + target))
    if HAS_REF:
        tl.store(STATS + stats_step + i, m_r + tl.log(l_r))
        tl.store(STATS + 2 * stats_step + i, s_bar)
        tl.store(STATS + 4 * stats_step + i, tl.load(r_row + target))
    if JACOBIAN:
        tl.debug_barrier()  # the targets' logits are read before they are overwritten
        for start in range(0, V, BLOCK):
            col = start + tl.arange(0, BLOCK)
            z = tl.load(z_row + col, mask=col < V, other=NEG_INF)
            p = tl.exp(z - lse)
            if HAS_REF:
                s = z - tl.load(r_row + col, mask=col < V, other=0.0)
            tl.debug_barrier()
            tl.store(OUT + i * V * HALVES + col, p.to(OUT.dtype.element_ty), mask=col < V)
            if HAS_REF:
                tl.store(
                    OUT + (n + i) * V * HALVES + col,
                    (p * (s - s_bar)).to(OUT.dtype.element_ty),
                    mask=col < V,
                )


@triton.jit
def row_dlogits(
    Z,
    REF,
    STATS,
    G,
    K,
    TARGET,
    OUT,
    stats_step,
    width,
    HAS_REF: tl.constexpr,
    HALVES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row of a slice of the vocabulary: dz = g (onehot - p) + k p (s - s_bar), in place as in row_statistics. TARGET counts from the slice."""
    i = tl.program_id(0).to(tl.int64)
    lse, s_bar = tl.load(STATS + i), tl.load(STATS + 2 * stats_step + i)
    g, k, target = tl.load(G + i), tl.load(K + i), tl.load(TARGET + i)
    for start in range(0, width, BLOCK):
        col = start + tl.arange(0, BLOCK)
        z = tl.load(Z + i * width + col, mask=col < width, other=NEG_INF)
        dz = -g
        if HAS_REF:
            dz += k * (
                tl.where(col < width, z, 0.0)
                - tl.load(REF + i * width + col, mask=col < width, other=0.0)
                - s_bar
            )
        dz = dz * tl.exp(z - lse) + tl.where(col == target, g, 0.0)
        tl.debug_barrier()
        tl.store(OUT + i * width * HALVES + col, dz.to(OUT.dtype.element_ty), mask=col < width)


@triton.jit
def segment_sum(
    ORDER, OFFSETS, X, Y, G, K, SEGMENT, OUT, D, WEIGHTED: tl.constexpr, HAS_Y: tl.constexpr, BJ: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """OUT[i] = sum over ORDER[OFFSETS[i] .. OFFSETS[i + 1]] of X, or of G[segment] X + K[segment] Y; lanes in a fixed order."""
    i = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    start, end = tl.load(OFFSETS + i), tl.load(OFFSETS + i + 1)
    acc = tl.zeros((BJ, BD), tl.float32)
    for block in range(tl.cdiv(end - start, BJ)):
        j = start + block * BJ + tl.arange(0, BJ)
        here = tl.load(ORDER + j, mask=j < end, other=0)
        at, inside = here[:, None] * D + d[None, :], (j < end)[:, None] & (d < D)[None, :]
        x = tl.load(X + at, mask=inside, other=0.0)
        if WEIGHTED:
            segment = tl.load(SEGMENT + here, mask=j < end, other=0)
            x *= tl.load(G + segment, mask=j < end, other=0.0)[:, None]
            if HAS_Y:
                x += tl.load(K + segment, mask=j < end, other=0.0)[:, None] * tl.load(
                    Y + at, mask=inside, other=0.0
                )
        acc += x
    tl.store(OUT + i * D + d, tl.sum(acc, 0).to(OUT.dtype.element_ty), mask=d < D)


# Launchers


def stream_statistics(hidden_TD, weight_VD, rows_R, targets_R, ref_hidden_TD, ref_weight_VD):
    """stats_5R without a logit in memory."""
    R, (V, D) = rows_R.numel(), weight_VD.shape
    stats_5R = torch.zeros(5, R, device=hidden_TD.device)
    if R == 0:
        return stats_5R
    has_ref = ref_hidden_TD is not None
    shared = has_ref and ref_weight_VD is None and ref_hidden_TD.dtype == hidden_TD.dtype
    dtype = (
        hidden_TD.dtype
        if len(
            {x.dtype for x in (hidden_TD, weight_VD, ref_hidden_TD, ref_weight_VD) if x is not None}
        )
        == 1
        else None
    )
    tiles = stream_tiles(dtype or torch.float32, has_ref, shared)
    ref_weight_VD = weight_VD if ref_weight_VD is None else ref_weight_VD
    hidden_RD = hidden_TD.index_select(0, rows_R)
    ref_RD = ref_hidden_TD.index_select(0, rows_R) if has_ref else hidden_RD
    blocks = triton.cdiv(R, tiles["BR"])
    span = triton.cdiv(triton.cdiv(V, tiles["BV"]), SPANS) * tiles["BV"]
    spans = triton.cdiv(V, span)
    part = torch.empty(7, spans, R, device=hidden_TD.device)
    stream[(blocks * spans,)](
        hidden_RD, weight_VD, ref_RD, ref_weight_VD, targets_R, part, R, V, D, ref_RD.shape[1], blocks, span, spans * R,
        HAS_REF=has_ref, SHARED=shared, WIDEN=INTERPRET or dtype is None, **tiles,
    )  # fmt: skip
    merge[(triton.cdiv(R, 128),)](part, stats_5R, R, spans, spans * R, HAS_REF=has_ref, BR=128)
    return stats_5R


def statistics(logits_2NV, n, target_N, out_5N, half_2NV, scratch_NV, jacobian, dtype):
    """As in kernels/head_torch.py, in place: returns p and p (s - s_bar) as a view of logits_2NV in `dtype`."""
    V, out = logits_2NV.shape[1], logits_2NV.view(dtype)
    halves = 4 // dtype.itemsize
    row_statistics[(n,)](
        logits_2NV, target_N, out_5N, out, n, out_5N.stride(0), V,
        HAS_REF=len(logits_2NV) > n, JACOBIAN=jacobian, HALVES=halves, BLOCK=BLOCK, num_warps=16,
    )  # fmt: skip
    return out[:, :V] if jacobian else None


def dlogits(z_RW, r_RW, stats_5R, g_R, k_R, column_R, dtype):
    """As in kernels/head_torch.py, in place of z_RW."""
    (R, width), out = z_RW.shape, z_RW.view(dtype)
    row_dlogits[(R,)](
        z_RW, r_RW if r_RW is not None else z_RW, stats_5R, g_R, k_R, column_R, out, stats_5R.stride(0), width,
        HAS_REF=r_RW is not None, HALVES=4 // dtype.itemsize, BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip
    return out[:, :width]


def sum_by_index(values, index, size):
    """out[i] = sum of values[index == i] in the order of `values`. values: float32 [R, D]."""
    return combine(None, None, values, values.new_empty(0), None, index, size, values.dtype)


def combine(g_S, k_S, J_RD, K_RD, segments_R, rows_R, T, dtype):
    """out[t] = sum over the rows j with rows_R[j] = t of g J[j] + k K[j]; K_RD may be empty, g_S None for a plain sum of J."""
    R, D = J_RD.shape
    out_TD = J_RD.new_zeros(T, D, dtype=dtype)
    if R == 0 or T == 0:
        return out_TD
    order = torch.argsort(rows_R, stable=True)
    offsets = torch.searchsorted(rows_R[order], torch.arange(T + 1, device=rows_R.device))
    BJ, BD = (
        (128, 4) if D <= 4 else (4, 256)
    )  # a sum of a few scalars over many rows, or of wide rows over a few
    weighted, has_y = g_S is not None, K_RD.numel() > 0
    unused = J_RD
    segment_sum[(T, triton.cdiv(D, BD))](
        order, offsets, J_RD, K_RD if has_y else unused, g_S if weighted else unused, k_S if weighted else unused,
        segments_R if weighted else order, out_TD, D, WEIGHTED=weighted, HAS_Y=has_y, BJ=BJ, BD=BD,
    )  # fmt: skip
    return out_TD
