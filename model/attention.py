"""Who attends to whom in a packed batch: `prompt | response 1 | response 2 | ...` a document.

A token sees, of its own document, everything before it in the prompt (branch 0) and in its own
branch: a response never sees a sibling. What all prompts of a batch begin with may stand before
them once, as the batch's head: document -1, which everybody sees.

Letters: T tokens of the batch, H heads, K kv heads, E head width. Padded: N prompts or responses,
L the longest of them, C the keys of one: head, longest prompt and longest response together.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128  # tokens in a block of FlexAttention's mask
# Shorter batches are padded for FlexAttention: one, two and more blocks would each be graphs of
# their own, and with three kinds of gradient exceed the compiler's budget of eight.
LEAST_TOKENS = 3 * BLOCK
ROWS_OF_A_CALL = 8  # prompts or responses in one call of SDPA

# attend(layer, q_THE, k_TKE, v_TKE) -> out_THE
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts start with, leaving at least one of its own to each."""
    first, last = min(prompts), max(prompts)
    limit = min(map(len, prompts)) - 1
    return next((n for n in range(limit) if first[n] != last[n]), limit)


def visible(
    document_T: torch.Tensor, branch_T: torch.Tensor, query: torch.Tensor, key: torch.Tensor
) -> torch.Tensor:
    """The rule itself, on index tensors: may token `query` see token `key`?"""
    same_document = document_T[query] == document_T[key]
    prompt_or_own = (branch_T[key] == 0) | (branch_T[key] == branch_T[query])
    of_head = document_T[key] < 0
    return (same_document & prompt_or_own | of_head) & (query >= key)


def packed_attention(document_T: torch.Tensor, branch_T: torch.Tensor) -> Attend:
    """The attention function of one packed batch, chosen by device.

    document_T: int64, ascending, -1 for the head; branch_T: int64, 0 for tokens of head and
    prompts, 1.. for responses.
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

    def then(self, rows: "Rows") -> "Rows":
        """Each row with one of `rows` behind it."""
        return Rows(
            torch.cat((self.index_NL, rows.index_NL), 1), torch.cat((self.real_NL, rows.real_NL), 1)
        )

    def repeated(self, times: int) -> "Rows":
        """The one row, so many times."""
        return Rows(self.index_NL.expand(times, -1), self.real_NL.expand(times, -1))

    def places_of_real(self) -> torch.Tensor:
        """Where the tokens lie when the rows are laid end to end, in the order of the tokens."""
        return self.real_NL.flatten().nonzero()[:, 0]


def _of_similar_length(run_N: torch.Tensor, length_N: torch.Tensor) -> Iterator[torch.Tensor]:
    """The runs, ROWS_OF_A_CALL at a time, longest with longest: little is padded."""
    by_length_N = run_N[length_N[run_N].argsort(stable=True)]
    return iter(by_length_N.split(ROWS_OF_A_CALL)) if len(run_N) else iter(())


class Part(NamedTuple):
    """One call of SDPA."""

    query_NL: torch.Tensor  # tokens that ask
    key_NC: torch.Tensor  # tokens that they may ask
    mask_N1LC: torch.Tensor | None  # which of those they see; None: causal


class PaddedPacked:
    """SDPA of prompts over themselves, then of each response over its prompt and itself.

    A few rows of similar length a call; no score of two siblings is ever made. Only attention sees
    padding: the linear layers run on the T real tokens. A head takes a call of its own, and then is
    before every prompt.
    """

    def __init__(self, document_T: torch.Tensor, branch_T: torch.Tensor) -> None:
        """Every document begins with a prompt of at least one token."""
        # A run is the head, a prompt or a response: it ends where document or branch changes.
        changes = document_T.diff().ne(0) | branch_T.diff().ne(0)
        run_T = torch.cat((document_T.new_zeros(1), changes.cumsum(0)))
        length_N = torch.bincount(run_T)
        start_N = length_N.cumsum(0) - length_N
        document_N = document_T[start_N]
        is_head_N = document_N < 0
        is_response_N = branch_T[start_N] > 0
        is_prompt_N = ~is_head_N & ~is_response_N

        # Where the result of each token lies, all rows of all parts laid end to end.
        self.parts: list[Part] = []
        self.slot_T = torch.empty_like(run_T)
        self.places = 0

        # The head sees itself alone, and so do the prompts if there is none.
        head = None
        if is_head_N.any():
            head = Rows.of(start_N[is_head_N], length_N[is_head_N])
            self._add(head, None)
        prompt_N = is_prompt_N.nonzero()[:, 0]
        for some_N in _of_similar_length(prompt_N, length_N):
            prompts = Rows.of(start_N[some_N], length_N[some_N])
            self._add(prompts, head and head.repeated(len(some_N)))

        # A response sees its context, and of itself what comes before.
        response_N = is_response_N.nonzero()[:, 0]
        for some_N in _of_similar_length(response_N, length_N):
            own_N = prompt_N[document_N[some_N]]  # documents and prompts are numbered alike
            context = Rows.of(start_N[own_N], length_N[own_N])
            if head:
                context = head.repeated(len(some_N)).then(context)
            self._add(Rows.of(start_N[some_N], length_N[some_N]), context)

    def _add(self, rows: Rows, before: Rows | None) -> None:
        """One more call of SDPA: `rows` over all of what is before them, and over themselves."""
        if before is None:
            self.parts.append(Part(rows.index_NL, rows.index_NL, None))
        else:
            keys = before.then(rows)
            mask_NLC = self._mask(before.real_NL, rows.real_NL)
            self.parts.append(Part(rows.index_NL, keys.index_NL, mask_NLC[:, None]))
        self.slot_T[rows.index_NL[rows.real_NL]] = self.places + rows.places_of_real()
        self.places += rows.index_NL.numel()

    @staticmethod
    def _mask(real_before_NC: torch.Tensor, real_NL: torch.Tensor) -> torch.Tensor:
        """[N, L, C]: all that is real before the rows, and a triangle of the rows themselves."""
        rows, length = real_NL.shape
        square = torch.ones(length, length, dtype=torch.bool, device=real_NL.device)
        before_NLC = real_before_NC[:, None].expand(-1, length, -1)
        earlier_NLL = square.tril().expand(rows, -1, -1)
        return torch.cat((before_NLC, earlier_NLL), 2)

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


def padded(document_T: torch.Tensor, branch_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two of a batch with at least LEAST_TOKENS: what is added is a document of its own."""
    missing = LEAST_TOKENS - document_T.numel()
    if missing <= 0:
        return document_T, branch_T
    new = int(document_T[-1]) + 1
    return F.pad(document_T, (0, missing), value=new), F.pad(branch_T, (0, missing))


def block_mask(document_T: torch.Tensor, branch_T: torch.Tensor) -> BlockMask:
    """Which blocks of keys each block of queries sees in part and as a whole, from where prompts
    and responses begin and end: nothing of size T x T is made."""
    T = document_T.numel()
    document, branch = document_T.cpu(), branch_T.cpu()

    # A run is the head, a prompt or a response.
    changes = document.diff().ne(0) | branch.diff().ne(0)
    run_T = torch.cat((document.new_zeros(1), changes.cumsum(0)))
    length_N = torch.bincount(run_T)
    first_N = length_N.cumsum(0) - length_N
    of_document_N, of_branch_N = document[first_N], branch[first_N]

    # Of each block B of tokens, how many are of run N; then how many are of a run that N sees: the
    # head, its own prompt, itself.
    blocks = -(-T // BLOCK)
    tokens_NB = torch.zeros(len(length_N), blocks)
    block_T = torch.arange(T) // BLOCK
    tokens_NB.index_put_((run_T, block_T), torch.ones(T), accumulate=True)
    same_NN = of_document_N[:, None] == of_document_N
    own_NN = (of_branch_N == 0) | (of_branch_N[:, None] == of_branch_N)
    sees_NN = (same_NN & own_NN) | (of_document_N < 0)
    seen_NB = sees_NN.float() @ tokens_NB

    # A block of queries sees a block of keys if any of its runs sees a token of it, and the whole
    # of it if all see all and it is a block before.
    asks_BN = (tokens_NB > 0).float().T
    some_BB = (asks_BN @ (seen_NB > 0).float() > 0).tril()
    every_BB = (asks_BN @ (seen_NB < BLOCK).float() == 0).tril(-1)
    if T % BLOCK:
        every_BB[-1] = False
    partial = _listed(some_BB & ~every_BB, document_T.device)
    whole = _listed(every_BB, document_T.device)

    def rule(batch, head, query, key):
        return visible(document_T, branch_T, query, key)

    return BlockMask.from_kv_blocks(
        *partial, *whole, BLOCK_SIZE=BLOCK, mask_mod=rule, seq_lengths=(T, T)
    )


def _listed(some_BB: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(how many, which ones first) of each row, as BlockMask wants them."""
    count_B = some_BB.sum(1, dtype=torch.int32)
    order_BB = some_BB.int().argsort(dim=1, descending=True, stable=True).to(torch.int32)
    return count_B[None, None].to(device), order_BB[None, None].to(device)


class FlexPacked:
    """FlexAttention: the mask is a rule over blocks, nothing of size T x T is stored.

    CUDA only: there is no backward on the CPU.
    """

    def __init__(self, document_T: torch.Tensor, branch_T: torch.Tensor) -> None:
        self.tokens = document_T.numel()
        document_T, branch_T = padded(document_T, branch_T)
        self.added = document_T.numel() - self.tokens
        self.block_mask = block_mask(document_T, branch_T)

    def __call__(
        self, layer: int, q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor
    ) -> torch.Tensor:
        """The attention of all tokens, [T, H, E]."""
        of_heads = (q_THE, k_TKE, v_TKE)
        if self.added:
            of_heads = tuple(F.pad(x, (0, 0, 0, 0, 0, self.added)) for x in of_heads)
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in of_heads)
        attend = _compiled_flex() if q.is_cuda else flex_attention
        out_1HTE = attend(q, k, v, block_mask=self.block_mask, enable_gqa=True)
        return out_1HTE[0].transpose(0, 1)[: self.tokens]


@cache
def _compiled_flex() -> Callable:
    """Compiled once a process, for batches of every length."""
    return torch.compile(flex_attention, dynamic=True)
