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
    return FlexPacked(document_T, branch_T) if document_T.is_cuda else PaddedPacked(document_T, branch_T)


class PaddedPacked:
    """SDPA over documents padded to the longest. Only attention sees padding: the linear layers run on the T real tokens."""

    def __init__(self, document_T, branch_T):
        device, tokens = document_T.device, document_T.numel()
        lengths_B = torch.bincount(document_T)
        start_B = lengths_B.cumsum(0) - lengths_B
        offset_T = torch.arange(tokens, device=device) - start_B[document_T]
        longest = int(lengths_B.max())
        column_L = torch.arange(longest, device=device)
        self.shape_BL = (len(lengths_B), longest)
        self.slot_T = document_T * longest + offset_T
        # Slots of padding point at the document's last token: a real value, never read back.
        self.token_BL = (start_B[:, None] + torch.minimum(column_L, lengths_B[:, None] - 1)).flatten()
        branch_BL = branch_T[self.token_BL].view(self.shape_BL)
        shown_BLL = (branch_BL[:, None, :] == 0) | (branch_BL[:, None, :] == branch_BL[:, :, None])
        # Causality keeps the diagonal, so no row is empty and padding cannot make a NaN.
        self.mask_BLL = (shown_BLL & (column_L[:, None] >= column_L))[:, None]

    def __call__(self, layer, q_THE, k_TKE, v_TKE):
        heads = q_THE.shape[1]
        q, k, v = (self._padded(x, heads) for x in (q_THE, k_TKE, v_TKE))
        out_BHLE = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask_BLL)
        return out_BHLE.transpose(1, 2).flatten(0, 1)[self.slot_T]

    def _padded(self, x_TKE, heads):
        x_BLKE = x_TKE[self.token_BL].unflatten(0, self.shape_BL)
        return x_BLKE.repeat_interleave(heads // x_TKE.shape[1], dim=2).transpose(1, 2)


class FlexPacked:
    """FlexAttention: the mask is a rule over blocks, nothing of size T x T is stored. CUDA only (no backward on the CPU)."""

    def __init__(self, document_T, branch_T):
        def rule(batch, head, query, key):
            return visible(document_T, branch_T, query, key)

        tokens = document_T.numel()
        self.block_mask = create_block_mask(rule, None, None, tokens, tokens, device=document_T.device)

    def __call__(self, layer, q_THE, k_TKE, v_TKE):
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q_THE, k_TKE, v_TKE))
        attend = _compiled_flex() if q.is_cuda else flex_attention
        return attend(q, k, v, block_mask=self.block_mask, enable_gqa=True)[0].transpose(0, 1)


_FLEX = []


def _compiled_flex():
    if not _FLEX:
        _FLEX.append(torch.compile(flex_attention, dynamic=True))
    return _FLEX[0]
