"""Generation with a KV cache: prompts of unequal length in one batch, greedy, temperature, top-p.

Letters: N prompts, L cache length, K kv heads, G query heads per kv head, E head width.
"""

import torch
import torch.nn.functional as F

from model.attention import packed_attention
from model.errors import InputError


class Cache:
    """Keys and values of every layer, [N, K, L, E] each. Row n is filled up to length_N[n]."""

    def __init__(self, model, rows, length):
        c, device = model.config, model.head_weight_VD.device
        shape = (c.num_hidden_layers, rows, c.num_key_value_heads, length, c.head_dim)
        self.k, self.v = (torch.zeros(shape, dtype=model.dtype, device=device) for _ in range(2))


def common_prefix(prompts):
    """Tokens that all prompts start with, leaving at least one of its own to each."""
    first, last = min(prompts), max(prompts)
    limit = min(map(len, prompts)) - 1
    return next((n for n in range(limit) if first[n] != last[n]), limit)


def prefill(model, cache, prompts):
    """Run the prompts, fill the cache, return the hidden state after each prompt's last token [N, D].

    A prefix that all share runs once when that saves more than it costs in masked attention; the packed layout does it:
    the prefix is the document's prompt, each remainder a branch.
    """
    device, N = cache.k.device, len(prompts)
    shared = common_prefix(prompts)
    if shared * (N - 1) < sum(len(p) - shared for p in prompts):
        shared = 0
    rests = [prompt[shared:] for prompt in prompts]
    row_T = torch.repeat_interleave(torch.arange(N), torch.tensor([len(rest) for rest in rests]))
    position_T = torch.cat([torch.arange(shared, len(prompt)) for prompt in prompts])
    tokens_T = torch.tensor(
        prompts[0][:shared] + [token for rest in rests for token in rest], device=device
    )
    zeros = torch.zeros(shared, dtype=torch.int64)
    positions = torch.cat([torch.arange(shared), position_T]).to(device)
    if shared:  # one document, one branch a prompt
        document, branch = torch.zeros_like(positions), torch.cat([zeros, row_T + 1]).to(device)
    else:  # one document a prompt
        document, branch = row_T.to(device), torch.zeros_like(positions)
    attend, row_T, position_T = (
        packed_attention(document, branch),
        row_T.to(device),
        position_T.to(device),
    )

    def keep(layer, q_THE, k_TKE, v_TKE):
        for store, x in ((cache.k[layer], k_TKE), (cache.v[layer], v_TKE)):
            store[:, :, :shared] = x[:shared].transpose(0, 1)
            store[row_T, :, position_T] = x[shared:]
        return attend(layer, q_THE, k_TKE, v_TKE)

    hidden_TD = model.forward_hidden(tokens_T, positions, keep)
    ends = torch.tensor([len(rest) for rest in rests], device=device).cumsum(0) - 1 + shared
    return hidden_TD[ends]


def decode_attention(cache, length_N):
    """Attention of one new token a row, at position length_N: the cache up to and with it. Query heads of a kv head go as rows."""
    rows = torch.arange(len(length_N), device=length_N.device)
    used = int(length_N.max()) + 1
    mask = (torch.arange(used, device=length_N.device) <= length_N[:, None])[:, None, None]

    def attend(layer, q_NHE, k_NKE, v_NKE):
        for store, x in ((cache.k[layer], k_NKE), (cache.v[layer], v_NKE)):
            store[rows, :, length_N] = x
        q_NKGE = q_NHE.unflatten(1, (k_NKE.shape[1], -1))
        out = F.scaled_dot_product_attention(
            q_NKGE, cache.k[layer][:, :, :used], cache.v[layer][:, :, :used], attn_mask=mask
        )
        return out.flatten(1, 2)

    return attend


def choose(logits_NV, temperature, top_p, generators):
    """Next tokens [N]. temperature 0: the most likely; else sampled from the smallest set of probability >= top_p, a generator a row."""
    if temperature > 0:
        logits_NV = logits_NV.float() / temperature
    # The largest is NaN if one is: argmax would take it for a token, softmax spread it to all.
    if not logits_NV.max(-1).values.isfinite().all():
        raise InputError(
            "the model's logits are NaN or infinite: its numbers overflowed, in its weights or on "
            "the way, or the temperature is too near 0; try --dtype float32 or another checkpoint"
        )
    if temperature == 0:
        return logits_NV.argmax(-1)
    probs, order = logits_NV.softmax(-1).sort(-1, descending=True)
    probs[probs.cumsum(-1) - probs >= top_p] = 0
    picked = torch.stack(
        [torch.multinomial(row.cpu(), 1, generator=g) for row, g in zip(probs, generators)]
    )
    return order.gather(1, picked.to(order.device))[:, 0]


@torch.no_grad()
def generate(
    model, prompts, max_new_tokens, stop_ids, temperature=0.0, top_p=1.0, seeds=None, agreed=bool
):
    """Continue each prompt (list of token ids) by at most `max_new_tokens`; the stop token is not in the result.

    seeds: one a row (None: 0, 1, ...); a row samples with its own generator, so its text does not depend on its neighbours.
    agreed(done): whether to stop, given whether every row here is done; with a sharded model ranks must stop together.
    """
    if not prompts or max_new_tokens < 1:
        return [[] for _ in prompts]
    device = model.head_weight_VD.device
    cache = Cache(model, len(prompts), max(map(len, prompts)) + max_new_tokens)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds or range(len(prompts))]
    stops = torch.tensor(sorted(stop_ids), device=device, dtype=torch.int64)
    length_N = torch.tensor([len(prompt) for prompt in prompts], device=device)
    done_N = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    hidden_ND, made = prefill(model, cache, prompts), []
    head_VD = model.head_weight_VD.to(model.dtype)  # after a forward, which gathers a sharded head
    for _ in range(max_new_tokens):
        tokens_N = choose(F.linear(hidden_ND, head_VD), temperature, top_p, generators)
        done_N = done_N | torch.isin(tokens_N, stops)
        made.append(torch.where(done_N, -1, tokens_N))
        if agreed(done_N.all()):
            break
        hidden_ND = model.forward_hidden(tokens_N, length_N, decode_attention(cache, length_N))
        length_N = length_N + 1
    return [[token for token in row if token >= 0] for row in torch.stack(made, 1).tolist()]
