"""The fused head in bounded memory: large matrix products by the vendor's library, row operations by `rows` (torch or Triton).

Frozen head (`jacobian`): the forward also makes, per row, J = d logp / dh = W_target - p W and K = d KL / dh = (p (s - s_bar)) W,
so that the backward is g J + k K for any upstream g, k: 4 products in all, no second pass over V.
Otherwise the forward keeps lse, lse_r and s_bar, and the backward goes over slices of the vocabulary, each slice of dW written once.
Formulas and letters: kernels/head.py. stats_5R: lse, lse_r, s_bar, z_target, r_target.
"""

import functools

import torch

SLICE = 4096  # vocabulary rows widened to float32 at a time
ALIGN = 128  # a chunk of more rows than this is a multiple of it


@functools.cache
def residual_is_exact(dtype):
    """Does addmm of this CPU add before it rounds? Then x y and its rounding error are two products in `dtype` instead of one in float32."""
    if dtype != torch.bfloat16:  # float16 would overflow
        return False
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 96, generator=g).to(dtype), torch.randn(96, 128, generator=g).to(dtype)
    rounded = torch.mm(-x, y)
    exact = x.double() @ y.double()
    return bool(
        (
            (torch.addmm(rounded, x, y).double() - rounded - exact).abs() < 2e-5 * exact.abs().max()
        ).all()
    )


def logits(hidden_ND, weight_VD, out_NV, half_NV):
    """out = hidden W^T, never rounded to half precision: bfloat16 logits would bias the KL by up to 2.7e-3 nats a token.

    On a CPU bfloat16 operands give 16 significant bits: the rounded product, then what the rounding lost, both by the bfloat16 units.
    """
    half = weight_VD.dtype != torch.float32 and hidden_ND.dtype == weight_VD.dtype
    if half and hidden_ND.is_cuda and hasattr(torch.ops.aten.mm, "dtype_out"):
        torch.ops.aten.mm.dtype_out(hidden_ND, weight_VD.T, torch.float32, out=out_NV)
    elif (
        half
        and half_NV is not None
        and not hidden_ND.is_cuda
        and residual_is_exact(weight_VD.dtype)
    ):
        torch.mm(-hidden_ND, weight_VD.T, out=half_NV)
        out_NV.copy_(half_NV)
        torch.sub(half_NV.addmm_(hidden_ND, weight_VD.T), out_NV, out=out_NV)
    else:
        step = weight_VD.shape[0] if weight_VD.dtype == torch.float32 else SLICE
        wide = hidden_ND.float()
        for start in range(0, weight_VD.shape[0], step):
            at = slice(start, start + step)
            torch.mm(wide, weight_VD[at].float().T, out=out_NV[:, at])


def both_logits(hidden_ND, weight_VD, ref_hidden_ND, ref_weight_VD, out_2NV, half_2NV):
    """Policy logits above reference logits. On CUDA a shared head is read once, by one product of both. On a CPU two products
    of one shape: there a row's bits depend on its place in the product, and equal models must give a KL of exactly 0.
    """
    n = len(hidden_ND)
    if ref_hidden_ND is None:
        logits(hidden_ND, weight_VD, out_2NV, half_2NV)
    elif ref_weight_VD is None and hidden_ND.is_cuda and ref_hidden_ND.dtype == hidden_ND.dtype:
        logits(torch.cat((hidden_ND, ref_hidden_ND)), weight_VD, out_2NV, half_2NV)
    else:
        shared = weight_VD if ref_weight_VD is None else ref_weight_VD
        logits(hidden_ND, weight_VD, out_2NV[:n], half_2NV[:n] if half_2NV is not None else None)
        logits(ref_hidden_ND, shared, out_2NV[n:], half_2NV[n:] if half_2NV is not None else None)


def chunk_size(rows, bytes_per_row, workspace_bytes, at_most):
    size = max(1, min(rows, at_most, workspace_bytes // bytes_per_row))
    return size if size <= ALIGN else size // ALIGN * ALIGN


def forward_buffers(rows, R, V, models, half, workspace_bytes):
    """(float32 buffers, half-precision buffers, rows in a chunk) of the forward: each buffer is rows x V. half: a head of 16 bits."""
    floats = (
        3 if models == 2 and not rows.IN_PLACE else models
    )  # the last one of three is a scratch
    halves = models if half and not rows.IN_PLACE else 0
    return (
        floats,
        halves,
        chunk_size(R, V * (4 * floats + 2 * halves), workspace_bytes, rows.ROWS // floats),
    )


def backward_width(R, V, models, workspace_bytes):
    """How many rows of the head a slice of the backward takes."""
    return min(V, chunk_size(V, max(R, 1) * (4 * models + 2 * models + 6), workspace_bytes, SLICE))


def forward(
    rows,
    hidden_TD,
    weight_VD,
    rows_R,
    targets_R,
    ref_hidden_TD,
    ref_weight_VD,
    jacobian,
    workspace_bytes,
):
    """(stats_5R, J_RD, K_RD): float32; J and K are empty without `jacobian`, K also without a reference."""
    R, V, D, device = rows_R.numel(), *weight_VD.shape, hidden_TD.device
    models = 1 if ref_hidden_TD is None else 2
    stats_5R = torch.zeros(5, R, device=device)
    J_RD = torch.empty(R if jacobian else 0, D, device=device)
    K_RD = torch.empty_like(J_RD) if models == 2 else torch.empty(0, D, device=device)
    half_dtype = weight_VD.dtype if weight_VD.dtype != torch.float32 else None
    floats, halves, size = forward_buffers(rows, R, V, models, half_dtype, workspace_bytes)
    work = torch.empty(floats, size, V, device=device)
    half = torch.empty(halves, size, V, device=device, dtype=half_dtype) if halves else None
    for start in range(0, R, size):
        at = slice(start, min(start + size, R))
        n = at.stop - at.start
        out_2NV = work.view(-1, V)[: models * n]
        half_2NV = half.view(-1, V)[: models * n] if halves else None
        hidden_ND = hidden_TD.index_select(0, rows_R[at])
        ref_ND = ref_hidden_TD.index_select(0, rows_R[at]) if models == 2 else None
        both_logits(hidden_ND, weight_VD, ref_ND, ref_weight_VD, out_2NV, half_2NV)
        operands = rows.statistics(
            out_2NV,
            n,
            targets_R[at],
            stats_5R[:, at],
            half_2NV,
            work.view(-1, V)[-n:],
            jacobian,
            weight_VD.dtype,
        )
        if jacobian:
            # p and p (s - s_bar) meet the head in its own precision: rounding of a gradient, as in any bfloat16 backward
            product_2ND = (operands @ weight_VD).float()
            torch.sub(weight_VD[targets_R[at]].float(), product_2ND[:n], out=J_RD[at])
            if models == 2:
                K_RD[at] = product_2ND[n:]
    return stats_5R, J_RD, K_RD


def backward(
    rows,
    g_S,
    k_S,
    hidden_TD,
    weight_VD,
    rows_R,
    targets_R,
    segments_R,
    ref_hidden_TD,
    ref_weight_VD,
    stats_5R,
    train_head,
    workspace_bytes,
):
    """(grad_hidden_TD, grad_weight_VD): recomputes the logits over slices of the vocabulary. grad_weight_VD is empty unless `train_head`."""
    R, V, device = rows_R.numel(), weight_VD.shape[0], hidden_TD.device
    models = 1 if ref_hidden_TD is None else 2
    hidden_RD = hidden_TD.index_select(0, rows_R)
    ref_RD = ref_hidden_TD.index_select(0, rows_R) if models == 2 else None
    g_R, k_R = g_S[segments_R], k_S[segments_R]
    grad_RD = torch.zeros_like(hidden_RD, dtype=torch.float32)
    grad_weight_VD = torch.zeros_like(weight_VD if train_head else weight_VD[:0])
    half_dtype = weight_VD.dtype if weight_VD.dtype != torch.float32 and not rows.IN_PLACE else None
    width = backward_width(R, V, models, workspace_bytes)
    work = torch.empty(models * R * width, device=device)
    half = torch.empty(models * R * width, device=device, dtype=half_dtype) if half_dtype else None
    for start in range(0, V if R else 0, width):
        at = slice(start, min(start + width, V))
        W, shape = weight_VD[at], (models * R, at.stop - at.start)
        out_2RW = work[: shape[0] * shape[1]].view(shape)
        half_2RW = half[: shape[0] * shape[1]].view(shape) if half_dtype else None
        both_logits(
            hidden_RD,
            W,
            ref_RD,
            None if ref_weight_VD is None else ref_weight_VD[at],
            out_2RW,
            half_2RW,
        )
        dz_RW = rows.dlogits(
            out_2RW[:R],
            out_2RW[R:] if models == 2 else None,
            stats_5R,
            g_R,
            k_R,
            targets_R - start,
            W.dtype,
        )
        if train_head:
            grad_weight_VD[at] = dz_RW.T @ hidden_RD.to(W.dtype)
        grad_RD += (dz_RW @ W).float()
    none = grad_RD.new_empty(0)
    return rows.combine(
        None, None, grad_RD, none, None, rows_R, hidden_TD.shape[0], hidden_TD.dtype
    ), grad_weight_VD
