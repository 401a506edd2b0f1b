"""The fused head in bounded memory: a loop over chunks of rows, and one over slices of V.

Products are the vendor's (products.py), the row operations a backend's (rows.py).

Frozen head (`jacobian`): the forward also makes both outputs' Jacobians (rows.py), so that the
backward is their sum weighted by any upstream gradients: 4 products in all, no second pass over V.
Otherwise the forward leaves the table of statistics alone, and the backward goes over slices of the
vocabulary, each slice of dW written once.

Formulas and letters: kernels/head/__init__.py.
"""

import torch
from torch import Tensor

from kernels.head.inputs import HeadInputs
from kernels.head.products import both_logits, logits
from kernels.head.rows import Chunk, Jacobians, RowOperations, Upstream

SLICE = 4096  # vocabulary rows in a slice of the backward at most
ALIGN = 128  # a chunk of more rows than this is a multiple of it

__all__ = ["backward", "backward_bytes", "forward", "forward_bytes", "logits"]


def chunk_size(rows: int, bytes_per_row: int, workspace_bytes: int, at_most: int) -> int:
    """How many of `rows` rows fit into the workspace; one, if none does."""
    size = max(1, min(rows, at_most, workspace_bytes // bytes_per_row))
    return size if size <= ALIGN else size // ALIGN * ALIGN


def forward_buffers(
    rows: RowOperations, R: int, V: int, models: int, half: bool, workspace_bytes: int
) -> tuple[int, int, int]:
    """(float32 buffers, half-precision buffers, rows of a chunk); a buffer is rows x V.

    half: the head has 16 bits.
    """
    floats = models
    if models == 2 and not rows.in_place:
        floats = 3  # the third is a scratch
    halves = models if half and not rows.in_place else 0
    bytes_per_row = V * (4 * floats + 2 * halves)
    size = chunk_size(R, bytes_per_row, workspace_bytes, rows.most_rows // floats)
    return floats, halves, size


def backward_width(R: int, V: int, models: int, workspace_bytes: int) -> int:
    """How many rows of the head a slice of the backward takes."""
    bytes_per_column = max(R, 1) * (4 * models + 2 * models + 6)
    return min(V, chunk_size(V, bytes_per_column, workspace_bytes, SLICE))


def forward_bytes(rows: RowOperations, inputs: HeadInputs, workspace_bytes: int) -> int:
    """Bytes of the forward's buffers, beside its results."""
    half = inputs.weight_VD.dtype != torch.float32
    floats, halves, size = forward_buffers(
        rows, inputs.R, inputs.V, inputs.models, half, workspace_bytes
    )
    return inputs.V * size * (4 * floats + 2 * halves)


def backward_bytes(rows: RowOperations, inputs: HeadInputs, workspace_bytes: int) -> int:
    """Bytes that the backward of a trained head holds, beside its results."""
    R = inputs.R
    models = inputs.models
    half = inputs.weight_VD.dtype != torch.float32 and not rows.in_place
    width = backward_width(R, inputs.V, models, workspace_bytes)
    cells = models * (4 + 2 * half) + 2 * half
    gathered = 4 + models * inputs.hidden_TD.element_size()
    return R * width * cells + R * inputs.hidden_TD.shape[1] * gathered


def forward(
    rows: RowOperations, inputs: HeadInputs, jacobian: bool, workspace_bytes: int
) -> tuple[Tensor, Jacobians]:
    """Statistics [5, R] (rows.py), and the Jacobians, empty without `jacobian`."""
    R = inputs.R
    V = inputs.V
    weight_VD = inputs.weight_VD
    models = inputs.models
    table_5R, jacobians = empty_results(inputs, jacobian)

    # Buffers for the largest chunk; a chunk takes the part that it needs.
    half_dtype = weight_VD.dtype if weight_VD.dtype != torch.float32 else None
    floats, halves, size = forward_buffers(
        rows, R, V, models, half_dtype is not None, workspace_bytes
    )
    device = inputs.hidden_TD.device
    floats_MV = torch.empty(floats * size, V, device=device)
    halves_MV = None
    if halves:
        halves_MV = torch.empty(halves * size, V, device=device, dtype=half_dtype)

    for start in range(0, R, size):
        at = slice(start, min(start + size, R))
        n = at.stop - at.start
        chunk = Chunk(
            logits_MV=floats_MV[: models * n],
            half_MV=None if halves_MV is None else halves_MV[: models * n],
            scratch_NV=floats_MV[-n:],
            targets_N=inputs.targets_R[at],
        )
        chunk_logits(inputs, at, chunk)
        operands_MV = rows.statistics(chunk, table_5R[:, at], jacobian, weight_VD.dtype)
        if not jacobian:
            continue

        # p and p (s - s_bar) meet the head in its own precision: a gradient's rounding, as in any
        # bfloat16 backward.
        product_MD = (operands_MV @ weight_VD).float()
        target_ND = weight_VD[inputs.targets_R[at]].float()
        torch.sub(target_ND, product_MD[:n], out=jacobians.logp_RD[at])
        if models == 2:
            jacobians.kl_RD[at] = product_MD[n:]
    return table_5R, jacobians


def empty_results(inputs: HeadInputs, jacobian: bool) -> tuple[Tensor, Jacobians]:
    """Room for what a forward returns: zeros [5, R], and the Jacobians, [0, D] where unwanted."""
    D = inputs.hidden_TD.shape[1]
    device = inputs.hidden_TD.device
    logp_rows = inputs.R if jacobian else 0
    kl_rows = logp_rows if inputs.models == 2 else 0
    table_5R = torch.zeros(5, inputs.R, device=device)
    logp_RD = torch.empty(logp_rows, D, device=device)
    kl_RD = torch.empty(kl_rows, D, device=device)
    return table_5R, Jacobians(logp_RD, kl_RD)


def chunk_logits(inputs: HeadInputs, at: slice, chunk: Chunk) -> None:
    """Fill the chunk with the logits of the rows `at`."""
    hidden_ND = inputs.hidden_TD.index_select(0, inputs.rows_R[at])
    ref_ND = None
    if inputs.ref_hidden_TD is not None:
        ref_ND = inputs.ref_hidden_TD.index_select(0, inputs.rows_R[at])
    both_logits(
        hidden_ND,
        inputs.weight_VD,
        ref_ND,
        inputs.ref_weight_VD,
        out_MV=chunk.logits_MV,
        half_MV=chunk.half_MV,
    )


def backward(
    rows: RowOperations,
    inputs: HeadInputs,
    upstream: Upstream,
    table_5R: Tensor,
    train_head: bool,
    workspace_bytes: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden_TD and weight_VD, from logits made again over slices of the vocabulary.

    The second is [0, D] unless `train_head`.
    """
    R = inputs.R
    V = inputs.V
    weight_VD = inputs.weight_VD
    models = inputs.models
    device = inputs.hidden_TD.device
    hidden_RD = inputs.hidden_TD.index_select(0, inputs.rows_R)
    ref_RD = None
    if inputs.ref_hidden_TD is not None:
        ref_RD = inputs.ref_hidden_TD.index_select(0, inputs.rows_R)
    grad_RD = torch.zeros_like(hidden_RD, dtype=torch.float32)
    grad_VD = torch.zeros_like(weight_VD if train_head else weight_VD[:0])

    # Buffers for the widest slice, flat: each slice's rows lie one after another.
    width = backward_width(R, V, models, workspace_bytes)
    floats = torch.empty(models * R * width, device=device)
    halves = None
    if weight_VD.dtype != torch.float32 and not rows.in_place:
        halves = torch.empty(models * R * width, device=device, dtype=weight_VD.dtype)

    for start in range(0, V if R else 0, width):
        at = slice(start, min(start + width, V))
        head_WD = weight_VD[at]
        shape = (models * R, at.stop - at.start)
        logits_MW = floats[: shape[0] * shape[1]].view(shape)
        half_MW = None if halves is None else halves[: shape[0] * shape[1]].view(shape)
        ref_head_WD = None if inputs.ref_weight_VD is None else inputs.ref_weight_VD[at]
        both_logits(hidden_RD, head_WD, ref_RD, ref_head_WD, out_MV=logits_MW, half_MV=half_MW)

        reference_RW = logits_MW[R:] if models == 2 else None
        columns_R = inputs.targets_R - start
        dlogits_RW = rows.dlogits(
            logits_MW[:R], reference_RW, table_5R, upstream, columns_R, weight_VD.dtype
        )
        if train_head:
            grad_VD[at] = dlogits_RW.T @ hidden_RD.to(weight_VD.dtype)
        grad_RD += (dlogits_RW @ head_WD).float()

    hidden_TD = inputs.hidden_TD
    grad_TD = rows.sum_by_index(grad_RD, inputs.rows_R, hidden_TD.shape[0], hidden_TD.dtype)
    return grad_TD, grad_VD
