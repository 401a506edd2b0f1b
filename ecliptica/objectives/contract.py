"""What an objective is asked, what it sees, and what it returns."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ecliptica.schema import PackedBatch, Rows


@dataclass(frozen=True)
class Needs:
    """What an objective reads beside the policy's own log-probs."""

    reference: bool = False  # the reference's log-prob of each token: rows.ref_logp_R
    kl: bool = False  # the exact KL to the reference at each position: rows.kl_R
    values: bool = False  # a critic's value at each position
    rewards: bool = False  # the trained model's own scalar head, rows.rewards_S; no log-probs

    @property
    def frozen_model(self) -> bool:
        """Whether a frozen reference has to be there at all."""
        return self.reference or self.kl


@dataclass(frozen=True)
class Size:
    """How much one optimizer update is made from, all micro-batches and ranks together."""

    preferences: int
    sequences: int
    tokens: int  # of the responses


@dataclass(frozen=True)
class Step:
    """Which optimizer step a loss belongs to."""

    number: int  # the first is 0
    steps: int  # of the whole run
    baseline: Any = None  # what the objective's own `baseline` said of this step
    size: Size | None = None


@dataclass(frozen=True)
class WholeStep:
    """What `baseline` sees: everything of one optimizer step, before any loss of it.

    Collective: every rank calls `rows` for each of its batches, in their order. A batch without
    ids is a filler: with a sharded model its forward has to run, but it counts for nothing.
    """

    number: int
    steps: int
    config: Any  # the section `objective`
    batches: Sequence[PackedBatch]  # this rank's
    rows: Callable[[PackedBatch], Rows]  # a forward of one batch, without gradient
    sums: Callable[[Iterable[float]], list[float]]  # numbers of this rank -> sums over all ranks


@dataclass(frozen=True)
class Terms:
    """A batch's part of the loss, and what is logged beside it.

    Whatever is in `metrics` and `values` is logged under its name: nothing else lists the names.
    """

    loss: torch.Tensor  # sum over preferences, differentiable; the step divides by its count
    # Sums over preferences, detached: logged as means over the step's preferences and all ranks.
    metrics: dict[str, torch.Tensor]
    # Plain numbers, the same for every batch of a step, such as kl_weight: logged as they are.
    values: dict[str, float] = field(default_factory=dict)
    # The largest of a batch, detached: logged as the largest of the step's, over all ranks.
    largest: dict[str, torch.Tensor] = field(default_factory=dict)
