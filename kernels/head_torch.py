"""The `torch` backend of linear_logp_kl: chunks through torch.mm, float32 statistics, bounded memory, any device.

Frozen head: rows in chunks; the forward also makes, per row, J = d logp / dh = W_target - p W and
K = d KL / dh = (p (s - s_bar)) W, so the backward is g J + k K for any upstream g, k: no second pass over V.
Trained head: the forward keeps lse, lse_r, s_bar; the backward goes over slices of the vocabulary, each slice of dW
written once. Formulas and letters: kernels/head.py.
"""

import torch

ROWS = 128  # rows of a chunk at most: 25 MB of float32 logits at V = 49152, about the last-level cache
SLICE = 4096  # vocabulary rows widened to float32 at a time


def sum_by_index(values, index, size):
    """out[i] = sum of values[index == i] in the order of `values`; the same bits every run, on every device (no float atomics)."""
    out_shape = (size, *values.shape[1:])
    if values.shape[0] == 0 or size == 0:
        return values.new_zeros(out_shape)
    order = torch.argsort(index, stable=True)
    offsets = torch.searchsorted(index[order], torch.arange(size + 1, device=index.device))
    return torch.segment_reduce(values[order].contiguous(), "sum", offsets=offsets, axis=0, initial=0, unsafe=True)


def logits(weight_VD, *pairs):
    """out[N, V] = hidden W^T for each (hidden, out), in float32 whatever the inputs: bfloat16 logits would bias the KL by up to
    2.7e-3 nats a token. Policy and reference are products of the same shape, never one taller one: equal inputs, equal bits.
    """
    step = weight_VD.shape[0] if weight_VD.dtype == torch.float32 else SLICE
    wide = [(hidden.float(), out) for hidden, out in pairs]
    for start in range(0, weight_VD.shape[0], step):
        slice_WD = weight_VD[start : start + step].float()
        for hidden, out in wide:
            torch.mm(hidden, slice_WD.T, out=out[:, start : start + step])


def log_sum_exp(z_NV, probs_NV):
    """lse of each row; probs_NV takes softmax(z). The largest probability is at least 1/V, so its log is exact to rounding."""
    torch.softmax(z_NV, 1, out=probs_NV)
    top, where = z_NV.max(1, keepdim=True)
    return (top - probs_NV.gather(1, where).log())[:, 0]


def row_dot(a_NV, b_NV):
    return torch.bmm(a_NV[:, None, :], b_NV[:, :, None])[:, 0, 0]


def chunk_rows(rows, vocabulary, buffers, workspace_bytes):
    return max(1, min(rows, ROWS, workspace_bytes // (4 * buffers * vocabulary)))


class _Rows:
    """Per-row statistics, filled chunk by chunk: logp, kl, ref_logp for the result; lse, lse_r, s_bar for the backward."""

    def __init__(self, rows, device):
        self.logp, self.kl, self.ref_logp, self.lse, self.ref_lse, self.s_bar = torch.zeros(6, rows, device=device)


def _chunks(ctx_inputs, workspace_bytes, buffers):
    """Yield (slice, z, p, stats) per chunk of rows. On the yield z holds s = z - r (or z itself without a reference), p the policy's probs."""
    hidden_TD, weight_VD, rows_R, targets_R, ref_hidden_TD, ref_weight_VD = ctx_inputs
    R, V, device = rows_R.numel(), weight_VD.shape[0], hidden_TD.device
    stats = _Rows(R, device)
    if R == 0:
        return stats, iter(())

    def walk():
        size = chunk_rows(R, V, buffers, workspace_bytes)
        work = torch.empty(3 if ref_hidden_TD is not None else 2, size, V, device=device)
        for start in range(0, R, size):
            at = slice(start, min(start + size, R))
            n = at.stop - at.start
            z, p = work[0, :n], work[1, :n]
            target = targets_R[at, None]
            policy = hidden_TD.index_select(0, rows_R[at]), z
            if ref_hidden_TD is None:
                logits(weight_VD, policy)
            else:
                r = work[2, :n]
                reference = ref_hidden_TD.index_select(0, rows_R[at]), r
                if ref_weight_VD.is_set_to(weight_VD):
                    logits(weight_VD, policy, reference)  # a shared head is widened once
                else:
                    logits(weight_VD, policy)
                    logits(ref_weight_VD, reference)
                stats.ref_lse[at] = log_sum_exp(r, p)
                stats.ref_logp[at] = r.gather(1, target)[:, 0] - stats.ref_lse[at]
            stats.lse[at] = log_sum_exp(z, p)
            stats.logp[at] = z.gather(1, target)[:, 0] - stats.lse[at]
            if ref_hidden_TD is not None:
                z.sub_(r)
                stats.s_bar[at] = row_dot(p, z)
                stats.kl[at] = stats.s_bar[at] - stats.lse[at] + stats.ref_lse[at]
            yield at, z, p

    return stats, walk()


class FrozenHead(torch.autograd.Function):
    """No gradient for the head: the Jacobian of both outputs in the forward."""

    @staticmethod
    def forward(ctx, hidden_TD, weight_VD, rows_R, targets_R, segments_R, num_segments, ref_hidden_TD, ref_weight_VD,
                workspace_bytes, needs_grad):
        inputs = hidden_TD, weight_VD, rows_R, targets_R, ref_hidden_TD, ref_weight_VD
        stats, chunks = _chunks(inputs, workspace_bytes, buffers=4)
        ctx.has_ref, R, D = ref_hidden_TD is not None, rows_R.numel(), hidden_TD.shape[1]
        J = hidden_TD.new_empty(R if needs_grad else 0, D, dtype=torch.float32)
        K = torch.empty_like(J) if ctx.has_ref else J.new_empty(0, D)
        for at, s, p in chunks:
            if needs_grad:
                # p and p (s - s_bar) meet the head in its own precision: rounding of a gradient, as in any bfloat16 backward
                J[at] = weight_VD[targets_R[at]].float() - (p.to(weight_VD.dtype) @ weight_VD).float()
                if ctx.has_ref:
                    s.sub_(stats.s_bar[at, None]).mul_(p)
                    K[at] = (s.to(weight_VD.dtype) @ weight_VD).float()
        ctx.save_for_backward(J, K, rows_R, segments_R)
        ctx.shape_TD, ctx.dtype = hidden_TD.shape, hidden_TD.dtype
        ref_logp_S = sum_by_index(stats.ref_logp, segments_R, num_segments)
        ctx.mark_non_differentiable(ref_logp_S)
        return (sum_by_index(stats.logp, segments_R, num_segments), sum_by_index(stats.kl, segments_R, num_segments), ref_logp_S)

    @staticmethod
    def backward(ctx, g_S, k_S, _):
        J, K, rows_R, segments_R = ctx.saved_tensors
        grad_RD = g_S[segments_R, None] * J
        if ctx.has_ref:
            grad_RD += k_S[segments_R, None] * K
        grad_TD = sum_by_index(grad_RD, rows_R, ctx.shape_TD[0])
        return grad_TD.to(ctx.dtype), *[None] * 9


class TrainedHead(torch.autograd.Function):
    """Gradients for hidden states and head: statistics in the forward, slices of the vocabulary in the backward."""

    @staticmethod
    def forward(ctx, hidden_TD, weight_VD, rows_R, targets_R, segments_R, num_segments, ref_hidden_TD, ref_weight_VD,
                workspace_bytes, needs_grad):
        inputs = hidden_TD, weight_VD, rows_R, targets_R, ref_hidden_TD, ref_weight_VD
        stats, chunks = _chunks(inputs, workspace_bytes, buffers=3)
        for _ in chunks:
            pass
        ctx.save_for_backward(*inputs, segments_R, stats.lse, stats.s_bar)
        ctx.workspace_bytes = workspace_bytes
        ref_logp_S = sum_by_index(stats.ref_logp, segments_R, num_segments)
        ctx.mark_non_differentiable(ref_logp_S)
        return (sum_by_index(stats.logp, segments_R, num_segments), sum_by_index(stats.kl, segments_R, num_segments), ref_logp_S)

    @staticmethod
    def backward(ctx, g_S, k_S, _):
        hidden_TD, weight_VD, rows_R, targets_R, ref_hidden_TD, ref_weight_VD, segments_R, lse_R, s_bar_R = ctx.saved_tensors
        R, V = rows_R.numel(), weight_VD.shape[0]
        hidden_RD = hidden_TD.index_select(0, rows_R)
        ref_RD = ref_hidden_TD.index_select(0, rows_R) if ref_hidden_TD is not None else None
        g_R, k_R = g_S[segments_R, None], k_S[segments_R, None]
        grad_hidden_RD = torch.zeros_like(hidden_RD, dtype=torch.float32)
        grad_weight_VD = torch.zeros_like(weight_VD)
        width = max(1, min(V, SLICE, ctx.workspace_bytes // (24 * max(R, 1))))  # six float32 buffers [R, width] at most
        for start in range(0, V if R else 0, width):
            at = slice(start, min(start + width, V))
            W, rows = weight_VD[at], torch.arange(R, device=hidden_TD.device)
            z = hidden_RD.float() @ W.float().T
            p = (z - lse_R[:, None]).exp_()
            dz = p * -g_R
            if ref_RD is not None:
                z.sub_(ref_RD.float() @ ref_weight_VD[at].float().T).sub_(s_bar_R[:, None])
                dz.addcmul_(z.mul_(p), k_R)
            here = (targets_R >= at.start) & (targets_R < at.stop)
            # one target a row, so no two additions meet: no order to keep
            dz[rows, (targets_R - at.start).clamp(0, at.stop - at.start - 1)] += torch.where(here, g_R[:, 0], 0)
            dz = dz.to(W.dtype)
            grad_weight_VD[at] = dz.T @ hidden_RD.to(W.dtype)
            grad_hidden_RD += (dz @ W).float()
        grad_TD = sum_by_index(grad_hidden_RD, rows_R, hidden_TD.shape[0])
        return grad_TD.to(hidden_TD.dtype), grad_weight_VD, *[None] * 8
