"""The fused head in bounded memory: a loop over chunks of rows, and one over slices of V.

Products are the vendor's (products.py), the row operations a backend's (rows.py).

Frozen head: the forward also makes the Jacobians that are wanted (rows.py), so that the backward is
their sum weighted by any upstream gradients: 4 products in all, no second pass over V.
Trained head: the forward leaves the table of statistics alone, and the backward goes over slices of
the vocabulary, each slice of dW written once.

Formulas and letters: kernels/head/__init__.py.
"""

import torch
from torch import Tensor

from kernels.head.inputs import HeadInputs
from kernels.head.products import add_product, both_logits, wide_product
from kernels.head.rows import Chunk, Jacobians, RowOperations, Slice, Upstream, Wanted

SLICE = 4096  # vocabulary rows in a slice of the backward at most
ALIGN = 128  # a chunk of more rows than this is a multiple of it


# Sizes


def chunk_size(rows: int, bytes_per_row: int, workspace_bytes: int, at_most: int) -> int:
    """How many of `rows` rows fit into the workspace; one, if none does."""
    size = max(1, min(rows, at_most, workspace_bytes // bytes_per_row))
    return size if size <= ALIGN else size // ALIGN * ALIGN


def padded(columns: int, multiple: int) -> int:
    """Up to the next multiple: rows that begin there are read 16 bytes at a time."""
    return -(-columns // multiple) * multiple


def forward_buffers(
    rows: RowOperations, inputs: HeadInputs, workspace_bytes: int
) -> tuple[int, int, int]:
    """(float32 buffers, half-precision buffers, rows of a chunk); a buffer is rows x padded V."""
    models = inputs.models
    half = inputs.weight_VD.dtype != torch.float32
    floats = models
    if models == 2 and not rows.in_place:
        floats = 3  # the third is a scratch
    halves = models if half and not rows.in_place else 0
    bytes_per_row = padded(inputs.V, rows.row_multiple) * (4 * floats + 2 * halves)
    size = chunk_size(inputs.R, bytes_per_row, workspace_bytes, rows.most_rows // floats)
    return floats, halves, size


def cell_bytes(rows: RowOperations, inputs: HeadInputs) -> int:
    """Bytes of the backward's buffers for one row and one column."""
    half = inputs.weight_VD.dtype != torch.float32 and not rows.in_place
    return inputs.models * (6 if half else 4)


def backward_width(rows: RowOperations, inputs: HeadInputs, workspace_bytes: int) -> int:
    """How many rows of the head a slice of the backward takes."""
    bytes_per_column = max(inputs.R, 1) * cell_bytes(rows, inputs)
    return min(inputs.V, chunk_size(inputs.V, bytes_per_column, workspace_bytes, SLICE))


def forward_bytes(rows: RowOperations, inputs: HeadInputs, workspace_bytes: int) -> int:
    """Bytes of the forward's buffers, beside its results."""
    floats, halves, size = forward_buffers(rows, inputs, workspace_bytes)
    return padded(inputs.V, rows.row_multiple) * size * (4 * floats + 2 * halves)


def backward_bytes(rows: RowOperations, inputs: HeadInputs, workspace_bytes: int) -> int:
    """Bytes that the backward of a trained head holds, beside its results."""
    R = inputs.R
    width = padded(backward_width(rows, inputs, workspace_bytes), rows.row_multiple)
    gathered = 4 + inputs.models * inputs.hidden_TD.element_size()
    return R * width * cell_bytes(rows, inputs) + R * inputs.hidden_TD.shape[1] * gathered


# Forward


def empty_results(inputs: HeadInputs, wanted: Wanted) -> tuple[Tensor, Jacobians]:
    """Room for what a forward returns: zeros [5, R], and the Jacobians, [0, D] where unwanted."""
    D = inputs.hidden_TD.shape[1]
    device = inputs.hidden_TD.device
    logp_rows = inputs.R if wanted >= Wanted.LOGP else 0
    kl_rows = inputs.R if wanted == Wanted.BOTH and inputs.models == 2 else 0
    table_5R = torch.zeros(5, inputs.R, device=device)
    logp_RD = torch.empty(logp_rows, D, device=device)
    kl_RD = torch.empty(kl_rows, D, device=device)
    return table_5R, Jacobians(logp_RD, kl_RD)


def forward(
    rows: RowOperations, inputs: HeadInputs, wanted: Wanted, workspace_bytes: int
) -> tuple[Tensor, Jacobians]:
    """Statistics [5, R] (rows.py), and the Jacobians that are wanted."""
    V = inputs.V
    weight_VD = inputs.weight_VD
    table_5R, jacobians = empty_results(inputs, wanted)

    # Buffers for the largest chunk; a chunk takes the part that it needs.
    floats, halves, size = forward_buffers(rows, inputs, workspace_bytes)
    device = inputs.hidden_TD.device
    floats_MP = torch.empty(floats * size, padded(V, rows.row_multiple), device=device)
    halves_MV = None
    if halves:
        halves_MV = torch.empty(halves * size, V, device=device, dtype=weight_VD.dtype)

    for start in range(0, inputs.R, size):
        at = slice(start, min(start + size, inputs.R))
        n = at.stop - at.start
        chunk = Chunk(
            buffer_MP=floats_MP[: inputs.models * n],
            half_MV=None if halves_MV is None else halves_MV[: inputs.models * n],
            scratch_NV=floats_MP[-n:, :V],
            targets_N=inputs.targets_R[at],
            V=V,
        )
        rows_N = inputs.rows_R[at]
        hidden_ND = inputs.hidden_TD.index_select(0, rows_N)
        ref_ND = None
        if inputs.ref_hidden_TD is not None:
            ref_ND = inputs.ref_hidden_TD.index_select(0, rows_N)
        heads = (weight_VD, inputs.ref_weight_VD)
        both_logits(hidden_ND, ref_ND, heads, out_MV=chunk.logits_MV, half_MV=chunk.half_MV)

        operands_MV = rows.statistics(chunk, table_5R[:, at], wanted, weight_VD.dtype)
        if operands_MV is None:
            continue

        # p and p (s - s_bar) meet the head in its own precision: a gradient's rounding, as in any
        # bfloat16 backward.
        product_MD = wide_product(operands_MV, weight_VD)
        target_ND = weight_VD[inputs.targets_R[at]].float()
        torch.sub(target_ND, product_MD[:n], out=jacobians.logp_RD[at])
        if len(jacobians.kl_RD):
            jacobians.kl_RD[at] = product_MD[n:]
    return table_5R, jacobians


# Backward


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
    hidden_RD = inputs.hidden_TD.index_select(0, inputs.rows_R)
    ref_RD = None
    if inputs.ref_hidden_TD is not None:
        ref_RD = inputs.ref_hidden_TD.index_select(0, inputs.rows_R)
    grad_RD = torch.zeros_like(hidden_RD, dtype=torch.float32)
    grad_VD = torch.zeros_like(weight_VD if train_head else weight_VD[:0])

    width = backward_width(rows, inputs, workspace_bytes)
    floats, halves = slice_buffers(rows, inputs, width)
    for start in range(0, V if R else 0, width):
        at = slice(start, min(start + width, V))
        head_WD = weight_VD[at]
        part = next_slice(rows, inputs, at, floats, halves)
        ref_head_WD = None if inputs.ref_weight_VD is None else inputs.ref_weight_VD[at]
        heads = (head_WD, ref_head_WD)
        both_logits(hidden_RD, ref_RD, heads, out_MV=part.logits_MW, half_MV=part.half_MW)

        dlogits_RW = rows.dlogits(part, table_5R, upstream, weight_VD.dtype)
        if train_head:
            grad_VD[at] = dlogits_RW.T @ hidden_RD.to(weight_VD.dtype)
        add_product(grad_RD, dlogits_RW, head_WD)

    hidden_TD = inputs.hidden_TD
    grad_TD = rows.sum_by_index(grad_RD, inputs.rows_R, hidden_TD.shape[0], hidden_TD.dtype)
    return grad_TD, grad_VD


def slice_buffers(
    rows: RowOperations, inputs: HeadInputs, width: int
) -> tuple[Tensor, Tensor | None]:
    """Flat buffers for the widest slice: a slice's rows lie one after another."""
    cells = inputs.models * inputs.R * padded(width, rows.row_multiple)
    device = inputs.hidden_TD.device
    floats = torch.empty(cells, device=device)
    if inputs.weight_VD.dtype == torch.float32 or rows.in_place:
        return floats, None
    return floats, torch.empty(cells, device=device, dtype=inputs.weight_VD.dtype)


def next_slice(
    rows: RowOperations, inputs: HeadInputs, at: slice, floats: Tensor, halves: Tensor | None
) -> Slice:
    """The part of the buffers that the columns `at` take."""
    width = at.stop - at.start
    shape = (inputs.models * inputs.R, padded(width, rows.row_multiple))
    cells = shape[0] * shape[1]
    return Slice(
        buffer_MP=floats[:cells].view(shape),
        half_MW=None if halves is None else halves[:cells].view(shape),
        columns_R=inputs.targets_R - at.start,
        W=width,
    )
