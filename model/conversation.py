"""One sequence that grows turn by turn: keys and values stay between answers, so that only what is
new of a context is computed, and tokens come as they are chosen.

Letters: T new tokens, L cache length, K kv heads, G query heads per kv head, E head width,
D hidden, V vocabulary.
"""

from collections.abc import Collection, Iterator, Sequence

import torch
import torch.nn.functional as F

from model.attention import Attend
from model.generate import choose
from model.llama import Llama

GROWTH = 512  # tokens of cache at first; doubled when they are full


class Thread:
    """A sequence, and the keys and values of every layer, [K, L, E] each."""

    def __init__(self, model: Llama) -> None:
        self.model = model
        self.ids: list[int] = []  # what the cache is filled with
        self.computed = 0  # tokens that went through the model, over all calls
        self._k = self._v = torch.empty(0)

    @torch.no_grad()
    def answer(
        self,
        context: Sequence[int],
        max_new_tokens: int,
        stop_ids: Collection[int],
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[int]:
        """The tokens of an answer to `context`, one at a time; the stop token is not among them.

        What the context shares with the sequence so far is not computed again. The iterator may be
        left at any token, and an interrupt may end it: the next answer finds a whole cache. Raises
        InputError if the model computes NaN.
        """
        generator = torch.Generator().manual_seed(seed)
        hidden_1D = self._extend(context)
        for number in range(max_new_tokens):
            head_VD = self.model.head_weight_VD.to(self.model.dtype)
            logits_1V = F.linear(hidden_1D, head_VD)
            token = int(choose(logits_1V, temperature, top_p, [generator])[0])
            if token in stop_ids:
                return
            yield token
            if number < max_new_tokens - 1:
                hidden_1D = self._extend([*self.ids, token])

    def _extend(self, ids: Sequence[int]) -> torch.Tensor:
        """Make the sequence `ids`; the hidden state after its last token, [1, D]."""
        shared = self._shared(ids)
        # Forgotten before, known after the forward: an interrupt between leaves what is true.
        del self.ids[shared:]
        self._make_room(len(ids))
        device = self.model.head_weight_VD.device
        tokens_T = torch.tensor(ids[shared:], device=device)
        positions_T = torch.arange(shared, len(ids), device=device)
        hidden_TD = self.model.forward_hidden(tokens_T, positions_T, self._attention(shared))
        self.computed += len(tokens_T)
        self.ids = list(ids)
        return hidden_TD[-1:]

    def _shared(self, ids: Sequence[int]) -> int:
        """How many tokens the sequence and `ids` begin with, at least one of `ids` left over."""
        limit = min(len(self.ids), len(ids) - 1)
        return next((n for n in range(limit) if self.ids[n] != ids[n]), limit)

    def _make_room(self, length: int) -> None:
        """Double the cache until it holds `length` tokens; what it holds stays."""
        have = self._k.shape[2] if self._k.dim() == 4 else 0
        if length <= have:
            return
        size = max(have, GROWTH)
        while size < length:
            size *= 2
        c = self.model.config
        shape = (c.num_hidden_layers, c.num_key_value_heads, size, c.head_dim)
        device = self.model.head_weight_VD.device
        grown = []
        for old in (self._k, self._v):
            new = torch.zeros(shape, dtype=self.model.dtype, device=device)
            if have:
                new[:, :, :have] = old
            grown.append(new)
        self._k, self._v = grown

    def _attention(self, before: int) -> Attend:
        """Attention of new tokens over `before` cached ones and, causally, themselves."""

        def attend(
            layer: int, q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor
        ) -> torch.Tensor:
            T, K = k_TKE.shape[:2]
            used = before + T
            self._k[layer][:, before:used] = k_TKE.transpose(0, 1)
            self._v[layer][:, before:used] = v_TKE.transpose(0, 1)
            groups = q_THE.shape[1] // K
            k_1HLE = self._k[layer][:, :used].repeat_interleave(groups, dim=0)[None]
            v_1HLE = self._v[layer][:, :used].repeat_interleave(groups, dim=0)[None]
            mask_TL = None
            if before and T > 1:
                square = torch.ones(T, used, dtype=torch.bool, device=q_THE.device)
                mask_TL = square.tril(before)
            out_1HTE = F.scaled_dot_product_attention(
                q_THE.transpose(0, 1)[None],
                k_1HLE,
                v_1HLE,
                attn_mask=mask_TL,
                is_causal=not before and T > 1,
            )
            return out_1HTE[0].transpose(0, 1)

        return attend
