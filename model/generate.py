"""Generation with a KV cache: prompts of unequal length in one batch; greedy, temperature, top-p.

Letters: N prompts, T tokens of all prompts, L cache length, K kv heads, G query heads per kv head,
E head width, D hidden, V vocabulary.
"""

from collections.abc import Callable, Collection, Sequence
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F

from model.attention import Attend, common_prefix, packed_attention
from model.errors import InputError
from model.llama import Llama

Ids = list[int]


class Cache:
    """Keys and values of every layer, [N, K, L, E] each. A row is filled up to its own length."""

    def __init__(self, model: Llama, rows: int, length: int) -> None:
        c = model.config
        shape = (c.num_hidden_layers, rows, c.num_key_value_heads, length, c.head_dim)
        device = model.head_weight_VD.device
        self.k = torch.zeros(shape, dtype=model.dtype, device=device)
        self.v = torch.zeros(shape, dtype=model.dtype, device=device)

    def move(self, source: int, target: int) -> None:
        """Row `source` into the place of row `target`, whose own is forgotten."""
        self.k[:, target] = self.k[:, source]
        self.v[:, target] = self.v[:, source]


# Models with compiled blocks


def is_compiled(model: Llama) -> bool:
    return any(block._compiled_call_impl is not None for block in model.model.layers)


def outside_the_compiler(function: Callable) -> Callable:
    """function(model, ...) with the model's blocks run as they are written.

    Compiled, each layer and each length of a generation would be a graph of its own, and the
    compiler's budget of graphs spent before training goes on.
    """

    @wraps(function)
    def eager(model: Llama, *args: Any, **kwargs: Any) -> Any:
        if not is_compiled(model):
            return function(model, *args, **kwargs)
        with torch.compiler.set_stance("force_eager"):
            return function(model, *args, **kwargs)

    return eager


def own_compiler(model: Llama, attend: Attend) -> Attend:
    """`attend` inside the above: FlexAttention on CUDA is a compiled function by itself, and is to
    stay one, or its scores would be T x T in memory."""
    if not is_compiled(model):
        return attend

    def compiled(
        layer: int, q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor
    ) -> torch.Tensor:
        with torch.compiler.set_stance("default"):
            return attend(layer, q_THE, k_TKE, v_TKE)

    return compiled


# Prompts


def prefill(model: Llama, cache: Cache, prompts: Sequence[Ids]) -> torch.Tensor:
    """Run the prompts and fill the cache: hidden states after each prompt's last token [N, D].

    A prefix that all share runs once when that saves more than it costs in masked attention. The
    packed layout does it: the prefix is the document's prompt, each remainder a branch.
    """
    shared = _worthwhile_prefix(prompts)
    rests = [prompt[shared:] for prompt in prompts]
    lengths = torch.tensor([len(rest) for rest in rests])

    # The shared tokens first, then every remainder: which prompt each token is of, and where in it.
    row_T = torch.repeat_interleave(torch.arange(len(prompts)), lengths)
    own_position_T = torch.cat([torch.arange(shared, len(prompt)) for prompt in prompts])
    tokens_T = torch.tensor(prompts[0][:shared] + [token for rest in rests for token in rest])
    positions_T = torch.cat([torch.arange(shared), own_position_T])
    if shared:  # one document, one branch a prompt
        document_T = torch.zeros_like(positions_T)
        branch_T = torch.cat([torch.zeros(shared, dtype=torch.int64), row_T + 1])
    else:  # one document a prompt
        document_T = row_T
        branch_T = torch.zeros_like(positions_T)

    device = cache.k.device
    attend = own_compiler(model, packed_attention(document_T.to(device), branch_T.to(device)))
    filling = _filling(cache, attend, shared, row_T.to(device), own_position_T.to(device))
    hidden_TD = model.forward_hidden(tokens_T.to(device), positions_T.to(device), filling)
    last_N = lengths.to(device).cumsum(0) - 1 + shared
    return hidden_TD[last_N]


def _worthwhile_prefix(prompts: Sequence[Ids]) -> int:
    """common_prefix where running it once saves tokens; 0 otherwise."""
    shared = common_prefix(prompts)
    saved = shared * (len(prompts) - 1)
    rest = sum(len(prompt) - shared for prompt in prompts)
    return shared if saved >= rest else 0


def _filling(
    cache: Cache,
    attend: Attend,
    shared: int,
    row_T: torch.Tensor,
    position_T: torch.Tensor,
) -> Attend:
    """`attend`, also writing keys and values: the shared ones to every row of the cache."""

    def keep(
        layer: int, q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor
    ) -> torch.Tensor:
        for stored_NKLE, x_TKE in ((cache.k[layer], k_TKE), (cache.v[layer], v_TKE)):
            stored_NKLE[:, :, :shared] = x_TKE[:shared].transpose(0, 1)
            stored_NKLE[row_T, :, position_T] = x_TKE[shared:]
        return attend(layer, q_THE, k_TKE, v_TKE)

    return keep


# Answers


def decode_attention(cache: Cache, length_N: torch.Tensor) -> Attend:
    """Attention of one new token a row, at position length_N: the cache up to and with it.

    The first N rows of the cache; query heads of a kv head go as rows.
    """
    N = len(length_N)
    rows_N = torch.arange(N, device=length_N.device)
    used = int(length_N.max()) + 1
    mask_NL = torch.arange(used, device=length_N.device) <= length_N[:, None]
    mask_N11L = mask_NL[:, None, None]

    def attend(
        layer: int, q_NHE: torch.Tensor, k_NKE: torch.Tensor, v_NKE: torch.Tensor
    ) -> torch.Tensor:
        for stored_NKLE, x_NKE in ((cache.k[layer], k_NKE), (cache.v[layer], v_NKE)):
            stored_NKLE[rows_N, :, length_N] = x_NKE
        q_NKGE = q_NHE.unflatten(1, (k_NKE.shape[1], -1))
        k_NKLE = cache.k[layer][:N, :, :used]
        v_NKLE = cache.v[layer][:N, :, :used]
        out_NKGE = F.scaled_dot_product_attention(q_NKGE, k_NKLE, v_NKLE, attn_mask=mask_N11L)
        return out_NKGE.flatten(1, 2)

    return attend


def choose(
    logits_NV: torch.Tensor,
    temperature: float,
    top_p: float,
    generators: Sequence[torch.Generator],
) -> torch.Tensor:
    """Next tokens [N].

    temperature 0: the most likely; else sampled from the smallest set of probability >= top_p, a
    generator a row.
    """
    _check_finite(logits_NV)
    if temperature == 0:
        return logits_NV.argmax(-1)
    scaled_NV = logits_NV.float() / temperature
    # So cold that the quotient is beyond float32: only the most likely is left.
    if not scaled_NV.max(-1).values.isfinite().all():
        return logits_NV.argmax(-1)
    probs_NV, order_NV = scaled_NV.softmax(-1).sort(-1, descending=True)
    before_NV = probs_NV.cumsum(-1) - probs_NV
    probs_NV[before_NV >= top_p] = 0
    picked_N1 = torch.stack(
        [
            torch.multinomial(probs_V.cpu(), 1, generator=generator)
            for probs_V, generator in zip(probs_NV, generators)
        ]
    )
    return order_NV.gather(1, picked_N1.to(order_NV.device))[:, 0]


@torch.no_grad()
@outside_the_compiler
def generate(
    model: Llama,
    prompts: Sequence[Ids],
    max_new_tokens: int,
    stop_ids: Collection[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
    seeds: Sequence[int] | None = None,
    agreed: Callable[[bool], bool] = bool,
) -> list[Ids]:
    """Continue each prompt by at most `max_new_tokens`; the stop token is not in the result.

    seeds: one a row (None: 0, 1, ...); a row samples with its own generator, so its text does not
    depend on its neighbours. agreed(done): whether to stop, given whether every row here is done;
    with a sharded model ranks must stop together. Raises InputError if the model computes NaN.
    """
    answers: list[Ids] = [[] for _ in prompts]
    if not prompts or max_new_tokens < 1:
        return answers
    device = model.head_weight_VD.device
    cache = Cache(model, len(prompts), max(map(len, prompts)) + max_new_tokens)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds or range(len(prompts))]
    stops = torch.tensor(sorted(stop_ids), device=device, dtype=torch.int64)
    length_N = torch.tensor([len(prompt) for prompt in prompts], device=device)

    # The prompts whose answers go on, in the order of the cache's rows; answers that ended make
    # room for the last row, so that no product is computed for them.
    going_on = list(range(len(prompts)))
    done = False

    # The head is read after a forward, which gathers a sharded one.
    hidden_ND = prefill(model, cache, prompts)
    head_VD = model.head_weight_VD.to(model.dtype)
    for step in range(max_new_tokens):
        mine = [generators[prompt] for prompt in going_on]
        tokens_N = choose(F.linear(hidden_ND, head_VD), temperature, top_p, mine)
        ended_N = torch.isin(tokens_N, stops).tolist()
        if not done:
            for prompt, token, ended in zip(going_on, tokens_N.tolist(), ended_N):
                if not ended:
                    answers[prompt].append(token)
        done = done or all(ended_N)
        if agreed(done) or step == max_new_tokens - 1:
            break

        # A rank that is done keeps its rows: its forwards are for the others' collectives.
        if any(ended_N) and not done:
            rows = _close_up(cache, ended_N)
            going_on = [going_on[row] for row in rows]
            tokens_N = tokens_N[rows]
            length_N = length_N[rows]
        hidden_ND = model.forward_hidden(tokens_N, length_N, decode_attention(cache, length_N))
        length_N = length_N + 1
    return answers


def _close_up(cache: Cache, ended_N: Sequence[bool]) -> list[int]:
    """Fill the places of ended rows from the end; which row is now in each place."""
    rows = list(range(len(ended_N)))
    for place in reversed(range(len(ended_N))):
        if not ended_N[place]:
            continue
        last = rows.pop()
        if place < len(rows):
            rows[place] = last
            cache.move(len(rows), place)
    return rows


def _check_finite(logits_NV: torch.Tensor) -> None:
    """An argmax over NaN is a token like any other: said here, not answered with.

    The largest logit of a row is NaN if one is; -inf is a token that is masked.
    """
    if not logits_NV.max(-1).values.isfinite().all():
        raise InputError(
            f"the model's logits are NaN or infinite in {logits_NV.dtype}; its weights overflowed "
            "in training, or need a wider dtype: try float32"
        )
