"""Several LoRA layers of one input: their A products are one, and so are their gradients of it.

q, k and v read the same tokens, and so do gate and up. One product with all A below each other
reads x once, and the backward adds every layer's share of dx inside a product.

Letters: T tokens, D inputs of the layers, F outputs of one, R its rank; L the ranks of all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class LowRank:
    """A layer y = W x + b + scale B A x, W and b frozen."""

    weight_FD: torch.Tensor
    bias_F: torch.Tensor | None
    A_RD: torch.Tensor
    B_FR: torch.Tensor
    scale: float


def low_rank_added(
    y_TF: torch.Tensor, low_TR: torch.Tensor, B_FR: torch.Tensor, scale: float
) -> torch.Tensor:
    """y + scale low B^T by one product, which writes the sum: no pass over [T, F] of its own.

    B in y's dtype. With B = 0 it is y, bit for bit.
    """
    return torch.addmm(y_TF, low_TR, B_FR.T, alpha=scale)


def shared_products(x_TD: torch.Tensor, layers: Sequence[LowRank]) -> tuple[torch.Tensor, ...]:
    """The results [T, F] of layers that read one input."""
    tensors = []
    for layer in layers:
        tensors += [layer.weight_FD, layer.bias_F, layer.A_RD, layer.B_FR]
    return _SharedProducts.apply(x_TD, [layer.scale for layer in layers], *tensors)


class _SharedProducts(torch.autograd.Function):
    """y_i = x W_i^T + b_i + scale_i (x A^T)_i B_i^T, A those of all layers below each other."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: torch.Tensor, scales: list[float], *tensors: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        dtype = x_TD.dtype
        weights, biases, all_A, all_B = (tensors[part::4] for part in range(4))
        ranks = [len(A_RD) for A_RD in all_A]

        # Factors are float32; cast once, the A of all layers together.
        A_LD = torch.cat(all_A).to(dtype)
        all_B = [B_FR.to(dtype) for B_FR in all_B]
        low_TL = F.linear(x_TD, A_LD)
        results = []
        for number, low_TR in enumerate(low_TL.split(ranks, 1)):
            bias_F = biases[number]
            if bias_F is not None:
                bias_F = bias_F.to(dtype)
            y_TF = F.linear(x_TD, weights[number].to(dtype), bias_F)
            results.append(low_rank_added(y_TF, low_TR, all_B[number], scales[number]))
        ctx.scales = scales
        ctx.ranks = ranks
        ctx.save_for_backward(x_TD, low_TL, A_LD, *weights, *all_B)
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """dlow_i = scale_i dy_i B_i, dx = sum dy_i W_i + dlow A, dA = dlow^T x, dB_i = scale_i
        dy_i^T low_i."""
        x_TD, low_TL, A_LD, *rest = ctx.saved_tensors
        count = len(ctx.scales)
        weights, all_B = rest[:count], rest[count:]
        lows = low_TL.split(ctx.ranks, 1)

        parts = []
        for dy_TF, B_FR, scale in zip(grads, all_B, ctx.scales):
            parts.append(scale * (dy_TF @ B_FR))
        dlow_TL = torch.cat(parts, 1)
        dx_TD = None
        if ctx.needs_input_grad[0]:
            dx_TD = dlow_TL @ A_LD
            for dy_TF, weight_FD in zip(grads, weights):
                dx_TD.addmm_(dy_TF, weight_FD.to(dy_TF.dtype))

        dA_LD = (dlow_TL.T @ x_TD).float()
        of_layers = []
        for dy_TF, dA_RD, low_TR, scale in zip(grads, dA_LD.split(ctx.ranks), lows, ctx.scales):
            dB_FR = scale * (dy_TF.T @ low_TR).float()
            of_layers += [None, None, dA_RD, dB_FR]
        return dx_TD, None, *of_layers
