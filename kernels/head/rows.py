"""What the backends do to rows of logits that are in memory: one contract, kept by torch_rows.py
and triton_rows.py.

The loops of chunked.py make the products and call these. Formulas and letters:
kernels/head/__init__.py.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

# Rows of a table of statistics [5, R]: all that log-prob and KL need, and their backward.
LSE, REF_LSE, MEAN_GAP, TARGET_LOGIT, REF_TARGET_LOGIT = range(5)


@dataclass(frozen=True)
class Chunk:
    """N rows of logits over the whole vocabulary, and room to work in. All of it is overwritten."""

    buffer_MP: Tensor  # float32: N rows of the policy, below them N of the reference, or none
    half_MV: Tensor | None  # as many, in the head's own dtype; None where it is not needed
    scratch_NV: Tensor | None  # float32; only torch_rows needs it, for a reference
    targets_N: Tensor
    V: int  # columns of a row that are logits; P >= V

    @property
    def logits_MV(self) -> Tensor:
        return self.buffer_MP[:, : self.V]

    @property
    def policy_NV(self) -> Tensor:
        return self.logits_MV[: len(self.targets_N)]

    @property
    def reference_NV(self) -> Tensor | None:
        below_NV = self.logits_MV[len(self.targets_N) :]
        return below_NV if len(below_NV) else None


@dataclass(frozen=True)
class Slice:
    """R rows of logits over W columns of the vocabulary. All of it is overwritten."""

    buffer_MP: Tensor  # float32: R rows of the policy, below them R of the reference, or none
    half_MW: Tensor | None  # as many, in the head's own dtype; None where it is not needed
    columns_R: Tensor  # the target's number in the slice; outside [0, W): not in it
    W: int  # columns of a row that are logits; P >= W

    @property
    def logits_MW(self) -> Tensor:
        return self.buffer_MP[:, : self.W]

    @property
    def policy_RW(self) -> Tensor:
        return self.logits_MW[: len(self.columns_R)]

    @property
    def reference_RW(self) -> Tensor | None:
        below_RW = self.logits_MW[len(self.columns_R) :]
        return below_RW if len(below_RW) else None


@dataclass(frozen=True)
class Upstream:
    """Gradients that arrive from above, each row's those of its segment."""

    logp_R: Tensor
    kl_R: Tensor


class Wanted(enum.IntEnum):
    """Which Jacobians a forward makes."""

    NONE = 0
    LOGP = 1
    BOTH = 2


@dataclass(frozen=True)
class Jacobians:
    """Both outputs' derivatives with respect to a row's hidden state: float32 [R, D], or empty."""

    logp_RD: Tensor  # W_target - p W
    kl_RD: Tensor  # (p (s - s_bar)) W; empty without a reference or where nobody reads it


@dataclass(frozen=True)
class RowOperations:
    """One backend. Sums run in the order of their terms: the same bits every run.

    statistics(chunk, table_5N, wanted, dtype)
        Fills the table. Returns in `dtype`, in memory of the chunk, what meets the head in the
        Jacobians that are wanted: p [N, V], and below it p (s - s_bar); None if none is.
    dlogits(slice, table_5R, upstream, dtype)
        dz [R, W] of a slice, in `dtype`, in memory of the slice.
    weighted_sum(jacobians, grad_logp_S, grad_kl_S, segments_R, rows_R, T, dtype)
        The backward of a frozen head, [T, D]: at t the sum, over the rows j with rows_R[j] = t, of
        grad_logp * jacobians.logp_RD[j] + grad_kl * jacobians.kl_RD[j].
    sum_by_index(x_RD, index_R, size, dtype)
        At i the sum of the rows of x_RD whose index is i.
    """

    in_place: bool  # half-precision results overwrite their own float32 row, no buffer needed
    most_rows: int  # in all float32 buffers of a chunk together
    row_multiple: int  # the distance of two rows of logits is a multiple of it
    statistics: Callable[..., Tensor | None]
    dlogits: Callable[..., Tensor]
    weighted_sum: Callable[..., Tensor]
    sum_by_index: Callable[..., Tensor]
