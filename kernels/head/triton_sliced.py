"""The kernels of the sliced forward (sliced.py): statistics and sums that run over slices of V.

For every row of a group, with a scale c and a shift b of the row's own:

    m = max z    l = sum e^(z - m)    a = sum e^(z - m) s    d = sum e^(z - m) |s - mean so far|
    P = sum e^(z - c) W               Q = sum e^(z - c) (s - b) W                l' = l e^(m - c)
    d logp / dh = W_target - P / l'   d KL / dh = (Q + (b - s_bar) P) / l'

c follows the maximum only when that has outgrown it by `slack`, b follows the mean of s only when
that is half the mean deviation away: then P and Q of the row are corrected, `rescale_sums`; for
most rows and slices they are not. The terms are rounded to the head's dtype before the product: c
keeps them in its range, and b keeps what is rounded as small as s - s_bar.
Letters: kernels/head/__init__.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.common import launch
from kernels.head.rows import Jacobians, Slice, Wanted

# Rows of a group's state [STATE_ROWS, N], in the order of the kernels below
(MAXIMUM, TOTAL, GAP_TOTAL, DEVIATION, REF_MAXIMUM, REF_TOTAL) = range(6)
(TARGET_STATE, REF_TARGET_STATE, SCALE, SHIFT, FACTOR, MOVE) = range(6, 12)
STATE_ROWS = 12
LOWEST = -3.0e38  # below any logit, and not infinite: LOWEST - LOWEST is 0
COLUMNS = 1024  # of P and Q that one program corrects
WARPS = 16
NEG_INF = tl.constexpr(float("-inf"))


def slack(dtype: torch.dtype) -> float:
    """How far the maximum may outgrow the scale: e^16 fits into bfloat16, float16 ends at 65504."""
    return 0.0 if dtype == torch.float16 else 16.0


# Kernels. Sizes that change from call to call must not make Triton compile again.


@triton.jit(do_not_specialize=["N", "W"])
def slice_logp_kl(
    LOGITS,  # float32 [N, P], or [2 N, P] with HAS_REF: the policy's rows, then the reference's
    COLUMN,  # int64 [N]: the target's number in the slice; outside [0, W): not in it
    STATE,  # float32 [12, N]: see STATE_ROWS
    OUT,  # the memory of LOGITS in the head's dtype: [.., P HALVES]
    N,
    W,  # columns of a row that are logits
    P,  # columns of a row: a multiple of 64, at most BLOCK
    HAS_REF: tl.constexpr,
    LOGP: tl.constexpr,
    KL: tl.constexpr,
    SLACK: tl.constexpr,
    HALVES: tl.constexpr,  # elements of OUT in a float32
    BLOCK: tl.constexpr,
):
    """One row of a slice: what log-prob and KL need of it joins the row's state.

    With LOGP e^(z - c), and with KL e^(z - c) (s - b), take the place of the logits.
    """
    i = tl.program_id(0).to(tl.int64)
    policy = LOGITS + i * P
    reference = LOGITS + (N + i) * P
    state = STATE + i

    # Everything is read before anything is written. Columns from W to P hold anything.
    col = tl.arange(0, BLOCK)
    inside = col < W
    z = tl.load(policy + col, mask=col < P, other=0.0)
    target = tl.load(COLUMN + i)
    here = (target >= 0) & (target < W)
    target_logit = tl.load(state + 6 * N) + tl.load(policy + target, mask=here, other=0.0)
    m_old = tl.load(state)
    l = tl.load(state + N)
    if HAS_REF:
        r = tl.load(reference + col, mask=col < P, other=0.0)
        ref_target = tl.load(reference + target, mask=here, other=0.0)
        ref_target += tl.load(state + 7 * N)
        a = tl.load(state + 2 * N)
        d = tl.load(state + 3 * N)
        m_r_old = tl.load(state + 4 * N)
        l_r = tl.load(state + 5 * N)
    if LOGP:
        scale_old = tl.load(state + 8 * N)
        shift_old = tl.load(state + 9 * N)

    # Running statistics.
    if HAS_REF:
        s = tl.where(inside, z - r, 0.0)
        r = tl.where(inside, r, NEG_INF)
        m_r = tl.maximum(m_r_old, tl.max(r, 0))
        l_r = l_r * tl.exp(m_r_old - m_r) + tl.sum(tl.exp(r - m_r), 0)
    z = tl.where(inside, z, NEG_INF)
    m = tl.maximum(m_old, tl.max(z, 0))
    e = tl.exp(z - m)
    old = tl.exp(m_old - m)
    l = l * old + tl.sum(e, 0)
    if HAS_REF:
        a = a * old + tl.sum(e * s, 0)
        mean = a / l
        d = d * old + tl.sum(e * tl.abs(s - mean), 0)

    # What goes to the product, at this row's scale and shift.
    if LOGP:
        scale = tl.where(m - scale_old > SLACK, m, scale_old)
        p = tl.exp(z - scale)
        shift = shift_old
        if KL:
            shift = tl.where(tl.abs(mean - shift_old) > 0.5 * d / l, mean, shift_old)
            q = p * (s - shift)

    # In place, as in logp_kl_statistics: every load comes before any store.
    tl.debug_barrier()
    tl.store(state, m)
    tl.store(state + N, l)
    tl.store(state + 6 * N, target_logit)
    if HAS_REF:
        tl.store(state + 2 * N, a)
        tl.store(state + 3 * N, d)
        tl.store(state + 4 * N, m_r)
        tl.store(state + 5 * N, l_r)
        tl.store(state + 7 * N, ref_target)
    if LOGP:
        tl.store(state + 8 * N, scale)
        tl.store(state + 9 * N, shift)
        tl.store(state + 10 * N, tl.exp(scale_old - scale))
        tl.store(state + 11 * N, shift_old - shift)
        tl.store(OUT + i * P * HALVES + col, p.to(OUT.dtype.element_ty), mask=col < P)
        if KL:
            kl_out = OUT + (N + i) * P * HALVES + col
            tl.store(kl_out, q.to(OUT.dtype.element_ty), mask=col < P)


@triton.jit(do_not_specialize=["N"])
def rescale_sums(
    STATE,  # float32 [12, N]
    SUM_P,  # float32 [N, D]
    SUM_Q,  # float32 [N, D]; not read without KL
    N,
    D,
    KL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK columns of one row of P and Q: to the row's new scale and shift, if they moved."""
    i = tl.program_id(0).to(tl.int64)
    factor = tl.load(STATE + 10 * N + i)
    move = tl.load(STATE + 11 * N + i)
    if (factor != 1.0) | (move != 0.0):
        d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        p = tl.load(SUM_P + i * D + d, mask=d < D, other=0.0)
        if KL:
            q = tl.load(SUM_Q + i * D + d, mask=d < D, other=0.0)
            tl.store(SUM_Q + i * D + d, (q + move * p) * factor, mask=d < D)
        tl.store(SUM_P + i * D + d, p * factor, mask=d < D)


@triton.jit(do_not_specialize=["N"])
def finish_jacobians(
    STATE,  # float32 [12, N]
    TARGET,  # int64 [N]
    HEAD,  # [V, D]
    SUM_P,  # float32 [N, D]: becomes d logp / dh
    SUM_Q,  # float32 [N, D]: becomes d KL / dh; not read without KL
    N,
    D,
    KL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK columns of one row's Jacobians, from its sums."""
    i = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    l = tl.load(STATE + N + i)
    total = l * tl.exp(tl.load(STATE + i) - tl.load(STATE + 8 * N + i))
    target = tl.load(TARGET + i)
    w = tl.load(HEAD + target * D + d, mask=d < D, other=0.0).to(tl.float32)
    p = tl.load(SUM_P + i * D + d, mask=d < D, other=0.0) / total
    if KL:
        behind = tl.load(STATE + 9 * N + i) - tl.load(STATE + 2 * N + i) / l
        q = tl.load(SUM_Q + i * D + d, mask=d < D, other=0.0) / total
        tl.store(SUM_Q + i * D + d, q + behind * p, mask=d < D)
    tl.store(SUM_P + i * D + d, w - p, mask=d < D)


# Launchers


def new_state(N: int, device: torch.device) -> Tensor:
    """Before the first slice."""
    state = torch.zeros(STATE_ROWS, N, device=device)
    for row in (MAXIMUM, REF_MAXIMUM, SCALE):
        state[row].fill_(LOWEST)
    return state


def take_slice(part: Slice, state: Tensor, wanted: Wanted, dtype: torch.dtype) -> Tensor | None:
    """The slice joins the state.

    Returns what meets the head, [N or 2 N, W] in `dtype`, or None.
    """
    N = len(part.columns_R)
    M, P = part.buffer_MP.shape
    has_ref = M > N
    both = has_ref and wanted == Wanted.BOTH
    out = part.buffer_MP.view(dtype)
    launch(
        slice_logp_kl,
        grid=(N,),
        LOGITS=part.buffer_MP,
        COLUMN=part.columns_R,
        STATE=state,
        OUT=out,
        N=N,
        W=part.W,
        P=P,
        HAS_REF=has_ref,
        LOGP=wanted != Wanted.NONE,
        KL=both,
        SLACK=slack(dtype),
        HALVES=4 // dtype.itemsize,
        BLOCK=triton.next_power_of_2(P),
        num_warps=WARPS,
    )
    if wanted == Wanted.NONE:
        return None
    return out[: M if both else N, : part.W]


def rescale(state: Tensor, sums: Jacobians) -> None:
    """P and Q, for the rows whose scale or shift has moved."""
    N, D = sums.logp_RD.shape
    has_kl = len(sums.kl_RD) > 0
    launch(
        rescale_sums,
        grid=(N, triton.cdiv(D, COLUMNS)),
        STATE=state,
        SUM_P=sums.logp_RD,
        SUM_Q=sums.kl_RD if has_kl else sums.logp_RD,
        N=N,
        D=D,
        KL=has_kl,
        BLOCK=COLUMNS,
    )


def finish(state: Tensor, targets_N: Tensor, weight_VD: Tensor, sums: Jacobians) -> None:
    """P and Q become the Jacobians, in place."""
    N, D = sums.logp_RD.shape
    has_kl = len(sums.kl_RD) > 0
    launch(
        finish_jacobians,
        grid=(N, triton.cdiv(D, COLUMNS)),
        STATE=state,
        TARGET=targets_N,
        HEAD=weight_VD,
        SUM_P=sums.logp_RD,
        SUM_Q=sums.kl_RD if has_kl else sums.logp_RD,
        N=N,
        D=D,
        KL=has_kl,
        BLOCK=COLUMNS,
    )
