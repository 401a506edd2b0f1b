"""linear_logp_kl: hidden states -> per-sequence log-prob and exact token-KL to a frozen reference, without full logits.

    z = h W^T,  r = h0 W0^T,  s = z - r,  lse = log sum e^z,  lse_r = log sum e^r,  p = e^(z - lse)
    logp = z_target - lse,  ref_logp = r_target - lse_r,  s_bar = sum p s,  KL[p || p0] = s_bar - lse + lse_r
    dz = g (onehot - p) + k p (s - s_bar),   g, k: the upstream gradients of the row's segment for logp and KL

Letters: T hidden rows, R response rows, S segments (sequences), D hidden width, V vocabulary.
"""

from dataclasses import dataclass

import torch

from kernels.head_torch import FrozenHead, TrainedHead, sum_by_index

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
BACKENDS = ("auto", "dense", "torch")


@dataclass(frozen=True)
class LogpKL:
    logp_S: torch.Tensor  # sum of log p(target) over the segment's rows; float32
    kl_S: torch.Tensor | None  # sum over the segment's rows of KL[policy || reference]; None without a reference
    ref_logp_S: torch.Tensor | None  # the reference's logp_S, no gradient; None without a reference
    tokens_S: torch.Tensor  # rows in each segment; int64


def dense(hidden_TD, weight_VD, rows_R, targets_R, segments_R, num_segments, ref_hidden_TD, ref_weight_VD):
    """The oracle: full logits, autograd, in float32, or in float64 when the inputs are. Returns per-segment (logp, kl, ref_logp)."""
    wide = torch.promote_types(hidden_TD.dtype, torch.float32)
    logp_RV = (hidden_TD[rows_R].to(wide) @ weight_VD.to(wide).T).log_softmax(-1)

    def per_segment(x_R):
        return x_R.new_zeros(num_segments).index_add(0, segments_R, x_R)

    def of_targets(x_RV):
        return per_segment(x_RV.gather(1, targets_R[:, None])[:, 0])

    if ref_hidden_TD is None:
        return of_targets(logp_RV), None, None
    with torch.no_grad():
        ref_RV = (ref_hidden_TD[rows_R].to(wide) @ ref_weight_VD.to(wide).T).log_softmax(-1)
    kl_R = (logp_RV.exp() * (logp_RV - ref_RV)).sum(-1)
    return of_targets(logp_RV), per_segment(kl_R), of_targets(ref_RV)


def linear_logp_kl(
    hidden_TD,
    weight_VD,
    rows_R,
    targets_R,
    segments_R,
    num_segments,
    ref_hidden_TD=None,
    ref_weight_VD=None,
    backend="auto",
    workspace_bytes=256 << 20,
):
    """Log-prob and exact KL per segment, with independent gradients in `hidden_TD` and `weight_VD`.

    hidden_TD: policy hidden states after the final norm; float32, bfloat16 or float16 (float64: backend "dense" only).
    weight_VD: LM head. If it needs no gradient, the Jacobian of both outputs is made in the forward (4 GEMMs in all).
    rows_R: int64, the hidden row that predicts each response token; may repeat, any order.
    targets_R: int64 in [0, V), the token each row predicts. segments_R: int64 in [0, S), the sequence of each row.
    num_segments: S; a segment with no rows gives logp 0 and kl 0.
    ref_hidden_TD: frozen reference hidden states, same T, any width; None: no KL. ref_weight_VD: its head; None: weight_VD, detached.
    backend: "dense" (oracle) | "torch" (bounded memory, any device) | "auto" (torch).
    workspace_bytes: bound of the temporary memory of "torch", beside outputs of size O(R D).

    Returns LogpKL. Raises ValueError naming the argument, what was expected and what came.
    """
    if ref_hidden_TD is not None:
        ref_hidden_TD = ref_hidden_TD.detach()
        ref_weight_VD = (weight_VD if ref_weight_VD is None else ref_weight_VD).detach()
    _validate(hidden_TD, weight_VD, rows_R, targets_R, segments_R, num_segments, ref_hidden_TD, ref_weight_VD, backend)
    tokens_S = sum_by_index(torch.ones_like(segments_R, dtype=torch.float64), segments_R, num_segments).long()
    tensors = hidden_TD, weight_VD, rows_R, targets_R, segments_R, num_segments, ref_hidden_TD, ref_weight_VD
    if backend == "dense":
        return LogpKL(*dense(*tensors), tokens_S)
    train_head = torch.is_grad_enabled() and weight_VD.requires_grad
    head = TrainedHead if train_head else FrozenHead
    needs_grad = torch.is_grad_enabled() and (hidden_TD.requires_grad or weight_VD.requires_grad)
    logp_S, kl_S, ref_logp_S = head.apply(*tensors, workspace_bytes, needs_grad)
    if ref_hidden_TD is None:
        return LogpKL(logp_S, None, None, tokens_S)
    return LogpKL(logp_S, kl_S, ref_logp_S, tokens_S)


def _validate(hidden_TD, weight_VD, rows_R, targets_R, segments_R, num_segments, ref_hidden_TD, ref_weight_VD, backend):
    _expect(backend in BACKENDS, "backend", f"one of {', '.join(BACKENDS)}", repr(backend))
    floats = FLOATS + (torch.float64,) if backend == "dense" else FLOATS
    for name, x in (("hidden_TD", hidden_TD), ("weight_VD", weight_VD), ("ref_hidden_TD", ref_hidden_TD), ("ref_weight_VD", ref_weight_VD)):
        if x is not None:
            _expect(x.dim() == 2, name, "a matrix", f"shape {list(x.shape)}")
            _expect(x.dtype in floats, name, "float32, bfloat16 or float16", str(x.dtype))
            _expect(x.device == hidden_TD.device, name, f"device {hidden_TD.device}, as hidden_TD", str(x.device))
    T, D = hidden_TD.shape
    V = weight_VD.shape[0]
    _expect(weight_VD.shape[1] == D, "weight_VD", f"width {D}, as hidden_TD", f"shape {list(weight_VD.shape)}")
    if ref_hidden_TD is None:
        _expect(ref_weight_VD is None, "ref_weight_VD", "None without ref_hidden_TD", "a tensor")
    else:
        _expect(ref_hidden_TD.shape[0] == T, "ref_hidden_TD", f"{T} rows, as hidden_TD", f"shape {list(ref_hidden_TD.shape)}")
        shape = [V, ref_hidden_TD.shape[1]]
        _expect(list(ref_weight_VD.shape) == shape, "ref_weight_VD", f"shape {shape}", f"shape {list(ref_weight_VD.shape)}")
    _expect(isinstance(num_segments, int) and num_segments >= 0, "num_segments", "an int >= 0", repr(num_segments))
    R = rows_R.numel()
    for name, x, size in (("rows_R", rows_R, T), ("targets_R", targets_R, V), ("segments_R", segments_R, num_segments)):
        _expect(x.dtype == torch.int64 and x.dim() == 1, name, "a vector of int64", f"{x.dtype}, shape {list(x.shape)}")
        _expect(x.numel() == R, name, f"{R} entries, as rows_R", f"{x.numel()}")
        _expect(x.device == hidden_TD.device, name, f"device {hidden_TD.device}, as hidden_TD", str(x.device))
        inside = ((x >= 0) & (x < size)).all()
        if x.is_cuda:  # no host sync: the device itself raises
            torch._assert_async(inside, f"{name}: expected values in [0, {size})")
        elif not inside:
            worst = int(x[(x < 0) | (x >= size)][0])
            _expect(False, name, f"values in [0, {size})", str(worst))


def _expect(condition, name, expected, got):
    if not condition:
        raise ValueError(f"linear_logp_kl: {name}: expected {expected}, got {got}")
