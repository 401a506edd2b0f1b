"""Contrastive decoding of the instruction, without training: next-token logits z(I, x) + alpha
(z(I, x) - z(x)), from two forwards. alpha = 0 is plain prompting.

Logits are the head times a hidden state, so the mixture of logits is the head times the mixture of
hidden states, h + alpha (h - h0): the fused head scores it, and no logits of the vocabulary are
held. Mixed in float32.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ecliptica.data.packing import by_prefix, pack
from ecliptica.evaluation.answers import batches, ends, seed_of
from ecliptica.evaluation.questions import Answered, Question, Sampling
from ecliptica.evaluation.scoring import (
    CPU_TOKENS,
    Loaded,
    Scored,
    check_fits,
    check_numbers,
    context_ids,
    documents,
    response_ids,
)
from ecliptica.policy import hidden
from ecliptica.schema import Encoded
from kernels import linear_logp_kl
from model.errors import InputError
from model.generate import Cache, choose, decode_attention, prefill

Ids = Sequence[int]


class Contexts(NamedTuple):
    """A prompt with its instruction, and alone, as token ids."""

    instructed: Ids
    alone: Ids


def contexts_of(system: Loaded, prompt: str, instruction: str | None) -> Contexts:
    """Raises InputError for rendered text, in which nobody can tell the instruction."""
    if system.template is None:
        raise InputError(
            "--contrast: needs the instruction apart from the prompt, and --template none has "
            "rendered text; name a template"
        )
    alone = context_ids(system, prompt, None)
    return Contexts(context_ids(system, prompt, instruction), alone)


def mixed(instructed_RD: torch.Tensor, alone_RD: torch.Tensor, alpha: float) -> torch.Tensor:
    """h + alpha (h - h0), in the dtype of the model."""
    wide_RD = instructed_RD.float()
    wide_RD = wide_RD + alpha * (wide_RD - alone_RD.float())
    return wide_RD.to(instructed_RD.dtype)


# Scoring


class Job(NamedTuple):
    """Responses to score under one prompt."""

    name: str
    contexts: Contexts
    responses: Sequence[Ids]


def score_stream(
    system: Loaded, jobs: Sequence[Job], alpha: float, label: str = "scoring"
) -> Iterator[tuple[int, Scored]]:
    """(index of the job, log-probs and tokens of its responses), as they are made.

    Raises InputError for a job that does not fit the model's window.
    """
    for job in jobs:
        for context in job.contexts:
            check_fits(system, job.name, context, job.responses)
    instructed = [_encoded(job, job.contexts.instructed) for job in jobs]
    alone = [_encoded(job, job.contexts.alone) for job in jobs]
    budget = system.batch_tokens
    if system.model.head_weight_VD.device.type == "cpu":
        budget = min(budget, CPU_TOKENS)
    for group in by_prefix(instructed, budget):
        logps, tokens = _scores(system, instructed, alone, group, alpha)

        # The sequences of the batch, dealt back to their jobs.
        start = 0
        for index in group:
            own = slice(start, start + len(jobs[index].responses))
            scored = Scored(logps[own], tokens[own], None)
            check_numbers(label, jobs[index].name, scored)
            yield index, scored
            start = own.stop


@torch.no_grad()
def _scores(
    system: Loaded,
    instructed: Sequence[Encoded],
    alone: Sequence[Encoded],
    group: Sequence[int],
    alpha: float,
) -> tuple[list[float], list[int]]:
    """(log-probs, tokens) of every response of a group, in order."""
    device = system.model.head_weight_VD.device
    first = pack([instructed[index] for index in group]).to(device)
    second = pack([alone[index] for index in group]).to(device)
    first_RD = hidden(system.model, first)[first.rows_R]
    second_RD = hidden(system.model, second)[second.rows_R]
    head = linear_logp_kl(
        mixed(first_RD, second_RD, alpha),
        system.model.head_weight_VD.to(system.model.dtype),
        rows_R=torch.arange(len(first_RD), device=device),
        targets_R=first.targets_R,
        segments_R=first.segments_R,
        num_segments=first.num_sequences,
    )
    tokens_S = torch.bincount(first.segments_R, minlength=first.num_sequences)
    return head.logp_S.tolist(), tokens_S.tolist()


def _encoded(job: Job, context: Ids) -> Encoded:
    responses = tuple(map(tuple, job.responses))
    return Encoded(job.name, tuple(context), responses, (0.0,) * len(responses))


# Answers


@torch.no_grad()
def generate(
    system: Loaded,
    contexts: Sequence[Contexts],
    sampling: Sampling,
    seeds: Sequence[int],
    alpha: float,
) -> list[list[int]]:
    """Continue each prompt; the stop token is not in the result. Both contexts of a prompt go on
    with the same tokens."""
    model = system.model
    caches, hidden_ND, lengths_N = [], [], []
    for side in zip(*contexts):
        longest = max(map(len, side)) + sampling.max_new_tokens
        caches.append(Cache(model, len(contexts), longest))
        hidden_ND.append(prefill(model, caches[-1], [list(ids) for ids in side]))
        lengths_N.append(
            torch.tensor([len(ids) for ids in side], device=model.head_weight_VD.device)
        )

    head_VD = model.head_weight_VD.to(model.dtype)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    stops = set(ends(system))
    answers = [[] for _ in contexts]
    going_on = set(range(len(contexts)))
    for step in range(sampling.max_new_tokens):
        logits_NV = F.linear(mixed(*hidden_ND, alpha), head_VD)
        tokens_N = choose(logits_NV, sampling.temperature, sampling.top_p, generators)
        for row, token in enumerate(tokens_N.tolist()):
            if token in stops:
                going_on.discard(row)
            elif row in going_on:
                answers[row].append(token)
        if not going_on or step == sampling.max_new_tokens - 1:
            break
        for side, (cache, length_N) in enumerate(zip(caches, lengths_N)):
            attend = decode_attention(cache, length_N)
            hidden_ND[side] = model.forward_hidden(tokens_N, length_N, attend)
            lengths_N[side] = length_N + 1
    return answers


def check_room(system: Loaded, name: str, contexts: Contexts, new_tokens: int) -> None:
    """InputError for a prompt behind which there is no room for an answer."""
    if len(contexts.instructed) > system.window - new_tokens:
        raise InputError(
            f"{name}: {len(contexts.instructed)} tokens and {new_tokens} new ones; the model's "
            f"window is {system.window}"
        )


# Questions in, answers out


def log_probs(
    system: Loaded, questions: Sequence[Question], label: str, alpha: float
) -> Iterator[Answered]:
    """logp and tokens of every question, a document's worth at a time."""
    parts = documents(questions)
    jobs = []
    for part in parts:
        contexts = contexts_of(system, part[0].prompt, part[0].instruction)
        responses = [response_ids(system, question.response) for question in part]
        jobs.append(Job(str(part[0]), contexts, responses))
    for index, scored in score_stream(system, jobs, alpha, label):
        lines = [
            {"logp": logp, "tokens": tokens} for logp, tokens in zip(scored.logps, scored.tokens)
        ]
        yield list(zip(parts[index], lines, strict=True))


def generated(
    system: Loaded, questions: Sequence[Question], missing: Collection[Question], alpha: float
) -> Iterator[Answered]:
    """The answers to the `missing` ones of `questions`, a batch at a time."""
    missing = set(missing)
    for batch in batches(questions):
        if not missing & set(batch):
            continue
        sampling = batch[0].sampling
        contexts = [contexts_of(system, one.prompt, one.instruction) for one in batch]
        for question, pair in zip(batch, contexts):
            check_room(system, str(question), pair, sampling.max_new_tokens)
        seeds = [seed_of(question) for question in batch]
        answers = generate(system, contexts, sampling, seeds, alpha)
        settings = sampling.settings() | {"stop_ids": ends(system)}
        lines = []
        for question, ids in zip(batch, answers, strict=True):
            line = {
                "p": question.prompt,
                "i": question.instruction,
                "r": system.tokenizer.decode(ids),
                "tokens": len(ids),
                "truncated": len(ids) == sampling.max_new_tokens,
                "settings": settings,
            }
            lines.append((question, line))
        yield [(question, line) for question, line in lines if question in missing]
