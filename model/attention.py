"""Who attends to whom in a packed batch: `prompt | response 1 | response 2 | ...` a document.

A token sees, of its own document, everything before it in the prompt (branch 0) and in its own
branch: a response never sees a sibling.

Letters: T tokens of the batch, H heads, K kv heads, E head width. Padded: N prompts or responses,
L the longest of them, C the keys of one: the longest prompt, or the longest prompt and
the longest response together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

# attend(layer, q_THE, k_TKE, v_TKE) -> out_THE
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def visible(
    document_T: torch.Tensor, branch_T: torch.Tensor, query: torch.Tensor, key: torch.Tensor
) -> torch.Tensor:
    """The rule itself, on index tensors: may token `query` see token `key`?"""
    same_document = document_T[query] == document_T[key]
    prompt_or_own = (branch_T[key] == 0) | (branch_T[key] == branch_T[query])
    return same_document & prompt_or_own & (query >= key)


def packed_attention(document_T: torch.Tensor, branch_T: torch.Tensor) -> Attend:
    """The attention function of one packed batch, chosen by device.

    document_T: int64, ascending; branch_T: int64, 0 for prompt tokens, 1.. for responses.
    """
    if document_T.is_cuda:
        return FlexPacked(document_T, branch_T)
    return PaddedPacked(document_T, branch_T)


@dataclass(frozen=True)
class Rows:
    """Prompts, or responses, padded to the longest: a row each."""

    index_NL: torch.Tensor  # the token at each place; padding repeats the row's last, a real value
    real_NL: torch.Tensor  # which places are no padding

    @classmethod
    def of(cls, start_N: torch.Tensor, length_N: torch.Tensor) -> "Rows":
        """Rows of the tokens from `start` on, `length` of them."""
        column_L = torch.arange(int(length_N.max()), device=length_N.device)
        length_N1 = length_N[:, None]
        index_NL = start_N[:, None] + torch.minimum(column_L, length_N1 - 1)
        return cls(index_NL, column_L < length_N1)

    def places_of_real(self) -> torch.Tensor:
        """Where the tokens lie when the rows are laid end to end, in the order of the tokens."""
        return self.real_NL.flatten().nonzero()[:, 0]


class Part(NamedTuple):
    """One call of SDPA."""

    query_NL: torch.Tensor  # tokens that ask
    key_NC: torch.Tensor  # tokens that they may ask
    mask_N1LC: torch.Tensor | None  # which of those they see; None: causal


class PaddedPacked:
    """SDPA twice: prompts over themselves, then each response over its prompt and itself.

    No score of two siblings is ever made. Only attention sees padding: the linear layers run on the
    T real tokens.
    """

    def __init__(self, document_T: torch.Tensor, branch_T: torch.Tensor) -> None:
        """Every document begins with a prompt of at least one token."""
        # A run is a prompt or a response: it ends where the document or the branch changes.
        changes = document_T.diff().ne(0) | branch_T.diff().ne(0)
        run_T = torch.cat((document_T.new_zeros(1), changes.cumsum(0)))
        length_N = torch.bincount(run_T)
        start_N = length_N.cumsum(0) - length_N
        is_prompt_N = branch_T[start_N] == 0

        # Prompts see themselves alone. Their results come first.
        prompts = Rows.of(start_N[is_prompt_N], length_N[is_prompt_N])
        self.parts = [Part(prompts.index_NL, prompts.index_NL, None)]

        # Where the result of each token lies, all rows of all parts laid end to end.
        self.slot_T = torch.empty_like(run_T)
        self.slot_T[prompts.index_NL[prompts.real_NL]] = prompts.places_of_real()
        if is_prompt_N.all():
            return

        # A response sees its prompt, and of itself what comes before.
        is_response_N = ~is_prompt_N
        responses = Rows.of(start_N[is_response_N], length_N[is_response_N])
        prompt_N = document_T[start_N[is_response_N]]  # documents and prompts are numbered alike
        key_NC = torch.cat((prompts.index_NL[prompt_N], responses.index_NL), 1)
        mask_NLC = self._mask(prompts.real_NL[prompt_N], responses.real_NL)
        self.parts.append(Part(responses.index_NL, key_NC, mask_NLC[:, None]))
        after_prompts = prompts.index_NL.numel()
        self.slot_T[responses.index_NL[responses.real_NL]] = (
            after_prompts + responses.places_of_real()
        )

    @staticmethod
    def _mask(real_prompt_NC: torch.Tensor, real_NL: torch.Tensor) -> torch.Tensor:
        """[N, L, C]: all that is real of the prompt, and a triangle of the response itself."""
        rows, length = real_NL.shape
        square = torch.ones(length, length, dtype=torch.bool, device=real_NL.device)
        prompt_NLC = real_prompt_NC[:, None].expand(-1, length, -1)
        earlier_NLL = square.tril().expand(rows, -1, -1)
        return torch.cat((prompt_NLC, earlier_NLL), 2)

    def __call__(
        self, layer: int, q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor
    ) -> torch.Tensor:
        """The attention of all tokens, [T, H, E]."""
        heads = q_THE.shape[1]
        results = []
        for query_NL, key_NC, mask_N1LC in self.parts:
            q_NHLE = _rows(q_THE, query_NL, heads)
            k_NHCE = _rows(k_TKE, key_NC, heads)
            v_NHCE = _rows(v_TKE, key_NC, heads)
            out_NHLE = self.attend(q_NHLE, k_NHCE, v_NHCE, mask_N1LC)
            results.append(out_NHLE.transpose(1, 2).flatten(0, 1))
        return torch.cat(results).index_select(0, self.slot_T)

    @staticmethod
    def attend(
        q_NHLE: torch.Tensor,
        k_NHCE: torch.Tensor,
        v_NHCE: torch.Tensor,
        mask_N1LC: torch.Tensor | None,
    ) -> torch.Tensor:
        """SDPA of padded rows, [N, H, L, E]. Without a mask it is causal."""
        return F.scaled_dot_product_attention(
            q_NHLE, k_NHCE, v_NHCE, attn_mask=mask_N1LC, is_causal=mask_N1LC is None
        )


def _rows(x_TKE: torch.Tensor, index_NL: torch.Tensor, heads: int) -> torch.Tensor:
    """The tokens of each row, with as many heads as the queries have: [N, H, L, E]."""
    x_NLKE = x_TKE.index_select(0, index_NL.flatten()).unflatten(0, index_NL.shape)
    return x_NLKE.repeat_interleave(heads // x_TKE.shape[1], dim=2).transpose(1, 2)


class FlexPacked:
    """FlexAttention: the mask is a rule over blocks, nothing of size T x T is stored.

    CUDA only: there is no backward on the CPU.
    """

    def __init__(self, document_T: torch.Tensor, branch_T: torch.Tensor) -> None:
        def rule(batch, head, query, key):
            return visible(document_T, branch_T, query, key)

        tokens = document_T.numel()
        self.block_mask = create_block_mask(
            rule, None, None, tokens, tokens, device=document_T.device
        )

    def __call__(
        self, layer: int, q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor
    ) -> torch.Tensor:
        """The attention of all tokens, [T, H, E]."""
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q_THE, k_TKE, v_TKE))
        attend = _compiled_flex() if q.is_cuda else flex_attention
        out_1HTE = attend(q, k, v, block_mask=self.block_mask, enable_gqa=True)
        return out_1HTE[0].transpose(0, 1)


@cache
def _compiled_flex() -> Callable:
    """Compiled once a process, for batches of every length."""
    return torch.compile(flex_attention, dynamic=True)
