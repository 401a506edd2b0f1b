"""linear_logp_kl: hidden states -> per-sequence log-prob and exact token-KL to a frozen reference, without full logits.

    z = h W^T,  r = h0 W0^T,  s = z - r,  lse = log sum e^z,  lse_r = log sum e^r,  p = e^(z - lse)
    logp = z_target - lse,  ref_logp = r_target - lse_r,  s_bar = sum p s,  KL[p || p0] = s_bar - lse + lse_r
    dz = g (onehot - p) + k p (s - s_bar),   g, k: the upstream gradients of the row's segment for logp and KL

Letters: T hidden rows, R response rows, S segments (sequences), D hidden width, V vocabulary.
"""

import importlib.util
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import head_chunks, head_torch
from kernels.common import FLOATS, expect, expect_once, operator

head_triton = None  # Triton has no wheel for every platform; there the torch backend does the work
if importlib.util.find_spec("triton"):
    from kernels import head_triton

BACKENDS = ("auto", "dense", "torch", "triton", "triton-stream", "triton-chunk")
STREAM_ROWS = 1024  # "triton" without a gradient: up to so many rows, one pass with nothing of width V; above, the vendor's products


@dataclass(frozen=True)
class LogpKL:
    logp_S: torch.Tensor  # sum of log p(target) over the segment's rows; float32
    kl_S: (
        torch.Tensor | None
    )  # sum over the segment's rows of KL[policy || reference]; None without a reference
    ref_logp_S: torch.Tensor | None  # the reference's logp_S, no gradient; None without a reference
    tokens_S: torch.Tensor  # rows in each segment; int64


def dense(
    hidden_TD, weight_VD, rows_R, targets_R, segments_R, num_segments, ref_hidden_TD, ref_weight_VD
):
    """The oracle: full logits, autograd, in float32, or in float64 when the inputs are. Returns per-segment (logp, kl, ref_logp)."""
    wide = torch.promote_types(hidden_TD.dtype, torch.float32)
    logp_RV = (hidden_TD[rows_R].to(wide) @ weight_VD.to(wide).T).log_softmax(-1)

    def per_segment(x_R):
        return x_R.new_zeros(num_segments).index_add(0, segments_R, x_R)

    if ref_weight_VD is None:
        ref_weight_VD = weight_VD

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
    backend: "dense" (oracle) | "torch" (bounded memory, any device) | "triton" (CUDA; picks a strategy by size) | "triton-stream" (nothing of
    width V in memory) | "triton-chunk" (products by the vendor's library) | "auto" (triton on CUDA, else torch).
    workspace_bytes: bound of the temporary memory, beside outputs of size O(R D).

    Returns LogpKL. Raises ValueError naming the argument, what was expected and what came.
    """
    backend = _validate(
        hidden_TD,
        weight_VD,
        rows_R,
        targets_R,
        segments_R,
        num_segments,
        ref_hidden_TD,
        ref_weight_VD,
        backend,
        workspace_bytes,
    )
    if ref_hidden_TD is not None:
        ref_hidden_TD = ref_hidden_TD.detach()
        ref_weight_VD = (
            None if ref_weight_VD is weight_VD or ref_weight_VD is None else ref_weight_VD.detach()
        )
    tensors = (
        hidden_TD,
        weight_VD,
        rows_R,
        targets_R,
        segments_R,
        num_segments,
        ref_hidden_TD,
        ref_weight_VD,
    )
    if backend == "dense":
        _expect_indices(hidden_TD, weight_VD, rows_R, targets_R, segments_R, num_segments)
        tokens_S = torch.zeros(num_segments, dtype=torch.int64, device=rows_R.device).index_add(
            0, segments_R, torch.ones_like(rows_R)
        )
        return LogpKL(*dense(*tensors), tokens_S)
    train_head = torch.is_grad_enabled() and weight_VD.requires_grad
    needs_grad = train_head or (torch.is_grad_enabled() and hidden_TD.requires_grad)
    if (
        backend == "triton"
    ):  # a gradient with a frozen head: the Jacobian in the forward saves a product over recomputing it
        stream = train_head or (not needs_grad and rows_R.numel() <= STREAM_ROWS)
        backend = "triton-stream" if stream else "triton-chunk"
    jacobian = needs_grad and not train_head and backend != "triton-stream"
    logp_S, kl_S, ref_logp_S, tokens_S, *_ = _forward(*tensors, backend, workspace_bytes, jacobian)
    if ref_hidden_TD is None:
        return LogpKL(logp_S, None, None, tokens_S)
    return LogpKL(logp_S, kl_S, ref_logp_S, tokens_S)


def _rows(backend):
    return head_triton if backend.startswith("triton") else head_torch


def _contiguous(*tensors):
    """The Triton kernels count on neighbours; what is contiguous already is not copied."""
    return [x if x is None else x.contiguous() for x in tensors]


# Two operators that torch.compile takes whole, with the shapes of their results; autograd joins them below.


def _forward_shapes(
    hidden_TD,
    weight_VD,
    rows_R,
    targets_R,
    segments_R,
    num_segments,
    ref_hidden_TD,
    ref_weight_VD,
    backend,
    workspace_bytes,
    jacobian,
):
    def floats(*shape):
        return hidden_TD.new_empty(shape, dtype=torch.float32)

    R, D, S = rows_R.shape[0], hidden_TD.shape[1], num_segments
    J_shape = (0,) if backend == "triton-stream" else (R if jacobian else 0, D)
    K_shape = (
        (0,) if backend == "triton-stream" else J_shape if ref_hidden_TD is not None else (0, D)
    )
    return (
        floats(S),
        floats(S),
        floats(S),
        rows_R.new_empty(S),
        floats(5, R),
        floats(*J_shape),
        floats(*K_shape),
    )


@operator("linear_logp_kl", _forward_shapes)
def _forward(
    hidden_TD: Tensor, weight_VD: Tensor, rows_R: Tensor, targets_R: Tensor, segments_R: Tensor, num_segments: int,
    ref_hidden_TD: Tensor | None, ref_weight_VD: Tensor | None, backend: str, workspace_bytes: int, jacobian: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """logp_S, kl_S, ref_logp_S, tokens_S, then what the backward keeps: stats_5R, J_RD, K_RD (see kernels/head_chunks.py)."""
    _expect_indices(hidden_TD, weight_VD, rows_R, targets_R, segments_R, num_segments)
    hidden_TD, weight_VD, rows_R, targets_R, segments_R, ref_hidden_TD, ref_weight_VD = _contiguous(
        hidden_TD, weight_VD, rows_R, targets_R, segments_R, ref_hidden_TD, ref_weight_VD
    )
    tensors = hidden_TD, weight_VD, rows_R, targets_R, ref_hidden_TD, ref_weight_VD
    if backend == "triton-stream":
        kept = (
            head_triton.stream_statistics(*tensors),
            hidden_TD.new_empty(0, dtype=torch.float32),
            hidden_TD.new_empty(0, dtype=torch.float32),
        )
    else:
        kept = head_chunks.forward(_rows(backend), *tensors, jacobian, workspace_bytes)
    lse, ref_lse, s_bar, z_target, ref_target = kept[0]
    # s_bar is 0 and both lse the same bits when the models are equal, so that this KL is exactly 0
    each_R3 = torch.stack((z_target - lse, s_bar - lse + ref_lse, ref_target - ref_lse), 1)
    sums_S3 = _rows(backend).sum_by_index(each_R3, segments_R, num_segments)
    tokens_S = torch.zeros(num_segments, dtype=torch.int64, device=rows_R.device).index_add(
        0, segments_R, torch.ones_like(rows_R)
    )
    return *(sums_S3[:, i].clone() for i in range(3)), tokens_S, *kept


def _backward_shapes(g_S, k_S, hidden_TD, weight_VD, *rest):
    train_head = rest[-1]
    return hidden_TD.new_empty(hidden_TD.shape), weight_VD.new_empty(
        weight_VD.shape if train_head else (0, weight_VD.shape[1])
    )


@operator("linear_logp_kl_backward", _backward_shapes)
def _backward(
    g_S: Tensor, k_S: Tensor, hidden_TD: Tensor, weight_VD: Tensor, rows_R: Tensor, targets_R: Tensor, segments_R: Tensor,
    ref_hidden_TD: Tensor | None, ref_weight_VD: Tensor | None, stats_5R: Tensor, J_RD: Tensor, K_RD: Tensor, backend: str,
    workspace_bytes: int, jacobian: bool, train_head: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of hidden_TD and weight_VD; the second is empty for a frozen head."""
    rows, (rows_R, targets_R, segments_R) = (
        _rows(backend),
        _contiguous(rows_R, targets_R, segments_R),
    )
    if jacobian:
        grad_TD = rows.combine(
            g_S, k_S, J_RD, K_RD, segments_R, rows_R, hidden_TD.shape[0], hidden_TD.dtype
        )
        return grad_TD, weight_VD.new_empty(0, weight_VD.shape[1])
    return head_chunks.backward(rows, g_S, k_S, hidden_TD.contiguous(), weight_VD.contiguous(), rows_R, targets_R, segments_R, ref_hidden_TD,
                                ref_weight_VD, stats_5R, train_head, workspace_bytes)  # fmt: skip


def _keep(ctx, inputs, output):
    (
        hidden_TD,
        weight_VD,
        rows_R,
        targets_R,
        segments_R,
        ctx.num_segments,
        ref_hidden_TD,
        ref_weight_VD,
        *ctx.options,
    ) = inputs
    _, _, ref_logp_S, tokens_S, stats_5R, J_RD, K_RD = output
    ctx.mark_non_differentiable(ref_logp_S, tokens_S, stats_5R, J_RD, K_RD)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(
        hidden_TD,
        weight_VD,
        rows_R,
        targets_R,
        segments_R,
        ref_hidden_TD,
        ref_weight_VD,
        stats_5R,
        J_RD,
        K_RD,
    )


def _gradients(ctx, g_S, k_S, *_):
    expect_once("linear_logp_kl")
    train_head = ctx.needs_input_grad[1]
    zeros_S = ctx.saved_tensors[-1].new_zeros(ctx.num_segments)
    g_S, k_S = (zeros_S if x is None else x.contiguous() for x in (g_S, k_S))
    grad_TD, grad_VD = _backward(g_S, k_S, *ctx.saved_tensors, *ctx.options, train_head)
    return (
        grad_TD if ctx.needs_input_grad[0] else None,
        grad_VD if train_head else None,
        *[None] * 9,
    )


torch.library.register_autograd("ecliptica::linear_logp_kl", _gradients, setup_context=_keep)


def _expect(condition, name, expected, got):
    expect(condition, "linear_logp_kl", name, expected, got)


def _validate(
    hidden_TD,
    weight_VD,
    rows_R,
    targets_R,
    segments_R,
    num_segments,
    ref_hidden_TD,
    ref_weight_VD,
    backend,
    workspace_bytes,
):
    """The backend, "auto" resolved."""
    optional = {} if ref_hidden_TD is None else {"ref_hidden_TD": ref_hidden_TD}
    optional |= {} if ref_weight_VD is None else {"ref_weight_VD": ref_weight_VD}
    floating, indices = (
        {"hidden_TD": hidden_TD, "weight_VD": weight_VD} | optional,
        {"rows_R": rows_R, "targets_R": targets_R, "segments_R": segments_R},
    )
    for name, x in (floating | indices).items():
        _expect(isinstance(x, Tensor), name, "a tensor", type(x).__name__)
        _expect(
            not hasattr(x, "device_mesh"),
            name,
            "a plain tensor (gather a sharded one first: full_tensor())",
            type(x).__name__,
        )
    if backend == "auto":
        backend = "triton" if hidden_TD.is_cuda and head_triton else "torch"
    _expect(backend in BACKENDS, "backend", f"one of {', '.join(BACKENDS)}", repr(backend))
    if backend.startswith("triton"):
        _expect(
            head_triton is not None,
            "backend",
            "auto, dense or torch, since Triton is not installed",
            repr(backend),
        )
        _expect(
            hidden_TD.is_cuda or head_triton.INTERPRET,
            "backend",
            "CUDA tensors (or TRITON_INTERPRET=1)",
            f"{backend} on {hidden_TD.device}",
        )
    floats = FLOATS + (torch.float64,) if backend == "dense" else FLOATS
    for name, x in floating.items():
        _expect(x.dim() == 2, name, "a matrix", f"shape {list(x.shape)}")
        _expect(x.dtype in floats, name, "float32, bfloat16 or float16", str(x.dtype))
        _expect(
            x.device == hidden_TD.device,
            name,
            f"device {hidden_TD.device}, as hidden_TD",
            str(x.device),
        )
    T, D = hidden_TD.shape
    V = weight_VD.shape[0]
    _expect(V > 0, "weight_VD", "at least one row", f"shape {list(weight_VD.shape)}")
    _expect(
        weight_VD.shape[1] == D,
        "weight_VD",
        f"width {D}, as hidden_TD",
        f"shape {list(weight_VD.shape)}",
    )
    if ref_hidden_TD is None:
        _expect(ref_weight_VD is None, "ref_weight_VD", "None without ref_hidden_TD", "a tensor")
    else:
        if (
            ref_hidden_TD.shape[0] != T
        ):  # a number in a message is a constant to torch.compile: it would compile for each T anew
            _expect(
                False,
                "ref_hidden_TD",
                f"{T} rows, as hidden_TD",
                f"shape {list(ref_hidden_TD.shape)}",
            )
        shape, got = (
            [V, ref_hidden_TD.shape[1]],
            list((weight_VD if ref_weight_VD is None else ref_weight_VD).shape),
        )
        _expect(got == shape, "ref_weight_VD", f"shape {shape}", f"shape {got}")
    _expect(
        isinstance(num_segments, int) and num_segments >= 0,
        "num_segments",
        "an int >= 0",
        num_segments,
    )
    _expect(
        isinstance(workspace_bytes, int) and workspace_bytes >= 0,
        "workspace_bytes",
        "an int >= 0",
        workspace_bytes,
    )
    for name, x in indices.items():
        _expect(
            x.dtype == torch.int64 and x.dim() == 1,
            name,
            "a vector of int64",
            f"{x.dtype}, shape {list(x.shape)}",
        )
        if x.shape != rows_R.shape:
            _expect(False, name, f"{rows_R.shape[0]} entries, as rows_R", f"{x.shape[0]}")
        _expect(
            x.device == hidden_TD.device,
            name,
            f"device {hidden_TD.device}, as hidden_TD",
            str(x.device),
        )
    return backend


def _expect_indices(hidden_TD, weight_VD, rows_R, targets_R, segments_R, num_segments):
    """Values in range. On CUDA the device itself raises: no host sync."""
    sizes = hidden_TD.shape[0], weight_VD.shape[0], num_segments
    for name, x, size in zip(
        ("rows_R", "targets_R", "segments_R"), (rows_R, targets_R, segments_R), sizes, strict=True
    ):
        inside = ((x >= 0) & (x < size)).all()
        if x.is_cuda:
            torch._assert_async(inside, f"{name}: expected values in [0, {size})")
        elif not inside:
            worst = int(x[(x < 0) | (x >= size)][0])
            _expect(False, name, f"values in [0, {size})", str(worst))
