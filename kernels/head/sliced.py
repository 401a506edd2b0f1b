"""The fused head's forward over groups of rows and slices of the vocabulary: "triton-sliced".

Where chunked.py takes few rows and all of V, this takes thousands of rows and 4096 columns: a slice
of the head stays in the cache while both models' products read it, the head is read once for each
group and not once for each chunk, and the products for the Jacobians have as many tiles as those
for the logits. Row operations and formulas: triton_sliced.py. The backward of a trained head is
chunked.py's.
"""

from torch import Tensor

from kernels.head import triton_sliced
from kernels.head.chunked import chunk_size, empty_results, next_slice, slice_buffers
from kernels.head.inputs import HeadInputs
from kernels.head.products import add_product, both_logits
from kernels.head.rows import (
    LSE,
    MEAN_GAP,
    REF_LSE,
    REF_TARGET_LOGIT,
    TARGET_LOGIT,
    Jacobians,
    Wanted,
)
from kernels.head.triton_rows import ROWS
from kernels.head.triton_sliced import (
    GAP_TOTAL,
    MAXIMUM,
    REF_MAXIMUM,
    REF_TARGET_STATE,
    REF_TOTAL,
    TARGET_STATE,
    TOTAL,
)

WIDTH = 4096  # columns of a slice at most
GROUP = 4096  # rows of a group at most


def group_sizes(inputs: HeadInputs, workspace_bytes: int) -> tuple[int, int]:
    """(rows of a group, columns of a slice)."""
    cell = 4 * inputs.models
    width = min(inputs.V, WIDTH, max(ROWS.row_multiple, workspace_bytes // cell))
    return chunk_size(inputs.R, width * cell, workspace_bytes, GROUP), width


def forward(inputs: HeadInputs, wanted: Wanted, workspace_bytes: int) -> tuple[Tensor, Jacobians]:
    """Statistics [5, R] (rows.py), and the Jacobians that are wanted."""
    table_5R, jacobians = empty_results(inputs, wanted)
    jacobians.logp_RD.zero_()
    jacobians.kl_RD.zero_()
    size, width = group_sizes(inputs, workspace_bytes)
    for start in range(0, inputs.R, size):
        at = slice(start, min(start + size, inputs.R))
        kl_ND = jacobians.kl_RD[at] if len(jacobians.kl_RD) else jacobians.kl_RD
        sums = Jacobians(jacobians.logp_RD[at], kl_ND)
        state = take_group(inputs.rows_at(at), width, wanted, sums)
        fill_table(table_5R[:, at], state, inputs.models)
    return table_5R, jacobians


def take_group(inputs: HeadInputs, width: int, wanted: Wanted, sums: Jacobians) -> Tensor:
    """All of V for the rows of one group. Returns their state; the Jacobians go to `sums`."""
    weight_VD = inputs.weight_VD
    hidden_ND = inputs.hidden_TD.index_select(0, inputs.rows_R)
    ref_ND = None
    if inputs.ref_hidden_TD is not None:
        ref_ND = inputs.ref_hidden_TD.index_select(0, inputs.rows_R)
    state = triton_sliced.new_state(inputs.R, hidden_ND.device)
    floats, _ = slice_buffers(ROWS, inputs, width)

    for start in range(0, inputs.V, width):
        at = slice(start, min(start + width, inputs.V))
        part = next_slice(ROWS, inputs, at, floats, halves=None)
        head_WD = weight_VD[at]
        ref_head_WD = None if inputs.ref_weight_VD is None else inputs.ref_weight_VD[at]
        heads = (head_WD, ref_head_WD)
        both_logits(hidden_ND, ref_ND, heads, out_MV=part.logits_MW, half_MV=None)

        operands_MW = triton_sliced.take_slice(part, state, wanted, weight_VD.dtype)
        if operands_MW is None:
            continue
        if start:
            triton_sliced.rescale(state, sums)
        add_product(sums.logp_RD, operands_MW[: inputs.R], head_WD)
        if len(sums.kl_RD):
            add_product(sums.kl_RD, operands_MW[inputs.R :], head_WD)

    if wanted != Wanted.NONE:
        triton_sliced.finish(state, inputs.targets_R, weight_VD, sums)
    return state


def fill_table(table_5N: Tensor, state: Tensor, models: int) -> None:
    """What a group's state says of its rows."""
    table_5N[LSE] = state[MAXIMUM] + state[TOTAL].log()
    table_5N[TARGET_LOGIT] = state[TARGET_STATE]
    if models == 2:
        table_5N[REF_LSE] = state[REF_MAXIMUM] + state[REF_TOTAL].log()
        table_5N[MEAN_GAP] = state[GAP_TOTAL] / state[TOTAL]
        table_5N[REF_TARGET_LOGIT] = state[REF_TARGET_STATE]
