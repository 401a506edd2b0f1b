"""The one place that joins model, adapters and fused head: a packed batch in, log-prob and KL per sequence out."""

from contextlib import nullcontext

import torch

from ecliptica.schema import SequenceStats
from kernels import linear_logp_kl
from model.attention import packed_attention
from model.lora import adapters_off


def hidden(model, batch):
    """Final hidden states [T, D] of a packed batch."""
    attend = packed_attention(batch.document_T, batch.branch_T)
    return model.forward_hidden(batch.tokens_T, batch.positions_T, attend)


def adapter_off_reference(model):
    """A LoRA run's reference: the same model with its adapters off. reference(batch) -> (hidden_TD, weight_VD)."""

    @torch.no_grad()
    def reference(batch):
        with adapters_off(model):
            return hidden(model, batch), model.head_weight_VD.to(model.dtype)

    return reference


@torch.no_grad()
def reference_rows(model, batch):
    """What a cache keeps of the frozen reference: (hidden_UD, lse_U) of the distinct response rows, ascending, adapters off.

    lse in float32, by the fused head, as the logit of token 0 minus its log-prob: no logits are held.
    """
    with adapters_off(model):
        hidden_TD = hidden(model, batch)
        weight_VD = model.head_weight_VD.to(model.dtype)
        rows_U = batch.rows_R.unique()
        logp_U = linear_logp_kl(
            hidden_TD,
            weight_VD,
            rows_U,
            torch.zeros_like(rows_U),
            torch.arange(len(rows_U), device=rows_U.device),
            len(rows_U),
        ).logp_S
    hidden_UD = hidden_TD[rows_U]
    return hidden_UD, hidden_UD.float() @ weight_VD[0].float() - logp_U


def model_reference(frozen):
    """A second, frozen model as the reference."""

    @torch.no_grad()
    def reference(batch):
        return hidden(frozen, batch), frozen.head_weight_VD.to(frozen.dtype)

    return reference


def score(model, batch, reference=None, kl="exact", grad=True):
    """SequenceStats of a packed batch. reference: see adapter_off_reference, model_reference; None: no KL, no ref_logp.

    kl: "exact": KL[policy || reference] over the vocabulary, summed over the response's positions (spec default);
    "printed": sum_t pi(y_t) log(pi(y_t) / pi_ref(y_t)), the paper's section 1, no KL; "logratio": logp - ref_logp of the
    sequence, the authors' trainer; both for ablation only. "none": reported nowhere.
    """
    with nullcontext() if grad else torch.no_grad():
        ref_TD, ref_VD = (
            reference(batch) if reference else (None, None)
        )  # first: a sharded policy then goes from forward to backward
        policy_TD = hidden(model, batch)
        weight_VD = model.head_weight_VD.to(
            model.dtype
        )  # after the forward, which gathers a sharded head
        if reference and kl == "printed":
            return _printed(batch, policy_TD, weight_VD, ref_TD, ref_VD)
        out = linear_logp_kl(
            policy_TD,
            weight_VD,
            batch.rows_R,
            batch.targets_R,
            batch.segments_R,
            batch.num_sequences,
            ref_TD,
            ref_VD,
        )
    kl_S = out.kl_S
    if reference and kl == "logratio":
        kl_S = out.logp_S - out.ref_logp_S
    return SequenceStats(
        out.logp_S,
        out.tokens_S,
        batch.owner_S,
        batch.scores_S,
        None if kl == "none" else kl_S,
        out.ref_logp_S,
    )


def _printed(batch, policy_TD, weight_VD, ref_TD, ref_VD):
    """Per-token log-probs, then sums per sequence: the printed formula needs pi(y_t) of every token."""
    each = torch.arange(batch.rows_R.numel(), device=batch.rows_R.device)
    out = linear_logp_kl(
        policy_TD, weight_VD, batch.rows_R, batch.targets_R, each, each.numel(), ref_TD, ref_VD
    )

    def per_sequence(x_R):
        return x_R.new_zeros(batch.num_sequences).index_add(0, batch.segments_R, x_R)

    kl_R = out.logp_S.exp() * (out.logp_S - out.ref_logp_S)
    tokens_S = per_sequence(torch.ones_like(out.logp_S)).long()
    return SequenceStats(
        per_sequence(out.logp_S),
        tokens_S,
        batch.owner_S,
        batch.scores_S,
        per_sequence(kl_R),
        per_sequence(out.ref_logp_S),
    )
