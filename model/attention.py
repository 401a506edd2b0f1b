"""Who attends to whom in a packed sequence: `prompt | response 1 | response 2 | ...`, documents one after another.

A token sees, of its own document, everything before it in the prompt (branch 0) and in its own branch: a response
never sees a sibling. Letters: T tokens, B documents, L longest document, H heads, K kv heads, E head width.
"""

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention


def visible(document_T, branch_T, query, key):
    """The rule itself, on index tensors: may token `query` see token `key`?"""
    same_document = document_T[query] == document_T[key]
    prompt_or_own = (branch_T[key] == 0) | (branch_T[key] == branch_T[query])
    return same_document & prompt_or_own & (query >= key)


def packed_attention(document_T, branch_T):
    """The attention function of one packed batch, chosen by device: `attend(layer, q_THE, k_TKE, v_TKE) -> THE`.

    document_T: int64, ascending; branch_T: int64, 0 for prompt tokens, 1.. for responses.
    """
    return (
        FlexPacked(document_T, branch_T)
        if document_T.is_cuda
        else PaddedPacked(document_T, branch_T)
    )


class PaddedPacked:
    """SDPA twice, prompts over themselves, then every response over its prompt and itself: no score of two siblings is ever made.

    Both are padded to their longest. Only attention sees padding: the linear layers run on the T real tokens. Letters: N prompts or
    responses, L the longest of them, C the longest prompt and the longest response together.
    """

    def __init__(self, document_T, branch_T):
        """Every document begins with a prompt of at least one token."""
        run_T = torch.cat(
            (document_T.new_zeros(1), (document_T.diff().ne(0) | branch_T.diff().ne(0)).cumsum(0))
        )  # prompts and responses, numbered
        length_N = torch.bincount(run_T)
        start_N = length_N.cumsum(0) - length_N
        prompt_N = branch_T[start_N] == 0

        def tokens(these_N):
            """(tokens of these runs [N, L], which of them are real); padding stands on the run's last token: a real value, never read back."""
            column_L = torch.arange(int(length_N[these_N].max()), device=document_T.device)
            length_N1 = length_N[these_N][:, None]
            return start_N[these_N][:, None] + torch.minimum(
                column_L, length_N1 - 1
            ), column_L < length_N1

        prompt_BL, real_BL = tokens(prompt_N)
        self.parts = [
            (prompt_BL, prompt_BL, None)
        ]  # (queries [N, L], keys [N, L or C], mask [N, 1, L, C] or None: causal)
        self.slot_T = torch.empty_like(
            run_T
        )  # where a token's result lies among those of both calls
        self.slot_T[prompt_BL[real_BL]] = real_BL.flatten().nonzero()[:, 0]
        if not prompt_N.all():
            response_NL, real_NL = tokens(~prompt_N)
            owner_N = document_T[start_N[~prompt_N]]
            earlier_LL = torch.ones(
                2 * response_NL.shape[1:], dtype=torch.bool, device=document_T.device
            ).tril()
            shown_NLC = torch.cat(
                (
                    real_BL[owner_N][:, None].expand(-1, len(earlier_LL), -1),
                    earlier_LL.expand(len(owner_N), -1, -1),
                ),
                2,
            )
            self.parts.append(
                (response_NL, torch.cat((prompt_BL[owner_N], response_NL), 1), shown_NLC[:, None])
            )
            self.slot_T[response_NL[real_NL]] = (
                prompt_BL.numel() + real_NL.flatten().nonzero()[:, 0]
            )

    def __call__(self, layer, q_THE, k_TKE, v_TKE):
        heads, found = q_THE.shape[1], []
        for query_NL, key_NC, mask in self.parts:
            q, k, v = (
                _rows(x, index, heads)
                for x, index in ((q_THE, query_NL), (k_TKE, key_NC), (v_TKE, key_NC))
            )
            out_NHLE = self.attend(q, k, v, mask)
            found.append(out_NHLE.transpose(1, 2).flatten(0, 1))
        return torch.cat(found).index_select(0, self.slot_T)

    @staticmethod
    def attend(q_NHLE, k_NHCE, v_NHCE, mask):
        return F.scaled_dot_product_attention(
            q_NHLE, k_NHCE, v_NHCE, attn_mask=mask, is_causal=mask is None
        )


def _rows(x_TKE, index_NL, heads):
    """The tokens of each row of `index_NL`, with as many heads as the queries have: [N, H, L, E]."""
    x_NLKE = x_TKE.index_select(0, index_NL.flatten()).unflatten(0, index_NL.shape)
    return x_NLKE.repeat_interleave(heads // x_TKE.shape[1], dim=2).transpose(1, 2)


class FlexPacked:
    """FlexAttention: the mask is a rule over blocks, nothing of size T x T is stored. CUDA only (no backward on the CPU)."""

    def __init__(self, document_T, branch_T):
        def rule(batch, head, query, key):
            return visible(document_T, branch_T, query, key)

        tokens = document_T.numel()
        self.block_mask = create_block_mask(
            rule, None, None, tokens, tokens, device=document_T.device
        )

    def __call__(self, layer, q_THE, k_TKE, v_TKE):
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q_THE, k_TKE, v_TKE))
        attend = _compiled_flex() if q.is_cuda else flex_attention
        return attend(q, k, v, block_mask=self.block_mask, enable_gqa=True)[0].transpose(0, 1)


_FLEX = []


def _compiled_flex():
    if not _FLEX:
        _FLEX.append(torch.compile(flex_attention, dynamic=True))
    return _FLEX[0]
