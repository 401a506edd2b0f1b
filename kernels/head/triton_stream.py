"""The fused head's forward without a logit in memory: log-prob and KL statistics from tiles on
chip, in Triton.

Each program owns a block of rows and one span of the vocabulary; `merge_logp_kl` joins the spans in
a fixed order. Formulas and letters: kernels/head/__init__.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.common import INTERPRET, launch
from kernels.head.inputs import HeadInputs

SPANS = 32  # parts of the vocabulary that different programs own, at least
PROGRAMS = 264  # at least, where there are tiles enough: two for each processor of an H100
MERGED_ROWS = 128  # of a program that joins spans
NEG_INF = tl.constexpr(float("-inf"))


def tile_sizes(dtype: torch.dtype, has_ref: bool, shared: bool) -> dict[str, int]:
    """Block sizes: the largest found that spill on none of sm_80, sm_90, sm_100.

    (python -m kernels.tools.compile_ahead.) float32 runs on the plain units, whose operands sit in
    registers.
    """
    if dtype == torch.float32:
        return {"BR": 32, "BV": 32, "BD": 32, "num_warps": 4, "num_stages": 2}
    sizes = {"BR": 128, "BV": 64, "BD": 64}
    if shared:
        sizes = {"BR": 64, "BV": 128, "BD": 64}
    elif has_ref:
        sizes = {"BR": 128, "BV": 64, "BD": 32}
    return sizes | {"num_warps": 8, "num_stages": 3}


# Kernels. Sizes that change from call to call must not make Triton compile again.


@triton.jit
def tile_logits(
    H,  # [rows, D]: hidden states, from the tile's first row on
    W,  # [cols, D]: the head, from the tile's first row on
    rows,
    cols,
    D,
    WIDEN: tl.constexpr,
    BR: tl.constexpr,
    BV: tl.constexpr,
    BD: tl.constexpr,
):
    """[BR, BV] of H W^T, float32."""
    i = tl.arange(0, BR)
    j = tl.arange(0, BV)
    z = tl.zeros((BR, BV), tl.float32)
    for d0 in range(0, D, BD):
        d = d0 + tl.arange(0, BD)
        h_mask = (i < rows)[:, None] & (d < D)[None, :]
        w_mask = (j < cols)[:, None] & (d < D)[None, :]
        h = tl.load(H + i[:, None] * D + d[None, :], mask=h_mask, other=0.0)
        w = tl.load(W + j[:, None] * D + d[None, :], mask=w_mask, other=0.0)
        if WIDEN:
            h = h.to(tl.float32)
            w = w.to(tl.float32)
        z = tl.dot(h, tl.trans(w), z, input_precision="ieee")
    return z


@triton.jit
def tile_logits_of_two(
    H,  # [rows, D]: the policy's hidden states, from the tile's first row on
    H0,  # [rows, D]: the reference's
    W,  # [cols, D]: the head of both, from the tile's first row on
    rows,
    cols,
    D,
    WIDEN: tl.constexpr,
    BR: tl.constexpr,
    BV: tl.constexpr,
    BD: tl.constexpr,
):
    """[BR, BV] of H W^T and of H0 W^T: a shared head is read once."""
    i = tl.arange(0, BR)
    j = tl.arange(0, BV)
    z = tl.zeros((BR, BV), tl.float32)
    r = z
    for d0 in range(0, D, BD):
        d = d0 + tl.arange(0, BD)
        h_at = i[:, None] * D + d[None, :]
        h_mask = (i < rows)[:, None] & (d < D)[None, :]
        w_mask = (j < cols)[:, None] & (d < D)[None, :]
        h = tl.load(H + h_at, mask=h_mask, other=0.0)
        h0 = tl.load(H0 + h_at, mask=h_mask, other=0.0)
        w = tl.load(W + j[:, None] * D + d[None, :], mask=w_mask, other=0.0)
        if WIDEN:
            h = h.to(tl.float32)
            h0 = h0.to(tl.float32)
            w = w.to(tl.float32)
        z = tl.dot(h, tl.trans(w), z, input_precision="ieee")
        r = tl.dot(h0, tl.trans(w), r, input_precision="ieee")
    return z, r


@triton.jit(do_not_specialize=["R", "V", "row_blocks", "span", "part_step"])
def stream_logp_kl(
    H,  # [R, D]: the policy's hidden states
    W,  # [V, D]: its head
    H0,  # [R, D0]: the reference's hidden states; not read without HAS_REF
    W0,  # [V, D0]: its head; not read with SHARED
    TARGET,  # int64 [R]
    PART,  # float32 [7, spans, R]: m, l, a, target_logit, m_r, l_r, ref_target_logit
    R,
    V,
    D,
    D0,
    row_blocks,
    span,  # vocabulary rows of a program, a multiple of BV
    part_step,  # spans R
    HAS_REF: tl.constexpr,
    SHARED: tl.constexpr,
    WIDEN: tl.constexpr,
    BR: tl.constexpr,
    BV: tl.constexpr,
    BD: tl.constexpr,
):
    """A block of rows over one span: what their log-prob and KL need of it.

    Programs of neighbouring ids hold different rows of the same span, so that its part of W is read
    from L2. Only the tile's own address is 64 bits wide; inside a tile offsets are 32 bits.
    """
    pid = tl.program_id(0).to(tl.int64)
    part = pid // row_blocks
    first = pid % row_blocks * BR
    i = tl.arange(0, BR)
    j = tl.arange(0, BV)
    rows = (R - first).to(tl.int32)
    target = tl.load(TARGET + first + i, mask=i < rows, other=-1).to(tl.int32)

    # m = max z, l = sum e^(z - m), a = sum e^(z - m) s; m_r and l_r of the reference.
    m = tl.full((BR,), NEG_INF, tl.float32)
    l = tl.zeros((BR,), tl.float32)
    a = tl.zeros((BR,), tl.float32)
    target_logit = tl.zeros((BR,), tl.float32)
    m_r = m
    l_r = l
    ref_target_logit = l
    for v0 in range(part * span, tl.minimum(part * span + span, V), BV):
        cols = (V - v0).to(tl.int32)
        inside = (j < cols)[None, :]
        is_target = j[None, :] == (target - v0).to(tl.int32)[:, None]
        if SHARED:
            z, r = tile_logits_of_two(
                H + first * D, H0 + first * D, W + v0 * D, rows, cols, D, WIDEN, BR, BV, BD
            )
        else:
            z = tile_logits(H + first * D, W + v0 * D, rows, cols, D, WIDEN, BR, BV, BD)
            if HAS_REF:
                r = tile_logits(H0 + first * D0, W0 + v0 * D0, rows, cols, D0, WIDEN, BR, BV, BD)
        target_logit += tl.sum(tl.where(is_target, z, 0.0), 1)
        new = tl.maximum(m, tl.max(tl.where(inside, z, NEG_INF), 1))
        e = tl.where(inside, tl.exp(z - new[:, None]), 0.0)
        old = tl.exp(m - new)
        l = l * old + tl.sum(e, 1)
        m = new
        if HAS_REF:
            ref_target_logit += tl.sum(tl.where(is_target, r, 0.0), 1)
            a = a * old + tl.sum(e * (z - r), 1)
            new_r = tl.maximum(m_r, tl.max(tl.where(inside, r, NEG_INF), 1))
            e_r = tl.where(inside, tl.exp(r - new_r[:, None]), 0.0)
            l_r = l_r * tl.exp(m_r - new_r) + tl.sum(e_r, 1)
            m_r = new_r

    out = PART + part * R + first + i
    exists = i < rows
    tl.store(out, m, mask=exists)
    tl.store(out + part_step, l, mask=exists)
    tl.store(out + 2 * part_step, a, mask=exists)
    tl.store(out + 3 * part_step, target_logit, mask=exists)
    if HAS_REF:
        tl.store(out + 4 * part_step, m_r, mask=exists)
        tl.store(out + 5 * part_step, l_r, mask=exists)
        tl.store(out + 6 * part_step, ref_target_logit, mask=exists)


@triton.jit(do_not_specialize=["R", "spans", "part_step"])
def merge_logp_kl(
    PART,  # float32 [7, spans, R]: as stream_logp_kl leaves it
    TABLE,  # float32 [5, R]: lse, ref_lse, mean_gap, target_logit, ref_target_logit
    R,
    spans,
    part_step,  # spans R
    HAS_REF: tl.constexpr,
    BR: tl.constexpr,
):
    """The spans in order: l and a rescaled to the larger maximum."""
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    exists = row < R
    at = PART + row
    m = tl.full((BR,), NEG_INF, tl.float32)
    l = tl.zeros((BR,), tl.float32)
    a = tl.zeros((BR,), tl.float32)
    target_logit = tl.zeros((BR,), tl.float32)
    m_r = m
    l_r = l
    ref_target_logit = l
    for _ in range(spans):
        m_part = tl.load(at, mask=exists, other=0.0)
        new = tl.maximum(m, m_part)
        old = tl.exp(m - new)
        scale = tl.exp(m_part - new)
        l = l * old + tl.load(at + part_step, mask=exists, other=1.0) * scale
        target_logit += tl.load(at + 3 * part_step, mask=exists, other=0.0)
        m = new
        if HAS_REF:
            a = a * old + tl.load(at + 2 * part_step, mask=exists, other=0.0) * scale
            ref_target_logit += tl.load(at + 6 * part_step, mask=exists, other=0.0)
            m_part = tl.load(at + 4 * part_step, mask=exists, other=0.0)
            new = tl.maximum(m_r, m_part)
            l_part = tl.load(at + 5 * part_step, mask=exists, other=1.0)
            l_r = l_r * tl.exp(m_r - new) + l_part * tl.exp(m_part - new)
            m_r = new
        at += R

    tl.store(TABLE + row, m + tl.log(l), mask=exists)
    tl.store(TABLE + 3 * R + row, target_logit, mask=exists)
    if HAS_REF:
        tl.store(TABLE + R + row, m_r + tl.log(l_r), mask=exists)
        tl.store(TABLE + 2 * R + row, a / l, mask=exists)
        tl.store(TABLE + 4 * R + row, ref_target_logit, mask=exists)


# Launcher


def statistics(inputs: HeadInputs) -> Tensor:
    """The table of statistics, float32 [5, R] (rows.py)."""
    R = inputs.R
    V = inputs.V
    D = inputs.weight_VD.shape[1]
    table_5R = torch.zeros(5, R, device=inputs.hidden_TD.device)
    if R == 0:
        return table_5R

    # One dtype goes to the matrix units as it is; several are widened to float32.
    has_ref = inputs.ref_hidden_TD is not None
    matrices = [inputs.hidden_TD, inputs.weight_VD]
    if has_ref:
        matrices += [inputs.ref_hidden_TD, inputs.ref_head_VD]
    one_dtype = len({x.dtype for x in matrices}) == 1
    dtype = inputs.hidden_TD.dtype if one_dtype else torch.float32
    shared = has_ref and inputs.ref_weight_VD is None
    shared = shared and inputs.ref_hidden_TD.dtype == inputs.hidden_TD.dtype

    hidden_RD = inputs.hidden_TD.index_select(0, inputs.rows_R)
    ref_RD = inputs.ref_hidden_TD.index_select(0, inputs.rows_R) if has_ref else hidden_RD
    tiles = tile_sizes(dtype, has_ref, shared)
    row_blocks = triton.cdiv(R, tiles["BR"])
    parts = max(SPANS, triton.cdiv(PROGRAMS, row_blocks))
    span = triton.cdiv(triton.cdiv(V, tiles["BV"]), parts) * tiles["BV"]
    spans = triton.cdiv(V, span)
    part = torch.empty(7, spans, R, device=hidden_RD.device)
    launch(
        stream_logp_kl,
        grid=(row_blocks * spans,),
        H=hidden_RD,
        W=inputs.weight_VD,
        H0=ref_RD,
        W0=inputs.ref_head_VD,
        TARGET=inputs.targets_R,
        PART=part,
        R=R,
        V=V,
        D=D,
        D0=ref_RD.shape[1],
        row_blocks=row_blocks,
        span=span,
        part_step=spans * R,
        HAS_REF=has_ref,
        SHARED=shared,
        WIDEN=INTERPRET or not one_dtype,
        **tiles,
    )
    launch(
        merge_logp_kl,
        grid=(triton.cdiv(R, MERGED_ROWS),),
        PART=part,
        TABLE=table_5R,
        R=R,
        spans=spans,
        part_step=spans * R,
        HAS_REF=has_ref,
        BR=MERGED_ROWS,
    )
    return table_5R
