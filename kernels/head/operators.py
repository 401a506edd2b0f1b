"""Forward and backward of the fused head: two operators that torch.compile takes whole.

Each declares the shapes of its results; autograd joins them. The public function is linear_logp_kl
in kernels/head/__init__.py.
"""

import importlib.util

import torch
from torch import Tensor

from kernels.common import expect_once, operator
from kernels.head import chunked, torch_rows
from kernels.head.inputs import HeadInputs, check_indices
from kernels.head.rows import (
    LSE,
    MEAN_GAP,
    REF_LSE,
    REF_TARGET_LOGIT,
    TARGET_LOGIT,
    Jacobians,
    RowOperations,
    Upstream,
    Wanted,
)

# Triton has no wheel for every platform; there the torch backend does the work.
HAS_TRITON = importlib.util.find_spec("triton") is not None
if HAS_TRITON:
    from kernels.head import sliced, triton_rows, triton_stream


def row_operations(backend: str) -> RowOperations:
    return triton_rows.ROWS if backend.startswith("triton") else torch_rows.ROWS


def tokens_in(segments_R: Tensor, num_segments: int) -> Tensor:
    """How many rows each segment has."""
    none_S = torch.zeros(num_segments, dtype=torch.int64, device=segments_R.device)
    return none_S.index_add(0, segments_R, torch.ones_like(segments_R))


def operator_bytes(name: str, arguments: tuple, cuda: bool) -> int:
    """Bytes that one of the two operators holds inside itself, beside its results; else 0.

    For planning on shapes. name: as the dispatcher prints it. cuda: where it is to run.
    """
    backend = "triton-chunk" if cuda and HAS_TRITON else "torch"
    rows = row_operations(backend)
    if name.startswith("ecliptica.linear_logp_kl.default"):
        inputs = HeadInputs(*arguments[:8])
        return chunked.forward_bytes(rows, inputs, workspace_bytes=arguments[9])
    if name.startswith("ecliptica.linear_logp_kl_backward.default") and arguments[-1]:
        inputs = HeadInputs(*arguments[2:7], 0, *arguments[7:9])
        return chunked.backward_bytes(rows, inputs, workspace_bytes=arguments[13])
    return 0


# Forward


def _forward_shapes(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    rows_R: Tensor,
    targets_R: Tensor,
    segments_R: Tensor,
    num_segments: int,
    ref_hidden_TD: Tensor | None,
    ref_weight_VD: Tensor | None,
    backend: str,
    workspace_bytes: int,
    wanted: int,
) -> tuple[Tensor, ...]:
    def floats(*shape: int) -> Tensor:
        return hidden_TD.new_empty(shape, dtype=torch.float32)

    R = rows_R.shape[0]
    D = hidden_TD.shape[1]
    S = num_segments
    logp_rows = R if wanted >= Wanted.LOGP else 0
    kl_rows = R if wanted == Wanted.BOTH and ref_hidden_TD is not None else 0
    return (
        floats(S),
        floats(S),
        floats(S),
        rows_R.new_empty(S),
        floats(5, R),
        floats(logp_rows, D),
        floats(kl_rows, D),
    )


def run_forward(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    rows_R: Tensor,
    targets_R: Tensor,
    segments_R: Tensor,
    num_segments: int,
    ref_hidden_TD: Tensor | None,
    ref_weight_VD: Tensor | None,
    backend: str,
    workspace_bytes: int,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """logp_S, kl_S, ref_logp_S, tokens_S, then what the backward reads.

    That is table_5R and the Jacobians (rows.py), `wanted` of them.
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
    check_indices(inputs)
    inputs = inputs.contiguous()
    rows = row_operations(backend)
    if backend == "triton-stream":
        _, jacobians = chunked.empty_results(inputs, Wanted.NONE)
        table_5R = triton_stream.statistics(inputs)
    elif backend == "triton-sliced":
        table_5R, jacobians = sliced.forward(inputs, Wanted(wanted), workspace_bytes)
    else:
        table_5R, jacobians = chunked.forward(rows, inputs, Wanted(wanted), workspace_bytes)

    # Equal models: mean_gap is 0 and both lse are the same bits, so that this KL is exactly 0.
    logp_R = table_5R[TARGET_LOGIT] - table_5R[LSE]
    kl_R = table_5R[MEAN_GAP] - table_5R[LSE] + table_5R[REF_LSE]
    ref_logp_R = table_5R[REF_TARGET_LOGIT] - table_5R[REF_LSE]
    each_R3 = torch.stack((logp_R, kl_R, ref_logp_R), 1)
    sums_S3 = rows.sum_by_index(each_R3, inputs.segments_R, num_segments, torch.float32)
    logp_S, kl_S, ref_logp_S = (sums_S3[:, i].clone() for i in range(3))
    tokens_S = tokens_in(inputs.segments_R, num_segments)
    return logp_S, kl_S, ref_logp_S, tokens_S, table_5R, jacobians.logp_RD, jacobians.kl_RD


forward = operator("linear_logp_kl", run_forward, _forward_shapes)


# Backward


def _backward_shapes(
    grad_logp_S: Tensor, grad_kl_S: Tensor, hidden_TD: Tensor, weight_VD: Tensor, *rest: object
) -> tuple[Tensor, Tensor]:
    train_head = rest[-1]
    V, D = weight_VD.shape
    head_rows = V if train_head else 0
    return hidden_TD.new_empty(hidden_TD.shape), weight_VD.new_empty(head_rows, D)


def run_backward(
    grad_logp_S: Tensor,
    grad_kl_S: Tensor,
    hidden_TD: Tensor,
    weight_VD: Tensor,
    rows_R: Tensor,
    targets_R: Tensor,
    segments_R: Tensor,
    ref_hidden_TD: Tensor | None,
    ref_weight_VD: Tensor | None,
    table_5R: Tensor,
    jacobian_logp_RD: Tensor,
    jacobian_kl_RD: Tensor,
    backend: str,
    workspace_bytes: int,
    wanted: int,
    train_head: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden_TD and weight_VD; the second is [0, D] for a frozen head."""
    num_segments = grad_logp_S.shape[0]
    inputs = HeadInputs(
        hidden_TD,
        weight_VD,
        rows_R,
        targets_R,
        segments_R,
        num_segments,
        ref_hidden_TD,
        ref_weight_VD,
    ).contiguous()
    rows = row_operations(backend)
    if wanted != Wanted.NONE:
        jacobians = Jacobians(jacobian_logp_RD, jacobian_kl_RD)
        grad_TD = rows.weighted_sum(
            jacobians,
            grad_logp_S,
            grad_kl_S,
            inputs.segments_R,
            inputs.rows_R,
            T=hidden_TD.shape[0],
            dtype=hidden_TD.dtype,
        )
        return grad_TD, weight_VD.new_empty(0, weight_VD.shape[1])

    upstream = Upstream(grad_logp_S[inputs.segments_R], grad_kl_S[inputs.segments_R])
    return chunked.backward(rows, inputs, upstream, table_5R, train_head, workspace_bytes)


backward = operator("linear_logp_kl_backward", run_backward, _backward_shapes)


# Autograd


def _save(ctx, inputs, output):
    *tensors, ctx.num_segments, ref_hidden_TD, ref_weight_VD = inputs[:8]
    ctx.options = inputs[8:]
    _, _, ref_logp_S, tokens_S, *for_backward = output
    ctx.mark_non_differentiable(ref_logp_S, tokens_S, *for_backward)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, ref_hidden_TD, ref_weight_VD, *for_backward)


def _gradients(ctx, grad_logp_S, grad_kl_S, *_):
    expect_once("linear_logp_kl")
    train_hidden, train_head, *_ = ctx.needs_input_grad
    table_5R = ctx.saved_tensors[7]

    # An output that nobody used has no gradient.
    if grad_logp_S is None:
        grad_logp_S = table_5R.new_zeros(ctx.num_segments)
    if grad_kl_S is None:
        grad_kl_S = table_5R.new_zeros(ctx.num_segments)

    grad_TD, grad_VD = backward(
        grad_logp_S.contiguous(),
        grad_kl_S.contiguous(),
        *ctx.saved_tensors,
        *ctx.options,
        train_head,
    )
    others = [None] * 9
    return (grad_TD if train_hidden else None, grad_VD if train_head else None, *others)


torch.library.register_autograd("ecliptica::linear_logp_kl", _gradients, setup_context=_save)
