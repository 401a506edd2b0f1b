"""Row operations of the fused head in plain torch: any device, float32 statistics. Formulas and letters: kernels/head.py.

N rows of logits at a time; `half_2NV` is a buffer in the head's own dtype, None when that is float32.
"""

import torch

ROWS = 384  # of a chunk at most, all its float32 buffers together: 75 MB of logits at V = 49152; twice as many gain a tenth at most
IN_PLACE = False  # probabilities in half precision need a buffer of their own


def sum_by_index(values, index, size):
    """out[i] = sum of values[index == i] in the order of `values`; the same bits every run, on every device (no float atomics)."""
    if values.shape[0] == 0 or size == 0:
        return values.new_zeros(size, *values.shape[1:])
    order = torch.argsort(index, stable=True)
    offsets = torch.searchsorted(index[order], torch.arange(size + 1, device=index.device))
    return torch.segment_reduce(
        values[order].contiguous(), "sum", offsets=offsets, axis=0, initial=0, unsafe=True
    )


def combine(g_S, k_S, J_RD, K_RD, segments_R, rows_R, T, dtype):
    """out[t] = sum over the rows j with rows_R[j] = t of g J[j] + k K[j]; K_RD may be empty, g_S None for a plain sum of J."""
    grad_RD = J_RD if g_S is None else g_S[segments_R, None] * J_RD
    if K_RD.numel():
        grad_RD.addcmul_(k_S[segments_R, None], K_RD)
    return sum_by_index(grad_RD, rows_R, T).to(dtype)


def statistics(logits_2NV, n, target_N, out_5N, half_2NV, scratch_NV, jacobian, dtype):
    """Fill out_5N with (lse, lse_r, s_bar, z_target, r_target); overwrites logits_2NV: n rows of the policy, then n of the reference
    or none. With `jacobian` returns p and, below it, p (s - s_bar), in `dtype`.
    """
    z, r = logits_2NV[:n], logits_2NV[n:] if len(logits_2NV) > n else None

    def lse(x_NV, probs_NV):  # the largest probability is 1 / l
        top = x_NV.amax(1)
        torch.softmax(x_NV, 1, out=probs_NV)
        return top - probs_NV.amax(1).log()

    out_5N[3] = z.gather(1, target_N[:, None])[:, 0]
    if r is not None:
        out_5N[4] = r.gather(1, target_N[:, None])[:, 0]
        out_5N[1] = lse(r, scratch_NV)
        torch.sub(z, r, out=r)
    out_5N[0] = lse(z, z)
    if r is not None:
        out_5N[2] = r.mul_(z).sum(1)
    if not jacobian:
        return None
    if r is not None:
        r.addcmul_(z, out_5N[2][:, None], value=-1)
    return logits_2NV if half_2NV is None else half_2NV.copy_(logits_2NV)


def dlogits(z_RW, r_RW, stats_5R, g_R, k_R, column_R, dtype):
    """dz = g (onehot - p) + k p (s - s_bar) over a slice of the vocabulary, in `dtype`; overwrites both. column_R: the target in the slice's numbering."""
    lse, _, s_bar, _, _ = stats_5R[:, :, None]
    if r_RW is not None:
        torch.sub(z_RW, r_RW, out=r_RW).sub_(s_bar).mul_(k_R[:, None]).sub_(g_R[:, None])
    z_RW.sub_(lse).exp_()
    z_RW.mul_(r_RW if r_RW is not None else -g_R[:, None])
    rows = torch.arange(len(z_RW), device=z_RW.device)
    here = (column_R >= 0) & (column_R < z_RW.shape[1])
    # one target a row, so no two additions meet: no order to keep
    z_RW[rows, column_R.clamp(0, z_RW.shape[1] - 1)] += torch.where(here, g_R, 0)
    return z_RW.to(dtype)
