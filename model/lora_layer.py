"""One layer under LoRA: a frozen Linear and the low-rank updates of any number of adapters.

Letters: D inputs of the layer, F its outputs, R the rank; A is [R, D], B is [F, R].
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from model.llama import Active, Linear
from model.lora_shared import LowRank, low_rank_added

POLICY = "policy"  # the adapter of whoever speaks of no other
SIDES = ("lora_A", "lora_B")


@dataclass(frozen=True)
class Update:
    """What one adapter does to a layer, beside its factors."""

    rank: int
    alpha: float
    dropout: float
    scale: float  # alpha / rank: what B A is multiplied by


def parameter_name(side: str, adapter: str) -> str:
    """What a factor is called in its layer: lora_A of the policy, lora_A_critic of a critic."""
    return side if adapter == POLICY else f"{side}_{adapter}"


class LoRALinear(nn.Module):
    """A frozen Linear and its low-rank updates, one for each adapter that is on it.

    It computes with the active adapter's. With none, or one that is not on this layer, it is the
    base layer, bit for bit.
    """

    def __init__(
        self,
        base: Linear,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        name: str = POLICY,
        active: Active | None = None,
    ) -> None:
        super().__init__()
        self.base = base
        self.updates: dict[str, Update] = {}
        self.active = active or Active(name)
        self.add(name, rank, alpha, dropout)

    def add(self, name: str, rank: int, alpha: float, dropout: float = 0.0) -> None:
        """One more adapter: A unset, B = 0. Raises ValueError if there is one of this name."""
        if name in self.updates:
            raise ValueError(f"an adapter {name!r} is on this layer already")
        device = self.base.weight.device
        outputs, inputs = self.base.weight.shape
        self.updates[name] = Update(rank, alpha, dropout, alpha / rank)

        # float32: an AdamW step of lr 1e-5 on a bfloat16 weight of size 0.1 is rounded away
        A_RD = nn.Parameter(torch.empty(rank, inputs, device=device))
        B_FR = nn.Parameter(torch.zeros(outputs, rank, device=device))
        self.register_parameter(parameter_name("lora_A", name), A_RD)
        self.register_parameter(parameter_name("lora_B", name), B_FR)

    def factors(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """(A [R, D], B [F, R]) of one adapter."""
        A_RD = getattr(self, parameter_name("lora_A", name))
        B_FR = getattr(self, parameter_name("lora_B", name))
        return A_RD, B_FR

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., F]."""
        name = self.active.name
        if name not in self.updates:
            return self.base(x)
        update = self.updates[name]
        A_RD, B_FR = self.factors(name)
        if self._merges(x):
            scaled_FR = update.scale * B_FR
            return _MergedProduct.apply(x, self.base.weight, self.base.bias, A_RD, scaled_FR)
        low = F.linear(F.dropout(x, update.dropout, self.training), A_RD.to(x.dtype))
        y = self.base(x)
        if x.dim() != 2:
            return y + F.linear(low, (update.scale * B_FR).to(x.dtype))
        return low_rank_added(y, low, B_FR.to(x.dtype), update.scale)

    def low_rank(self, x: torch.Tensor) -> LowRank | None:
        """The layer as lora_shared takes it; None where it goes a way of its own with `x`.

        On a CPU float32 does: many rows merge, and few are not worth joining the factors for.
        """
        name = self.active.name
        if name not in self.updates or torch.compiler.is_compiling():
            return None
        update = self.updates[name]
        drops = self.training and update.dropout > 0
        on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
        if drops or on_cpu or x.dim() != 2 or self.base.weight.requires_grad:
            return None
        return LowRank(self.base.weight, self.base.bias, *self.factors(name), update.scale)

    def _merges(self, x: torch.Tensor) -> bool:
        """Whether W + scale B A is made first: on a CPU, for enough rows to pay for making it.

        Only in float32, where a small update is not rounded away by the weight that it joins.
        """
        exact = x.dtype == self.base.weight.dtype == torch.float32
        drops = self.training and self.updates[self.active.name].dropout > 0
        many = x.dim() == 2 and len(x) >= min(self.base.weight.shape)
        eager = not torch.compiler.is_compiling()
        return x.device.type == "cpu" and exact and many and eager and not drops


class _MergedProduct(torch.autograd.Function):
    """y = x (W + B A)^T + b by one product, W and b (or None) frozen, B already scaled.

    The merged weight is made again in the backward: [F, D] once more costs less than a pass over
    the [rows, F] of y, of which B (A x) beside W x takes several. Letters: N rows of x.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: torch.Tensor,
        weight_FD: torch.Tensor,
        bias_F: torch.Tensor | None,
        A_RD: torch.Tensor,
        B_FR: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(x_ND, weight_FD, A_RD, B_FR)
        return F.linear(x_ND, torch.addmm(weight_FD, B_FR, A_RD), bias_F)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_NF: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """dx = dy (W + B A), dA = (dy B)^T x, dB = dy^T (x A^T)."""
        x_ND, weight_FD, A_RD, B_FR = ctx.saved_tensors
        dx_ND = None
        if ctx.needs_input_grad[0]:
            dx_ND = dy_NF @ torch.addmm(weight_FD, B_FR, A_RD)
        # Thin factors lie along the long axis: the library is several times slower otherwise.
        dlow_NR = F.linear(dy_NF, B_FR.T.contiguous())
        low_NR = F.linear(x_ND, A_RD)
        return dx_ND, None, None, dlow_NR.T @ x_ND, (low_NR.T @ dy_NF).T
