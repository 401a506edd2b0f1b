"""Log-probs of many responses under many contexts, the packed way: a context is computed once for all of its responses."""

import torch
from tqdm import tqdm

from ecliptica.data.packing import by_budget, pack
from ecliptica.data.templates import encode_pieces, render_context, response_pieces
from ecliptica.policy import score
from ecliptica.schema import Encoded
from model.errors import InputError

CPU_TOKENS = 1024  # of a forward on a CPU: more leave its caches, a fifth slower at 4096


def context_ids(system, prompt, instruction=None):
    return encode_pieces(system.tokenizer, render_context(system.template, prompt, instruction))


def response_ids(system, response):
    """With the end-of-turn token: it is part of a response."""
    return encode_pieces(system.tokenizer, response_pieces(system.template, response))


def check_fits(system, name, context, responses):
    """InputError for a context that is empty, or that does not fit the model's window with its longest response."""
    longest = len(context) + max(map(len, responses))
    if longest > system.window:
        raise InputError(
            f"{name}: {longest} tokens (context {len(context)}); the model's window is {system.window}: shorten it"
        )
    if not context:
        raise InputError(
            f"{name}: the context is empty; the first token of a response needs one to be predicted from"
        )


def score_all(system, jobs, label="scoring", reference=None):
    """[(logps, tokens, kls or None)] per job (id, context ids, [response ids]), in the order of `jobs`."""
    found = dict(score_stream(system, jobs, label, reference))
    return [found[index] for index in range(len(jobs))]


def score_stream(system, jobs, label="scoring", reference=None):
    """(index of the job, (logps, tokens, kls or None)) as they are made, longest jobs first.

    Log-probs are float32 sums over the response's tokens. Raises InputError, before the first forward, for a job that does not
    fit the model's window.
    """
    for name, context, responses in jobs:
        check_fits(system, name, context, responses)
    examples = [
        Encoded(name, tuple(context), tuple(map(tuple, responses)), (0.0,) * len(responses))
        for name, context, responses in jobs
    ]
    device = system.model.head_weight_VD.device
    budget = min(system.batch_tokens, CPU_TOKENS) if device.type == "cpu" else system.batch_tokens
    with tqdm(
        total=sum(example.tokens for example in examples),
        unit="tok",
        unit_scale=True,
        desc=label,
        leave=False,
        disable=None,
    ) as bar:
        for group in by_budget(examples, budget):
            batch = pack([examples[i] for i in group]).to(device)
            with torch.no_grad():  # a generator's body may be resumed with gradients on
                stats = score(system.model, batch, reference, grad=False)
            columns = [
                stats.logp_S.tolist(),
                stats.tokens_S.tolist(),
                None if stats.kl_S is None else stats.kl_S.tolist(),
            ]
            at = 0
            for i in group:
                upto = at + len(examples[i].responses)
                yield i, tuple(column and column[at:upto] for column in columns)
                at = upto
            bar.update(batch.tokens_T.numel())
