"""The one place that joins model, adapters and fused head.

A packed batch in; log-prob and KL out, per response token (`response_rows`) or per sequence
(`score`), values per response token (`values`), rewards per sequence (`rewards`). Training and
evaluation both come through here.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from ecliptica.schema import PackedBatch, Rows, Sequences
from kernels import linear_logp_kl
from model.attention import packed_attention
from model.llama import Llama
from model.lora import adapter, adapter_names, adapters_off
from model.lora_layer import POLICY

CRITIC = "critic"  # the name of its adapter and of its scalar head

# A frozen reference: reference(batch) -> (hidden_TD, weight_VD), the final hidden states and the
# head; the head is None where it is the policy's own.
Reference = Callable[[PackedBatch], tuple[torch.Tensor, torch.Tensor | None]]


def hidden(model: Llama, batch: PackedBatch) -> torch.Tensor:
    """Final hidden states [T, D] of a packed batch."""
    attend = packed_attention(batch.document_T, batch.branch_T)
    return model.forward_hidden(batch.tokens_T, batch.positions_T, attend)


def adapter_off_reference(model: Llama) -> Reference:
    """A LoRA run's reference: the same model with its adapters off."""

    @torch.no_grad()
    def reference(batch):
        with adapters_off(model):
            return hidden(model, batch), model.head_weight_VD.to(model.dtype)

    return reference


def model_reference(frozen: Llama) -> Reference:
    """A second, frozen model as the reference."""

    @torch.no_grad()
    def reference(batch):
        return hidden(frozen, batch), frozen.head_weight_VD.to(frozen.dtype)

    return reference


@torch.no_grad()
def reference_rows(model: Llama, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """What a cache keeps of the frozen reference, adapters off: (hidden_UD, lse_U) of the distinct
    response rows, ascending.

    lse in float32, by the fused head, as the logit of token 0 minus its log-prob: no logits are
    held.
    """
    with adapters_off(model):
        hidden_TD = hidden(model, batch)
        weight_VD = model.head_weight_VD.to(model.dtype)
        rows_U = batch.rows_R.unique()
        head = linear_logp_kl(
            hidden_TD,
            weight_VD,
            rows_R=rows_U,
            targets_R=torch.zeros_like(rows_U),
            segments_R=torch.arange(len(rows_U), device=rows_U.device),
            num_segments=len(rows_U),
        )
    hidden_UD = hidden_TD[rows_U]
    return hidden_UD, hidden_UD.float() @ weight_VD[0].float() - head.logp_S


# Scalar heads


def computing(model: Llama, name: str) -> AbstractContextManager[Llama]:
    """Inside the block the model computes with the adapter `name`; a model without adapters, which
    was trained as a whole, as it is."""
    return adapter(model, name) if adapter_names(model) else nullcontext(model)


def values(model: Llama, batch: PackedBatch, name: str = CRITIC, grad: bool = True) -> torch.Tensor:
    """[R], float32: the critic's value of the state before each response token.

    Of the first token that is the prompt's end, of each other the response so far. name: of the
    critic's adapter and scalar head.
    """
    return _scalars(model, batch, batch.rows_R, name, grad)


def rewards(
    model: Llama, batch: PackedBatch, name: str = "reward", grad: bool = False
) -> torch.Tensor:
    """[S], float32: the reward model's number for each response, read at its last token (end of
    turn included), shifted and scaled by the head's own constants."""
    return _scalars(model, batch, batch.last_S, name, grad)


def _scalars(
    model: Llama, batch: PackedBatch, rows_N: torch.Tensor, name: str, grad: bool
) -> torch.Tensor:
    """[N]: the scalar head `name` at these rows of its own adapter's hidden states."""
    with nullcontext() if grad else torch.no_grad(), computing(model, name):
        return model.scalar_heads[name](hidden(model, batch)[rows_N])


def reward_rows(model: Llama, batch: PackedBatch, name: str = POLICY, grad: bool = True) -> Rows:
    """What the objective of a reward model sees: rewards_S, and no log-probs. name: of what is
    trained."""
    return Rows(
        logp_R=None,
        segments_R=batch.segments_R,
        owner_S=batch.owner_S,
        scores_S=batch.scores_S,
        rewards_S=rewards(model, batch, name, grad),
    )


# Log-probs


def response_rows(
    model: Llama,
    batch: PackedBatch,
    reference: Reference | None = None,
    grad: bool = True,
    critic: str | None = None,
    temperature: float = 1.0,
) -> Rows:
    """Log-prob and exact KL of every response token of a packed batch, by the active adapter.

    reference: see adapter_off_reference, model_reference; None: no KL and no ref_logp. critic: the
    adapter whose scalar head gives values_R, in a forward of its own; None: no values.
    temperature: of policy and reference alike, as the responses were sampled.
    """
    with nullcontext() if grad else torch.no_grad():
        # The reference first: a sharded policy then goes from its forward to its backward.
        ref_TD, ref_VD = reference(batch) if reference else (None, None)
        values_R = values(model, batch, critic, grad) if critic else None
        policy_TD = hidden(model, batch)

        # Logits over a temperature are those of hidden states over it.
        if temperature != 1:
            policy_TD = policy_TD / temperature
            ref_TD = None if ref_TD is None else ref_TD / temperature

        # The head's weight after the forward, which gathers a sharded one.
        weight_VD = model.head_weight_VD.to(model.dtype)

        # A segment a row: what the head returns per segment is then per response token.
        rows = batch.rows_R.numel()
        head = linear_logp_kl(
            policy_TD,
            weight_VD,
            rows_R=batch.rows_R,
            targets_R=batch.targets_R,
            segments_R=torch.arange(rows, device=batch.rows_R.device),
            num_segments=rows,
            ref_hidden_TD=ref_TD,
            ref_weight_VD=ref_VD,
        )
    return Rows(
        logp_R=head.logp_S,
        segments_R=batch.segments_R,
        owner_S=batch.owner_S,
        scores_S=batch.scores_S,
        kl_R=head.kl_S,
        ref_logp_R=head.ref_logp_S,
        values_R=values_R,
        sampled=batch.sampled,
        aside_S=batch.aside_S,
    )


def score(
    model: Llama, batch: PackedBatch, reference: Reference | None = None, grad: bool = True
) -> Sequences:
    """The same per sequence: `response_rows` summed over each response's tokens."""
    return response_rows(model, batch, reference, grad).sequences()
