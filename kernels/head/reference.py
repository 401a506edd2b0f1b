"""The oracle of the fused head: full logits and autograd, the formulas as they are written.

Float32, or float64 when the inputs are. Every backend is tested against it; training never runs it.
Formulas and letters: kernels/head/__init__.py.
"""

import torch
from torch import Tensor

from kernels.head.inputs import HeadInputs


def dense(inputs: HeadInputs) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(logp_S, kl_S, ref_logp_S); the last two are None without a reference."""

    def per_segment(x_R: Tensor) -> Tensor:
        return x_R.new_zeros(inputs.num_segments).index_add(0, inputs.segments_R, x_R)

    def of_targets(logp_RV: Tensor) -> Tensor:
        return per_segment(logp_RV.gather(1, inputs.targets_R[:, None])[:, 0])

    logp_RV = log_probs(inputs.hidden_TD, inputs.weight_VD, inputs.rows_R)
    if inputs.ref_hidden_TD is None:
        return of_targets(logp_RV), None, None

    with torch.no_grad():
        ref_RV = log_probs(inputs.ref_hidden_TD, inputs.ref_head_VD, inputs.rows_R)
    kl_R = (logp_RV.exp() * (logp_RV - ref_RV)).sum(-1)
    return of_targets(logp_RV), per_segment(kl_R), of_targets(ref_RV)


def log_probs(hidden_TD: Tensor, weight_VD: Tensor, rows_R: Tensor) -> Tensor:
    """Log-probs [R, V] of every token at the chosen rows, in float32 or wider."""
    wide = torch.promote_types(hidden_TD.dtype, torch.float32)
    return (hidden_TD[rows_R].to(wide) @ weight_VD.to(wide).T).log_softmax(-1)
