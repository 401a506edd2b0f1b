"""linear_logp_kl: from hidden states to log-prob and exact KL per sequence, without full logits.

Row i of R response rows has hidden state h (policy) and h0 (reference); the heads are W and W0:

    z = h W^T    r = h0 W0^T    s = z - r
    lse = log sum e^z          ref_lse = log sum e^r      p = e^(z - lse)
    logp = z_target - lse      ref_logp = r_target - ref_lse
    s_bar = sum p s            KL[p || p0] = s_bar - lse + ref_lse
    dz = g (onehot - p) + k p (s - s_bar)
    d logp / dh = W_target - p W        d KL / dh = (p (s - s_bar)) W

g, k: the upstream gradients of the row's segment for logp and KL; s is called the gap, s_bar the
mean gap.
Letters: T hidden rows, R response rows, S segments (sequences), D hidden width, V vocabulary; N
rows of a chunk, M = N or 2 N with a reference, W columns of a slice.

    inputs.py         what a call is given, and its checks
    reference.py      the oracle: full logits, autograd
    operators.py      forward and backward as two operators, joined by autograd
    chunked.py        the loop over chunks of rows, and over slices of the vocabulary
    products.py       the matrix products
    rows.py           the contract of the row operations; kept by torch_rows.py and triton_rows.py
    triton_sums.py    sums of rows in a fixed order
    sliced.py         a forward over slices of V for groups of rows, with triton_sliced.py
    triton_stream.py  a forward of its own, with nothing of width V in memory
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.head import operators
from kernels.head.inputs import (
    HeadInputs,
    check_backend,
    check_indices,
    check_inputs,
    check_tensors,
    check_workspace,
)
from kernels.head.operators import operator_bytes
from kernels.head.reference import dense
from kernels.head.rows import Wanted

__all__ = ["BACKENDS", "LogpKL", "linear_logp_kl", "operator_bytes"]

BACKENDS = ("auto", "dense", "torch", "triton", "triton-stream", "triton-chunk", "triton-sliced")

# "triton" without a gradient: up to so many rows one pass with nothing of width V in memory; above,
# the vendor's products
STREAM_ROWS = 1024


@dataclass(frozen=True)
class LogpKL:
    """Sums over the rows of each segment."""

    logp_S: Tensor  # log p(target); float32
    kl_S: Tensor | None  # KL[policy || reference]; None without a reference
    ref_logp_S: Tensor | None  # the reference's logp_S, no gradient; None without a reference
    tokens_S: Tensor  # how many rows; int64


def linear_logp_kl(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    rows_R: Tensor,
    targets_R: Tensor,
    segments_R: Tensor,
    num_segments: int,
    ref_hidden_TD: Tensor | None = None,
    ref_weight_VD: Tensor | None = None,
    backend: str = "auto",
    workspace_bytes: int = 256 << 20,
    kl_gradient: bool = True,
) -> LogpKL:
    """Log-prob and exact KL per segment, with independent gradients in `hidden_TD` and `weight_VD`.

    hidden_TD: policy hidden states after the final norm; float32, bfloat16 or float16 (float64:
    backend
        "dense" only).
    weight_VD: LM head. If it needs no gradient, both outputs' Jacobians are made in the forward (4
    products
        in all).
    rows_R: int64, the hidden row that predicts each response token; may repeat, any order.
    targets_R: int64 in [0, V), the token each row predicts.
    segments_R: int64 in [0, S), the sequence of each row.
    num_segments: S; a segment with no rows gives logp 0 and kl 0.
    ref_hidden_TD: frozen reference hidden states, same T, any width; None: no KL.
    ref_weight_VD: the reference's head; None: weight_VD, detached.
    backend: "dense" (oracle) | "torch" (bounded memory, any device) | "triton" (CUDA; picks a
        strategy by size) | "triton-stream" (nothing of width V in memory) | "triton-chunk"
        (chunks of rows, products by the vendor's library) | "triton-sliced" (groups of rows and
        slices of V, likewise) | "auto" (triton on CUDA, else torch).
    workspace_bytes: bound of the temporary memory, beside outputs of size O(R D).
    kl_gradient: False: kl_S is only reported; it comes detached, and a product is saved.

    Raises ValueError naming the argument, what was expected and what came.
    """
    inputs = HeadInputs(
        hidden_TD,
        weight_VD,
        rows_R,
        targets_R,
        segments_R,
        num_segments,
        ref_hidden_TD,
        ref_weight_VD,
    )
    check_tensors(inputs)
    if backend == "auto":
        backend = "triton" if hidden_TD.is_cuda and operators.HAS_TRITON else "torch"
    check_backend(backend, BACKENDS, inputs, operators.HAS_TRITON)
    check_inputs(inputs, float64=backend == "dense")
    check_workspace(workspace_bytes)
    inputs = _with_frozen_reference(inputs)

    if backend == "dense":
        check_indices(inputs)
        tokens_S = operators.tokens_in(segments_R, num_segments)
        logp_S, kl_S, ref_logp_S = dense(inputs)
        if kl_S is not None and not kl_gradient:
            kl_S = kl_S.detach()
        return LogpKL(logp_S, kl_S, ref_logp_S, tokens_S)

    # Which of the forwards, and the Jacobians that it makes.
    train_head = torch.is_grad_enabled() and weight_VD.requires_grad
    needs_grad = train_head or (torch.is_grad_enabled() and hidden_TD.requires_grad)
    if backend == "triton":
        backend = strategy(inputs.R, needs_grad)
    wanted = Wanted.NONE
    if needs_grad and not train_head and backend != "triton-stream":
        wanted = Wanted.BOTH if kl_gradient else Wanted.LOGP

    logp_S, kl_S, ref_logp_S, tokens_S, *_ = operators.forward(
        hidden_TD,
        weight_VD,
        rows_R,
        targets_R,
        segments_R,
        num_segments,
        inputs.ref_hidden_TD,
        inputs.ref_weight_VD,
        backend,
        workspace_bytes,
        int(wanted),
    )
    if ref_hidden_TD is None:
        return LogpKL(logp_S, None, None, tokens_S)
    if not kl_gradient:
        kl_S = kl_S.detach()
    return LogpKL(logp_S, kl_S, ref_logp_S, tokens_S)


def _with_frozen_reference(inputs: HeadInputs) -> HeadInputs:
    """The reference detached; its head None if it is the policy's own."""
    if inputs.ref_hidden_TD is None:
        return inputs
    ref_head_VD = inputs.ref_weight_VD
    if ref_head_VD is inputs.weight_VD:
        ref_head_VD = None
    return HeadInputs(
        inputs.hidden_TD,
        inputs.weight_VD,
        inputs.rows_R,
        inputs.targets_R,
        inputs.segments_R,
        inputs.num_segments,
        inputs.ref_hidden_TD.detach(),
        None if ref_head_VD is None else ref_head_VD.detach(),
    )


def strategy(R: int, needs_grad: bool) -> str:
    """The backend that "triton" stands for."""
    return "triton-chunk" if needs_grad or R > STREAM_ROWS else "triton-stream"
