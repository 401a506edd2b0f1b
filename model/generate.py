"""Generation with a KV cache: prompts of unequal length in one batch; greedy, temperature, top-p.

`generate` is what evaluation asks: one answer a prompt. `sample` is what a rollout asks: several
answers to each prompt, whose tokens are computed once, drawn from the model's own distribution.
Both go through `continued`, which computes no row that has ended and fills its place.

Letters: N rows of the cache, T tokens of all prompts, L cache length, K kv heads, G query heads per
kv head, E head width, D hidden, V vocabulary.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F

from model.attention import Attend, common_prefix, packed_attention
from model.errors import InputError
from model.llama import Llama

Ids = list[int]
# pick(logits_NV, answers) -> tokens [N]; which answer each row of logits continues
Pick = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]


class Cache:
    """Keys and values of every layer, [N, K, L, E] each. A row is filled up to its own length."""

    def __init__(self, model: Llama, rows: int, length: int) -> None:
        c = model.config
        shape = (c.num_hidden_layers, rows, c.num_key_value_heads, length, c.head_dim)
        device = model.head_weight_VD.device
        self.k = torch.zeros(shape, dtype=model.dtype, device=device)
        self.v = torch.zeros(shape, dtype=model.dtype, device=device)

    def move(self, source: int | torch.Tensor, target: int | torch.Tensor) -> None:
        """Row `source` into the place of row `target`, whose own is forgotten."""
        self.k[:, target] = self.k[:, source]
        self.v[:, target] = self.v[:, source]

    def spread(self, rows_N: torch.Tensor, copies: int) -> None:
        """Each of these rows into the `copies` - 1 places behind it too."""
        for copy in range(1, copies):
            self.move(rows_N, rows_N + copy)


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


def prefill(
    model: Llama, cache: Cache, prompts: Sequence[Ids], first: int = 0, copies: int = 1
) -> torch.Tensor:
    """Run the prompts and fill the cache from row `first` on, `copies` rows a prompt: hidden states
    after each prompt's last token, a row for each copy [N, D].

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
    rows_P = first + copies * torch.arange(len(prompts), device=device)
    filling = _filling(cache, attend, shared, rows_P, row_T.to(device), own_position_T.to(device))
    hidden_TD = model.forward_hidden(tokens_T.to(device), positions_T.to(device), filling)
    last_P = lengths.to(device).cumsum(0) - 1 + shared
    cache.spread(rows_P, copies)
    return hidden_TD[last_P].repeat_interleave(copies, 0)


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
    rows_P: torch.Tensor,
    prompt_T: torch.Tensor,
    position_T: torch.Tensor,
) -> Attend:
    """`attend`, also writing keys and values to the row of each prompt: the shared ones to all."""

    def keep(
        layer: int, q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor
    ) -> torch.Tensor:
        for stored_NKLE, x_TKE in ((cache.k[layer], k_TKE), (cache.v[layer], v_TKE)):
            stored_NKLE[rows_P, :, :shared] = x_TKE[:shared].transpose(0, 1)
            stored_NKLE[rows_P[prompt_T], :, position_T] = x_TKE[shared:]
        return attend(layer, q_THE, k_TKE, v_TKE)

    return keep


# Choosing tokens, and what attends while they come


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


def draw(logits_NV: torch.Tensor, temperature: float, uniform_N: Sequence[float]) -> torch.Tensor:
    """Next tokens [N] from the whole distribution at a temperature, by one uniform number of [0, 1)
    each: the first token up to which the probabilities sum to more than it.

    Summed in float64: 50,000 float32 probabilities would lose those of rare tokens.
    """
    _check_finite(logits_NV)
    probs_NV = (logits_NV.float() / temperature).softmax(-1)
    cumulated_NV = probs_NV.cumsum(-1, dtype=torch.float64)
    uniform_N1 = torch.tensor(uniform_N, dtype=torch.float64, device=logits_NV.device)[:, None]
    below_N1 = uniform_N1 * cumulated_NV[:, -1:]
    tokens_N = torch.searchsorted(cumulated_NV, below_N1, right=True)[:, 0]
    return tokens_N.clamp(max=logits_NV.shape[1] - 1)


# Answers


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
    generators = [torch.Generator().manual_seed(seed) for seed in seeds or range(len(prompts))]

    def pick(logits_NV: torch.Tensor, answers: Sequence[int]) -> torch.Tensor:
        return choose(logits_NV, temperature, top_p, [generators[number] for number in answers])

    room = Room(max_new_tokens, max(1, len(prompts)))
    answers = continued(model, prompts, room, stop_ids, pick, agreed)
    return [answer[:-1] if answer and answer[-1] in stop_ids else answer for answer in answers]


@dataclass(frozen=True)
class Room:
    """How much is generated, and how much of it at a time."""

    new_tokens: int  # of an answer at most
    rows: int  # of the cache: answers that are continued at a time; a multiple of `copies`
    copies: int = 1  # answers to each prompt


@torch.no_grad()
def sample(
    model: Llama,
    prompts: Sequence[Ids],
    room: Room,
    stop_ids: Collection[int],
    temperature: float,
    seeds: Sequence[int],
    agreed: Callable[[bool], bool] = bool,
) -> list[Ids]:
    """`room.copies` answers to each prompt, those of a prompt adjacent, from the model's whole
    distribution at `temperature`; each with the stop token that ended it, if one did.

    seeds: one an answer; its tokens are a function of it and of the model. agreed: see `generate`.
    """
    draws = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        draws.append(iter(torch.rand(room.new_tokens, generator=generator).tolist()))

    def pick(logits_NV: torch.Tensor, answers: Sequence[int]) -> torch.Tensor:
        return draw(logits_NV, temperature, [next(draws[number]) for number in answers])

    return continued(model, prompts, room, stop_ids, pick, agreed)


@torch.no_grad()
def continued(
    model: Llama,
    prompts: Sequence[Ids],
    room: Room,
    stop_ids: Collection[int],
    pick: Pick,
    agreed: Callable[[bool], bool] = bool,
) -> list[Ids]:
    """The answers, each with the stop token that ended it, if one did.

    One forward a turn, whatever it is of: with a sharded model a forward is a collective, and ranks
    stay in step. A rank without work of its own runs one token until all are done.
    """
    answers: list[Ids] = [[] for _ in range(room.copies * len(prompts))]
    if not prompts or room.new_tokens < 1:
        return answers
    device = model.head_weight_VD.device
    rows = min(room.rows, len(answers))
    cache = Cache(model, rows, max(map(len, prompts)) + room.new_tokens)
    stops = torch.tensor(sorted(stop_ids), device=device, dtype=torch.int64)

    # Prompts that wait for a place, and the answers that go on in the order of the cache's rows,
    # each with its last token and how much of it is in the cache.
    waiting = list(range(len(prompts)))
    going_on: list[int] = []
    token_N = torch.zeros(0, dtype=torch.int64, device=device)
    length_N = torch.zeros(0, dtype=torch.int64, device=device)
    head_VD = None
    done = False
    while True:
        # The prompts for which there is a place, else the next token of every answer.
        first = 0
        admitted = waiting[: (rows - len(going_on)) // room.copies]
        if admitted:
            del waiting[: len(admitted)]
            first = len(going_on)
            chosen = [prompts[number] for number in admitted]
            hidden_ND = prefill(model, cache, chosen, first, room.copies)
            going_on += [n * room.copies + k for n in admitted for k in range(room.copies)]
            lengths = torch.tensor([len(prompt) for prompt in chosen], device=device)
            length_N = torch.cat((length_N, lengths.repeat_interleave(room.copies)))
            token_N = torch.cat((token_N, token_N.new_zeros(len(hidden_ND))))
        elif going_on:
            attend = decode_attention(cache, length_N)
            hidden_ND = model.forward_hidden(token_N, length_N, attend)
            length_N = length_N + 1
        else:
            idle(model)

        # What comes next, in the rows that the forward was of.
        if going_on:
            if head_VD is None:  # read after a forward, which gathers a sharded one
                head_VD = model.head_weight_VD.to(model.dtype)
            token_N[first:] = pick(F.linear(hidden_ND, head_VD), going_on[first:])
            ended_N = torch.isin(token_N, stops).tolist()
            for number, token in zip(going_on[first:], token_N[first:].tolist()):
                answers[number].append(token)
            for row, number in enumerate(going_on):
                ended_N[row] = ended_N[row] or len(answers[number]) == room.new_tokens
            done = all(ended_N) and not waiting
        if agreed(done):
            return answers

        # Answers that ended make room, so that no product is computed for them.
        if going_on and any(ended_N):
            places = _close_up(cache, ended_N)
            going_on = [going_on[row] for row in places]
            token_N = token_N[places]
            length_N = length_N[places]


def idle(model: Llama) -> None:
    """The forward of a rank that has no answer of its own left."""
    zero_T = torch.zeros(1, dtype=torch.int64, device=model.head_weight_VD.device)
    model.forward_hidden(zero_T, zero_T, packed_attention(zero_T, zero_T))


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
