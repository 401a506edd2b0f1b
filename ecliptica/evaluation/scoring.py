"""Log-probs of many responses under many contexts, the packed way: a tree of prefixes. What the
contexts of a batch begin with, template and instruction, is computed once for all of them; a
context once for all of its responses; then come the responses."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from tqdm import tqdm

from ecliptica.data.packing import by_prefix, pack
from ecliptica.data.templates import Template, encode_pieces, render_context, response_pieces
from ecliptica.evaluation.questions import Answered, Question
from ecliptica.policy import score
from ecliptica.schema import Encoded
from model.errors import InputError
from model.llama import Llama
from model.tokenizer import Tokenizer

RESPONSES_PER_DOCUMENT = 32  # a context is repeated for more: bounds memory and what a kill loses
CPU_TOKENS = 1024  # of a forward on a CPU: more leave its caches, a fifth slower at 4096


class Loaded(Protocol):
    """What scoring reads of a system (systems.System)."""

    model: Llama
    tokenizer: Tokenizer
    template: Template | None
    batch_tokens: int
    window: int


class Job(NamedTuple):
    """One document to score: a context and its responses, as token ids."""

    name: str
    context: Sequence[int]
    responses: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Scored:
    """Of each response of a job: log-prob (float32 nats), tokens, KL (None without a reference)."""

    logps: list[float]
    tokens: list[int]
    kls: list[float] | None


def context_ids(
    system: Loaded,
    prompt: str,
    instruction: str | None = None,
    turns: Sequence[tuple[str, str]] = (),
) -> list[int]:
    """turns: earlier (user, assistant) texts."""
    pieces = render_context(system.template, prompt, instruction, turns)
    return encode_pieces(system.tokenizer, pieces)


def response_ids(system: Loaded, response: str) -> list[int]:
    """With the end-of-turn token: it is part of a response."""
    return encode_pieces(system.tokenizer, response_pieces(system.template, response))


# Questions in, answers out


def log_probs(system: Loaded, questions: Sequence[Question], label: str) -> Iterator[Answered]:
    """logp and tokens of every question, a document's worth at a time."""
    parts = documents(questions)
    jobs = [job_of(system, part) for part in parts]
    for index, scored in score_stream(system, jobs, label):
        lines = [
            {"logp": logp, "tokens": tokens} for logp, tokens in zip(scored.logps, scored.tokens)
        ]
        yield list(zip(parts[index], lines, strict=True))


def documents(questions: Sequence[Question]) -> list[list[Question]]:
    """The questions of one context together, at most RESPONSES_PER_DOCUMENT: each is one packed
    document."""
    by_context = {}
    for question in questions:
        context = question.instruction, question.prompt, question.turns
        by_context.setdefault(context, []).append(question)
    parts = []
    for same_context in by_context.values():
        for start in range(0, len(same_context), RESPONSES_PER_DOCUMENT):
            parts.append(same_context[start : start + RESPONSES_PER_DOCUMENT])
    return parts


def job_of(system: Loaded, questions: Sequence[Question]) -> Job:
    """The job of questions that have one context."""
    first = questions[0]
    context = context_ids(system, first.prompt, first.instruction, first.turns)
    responses = [response_ids(system, question.response) for question in questions]
    return Job(str(first), context, responses)


# Jobs in, numbers out


def score_all(system: Loaded, jobs: Sequence[Job], label="scoring", reference=None) -> list[Scored]:
    """Of each job, in the order of `jobs`."""
    by_index = dict(score_stream(system, jobs, label, reference))
    return [by_index[index] for index in range(len(jobs))]


def score_stream(
    system: Loaded, jobs: Sequence[Job], label: str = "scoring", reference=None
) -> Iterator[tuple[int, Scored]]:
    """(index of the job, its numbers) as they are made, a batch of similar contexts at a time.

    Log-probs are float32 sums over the response's tokens. Raises InputError, before the first
    forward, for a job that does not fit the model's window; and for a number that is none.
    """
    for job in jobs:
        check_fits(system, *job)
    examples = [_encoded(*job) for job in jobs]
    device = system.model.head_weight_VD.device
    budget = system.batch_tokens
    if device.type == "cpu":
        budget = min(budget, CPU_TOKENS)

    total = sum(example.tokens for example in examples)
    with tqdm(
        total=total, unit="tok", unit_scale=True, desc=label, leave=False, disable=None
    ) as bar:
        for group in by_prefix(examples, budget):
            batch = pack([examples[index] for index in group]).to(device)
            # Here and not outside: a generator's body may be resumed with gradients on.
            with torch.no_grad():
                stats = score(system.model, batch, reference, grad=False)
            logps = stats.logp_S.tolist()
            tokens = stats.tokens_S.tolist()
            kls = None if stats.kl_S is None else stats.kl_S.tolist()

            # The sequences of the batch, dealt back to their jobs.
            start = 0
            for index in group:
                own = slice(start, start + len(examples[index].responses))
                scored = Scored(logps[own], tokens[own], kls and kls[own])
                check_numbers(label, examples[index].id, scored)
                yield index, scored
                start = own.stop
            bar.update(sum(examples[index].tokens for index in group))


def _encoded(name: str, context: Sequence[int], responses: Sequence[Sequence[int]]) -> Encoded:
    branches = tuple(tuple(response) for response in responses)
    return Encoded(name, tuple(context), branches, (0.0,) * len(branches))


def check_fits(
    system: Loaded, name: str, context: Sequence[int], responses: Sequence[Sequence[int]]
) -> None:
    """InputError for a context that is empty, or too long for the window with its longest
    response."""
    longest = len(context) + max(map(len, responses))
    if longest > system.window:
        raise InputError(
            f"{name}: {longest} tokens (context {len(context)}); the model's window is "
            f"{system.window}: shorten it"
        )
    if not context:
        raise InputError(
            f"{name}: the context is empty; the first token of a response needs one to be "
            "predicted from"
        )


def check_numbers(label: str, name: str, scored: Scored) -> None:
    """InputError for a NaN or an infinity: it is no score, and must not count as a wrong one."""
    for what, values in (("log-prob", scored.logps), ("KL", scored.kls or [])):
        for value in values:
            check_finite(value, f"{label}: {name}: {what}")


def check_finite(value: float, what: str) -> None:
    """InputError for a number that a model should not have made."""
    if not math.isfinite(value):
        raise InputError(
            f"{what} is {value}: the model's numbers overflowed, in its weights or on the way; "
            "nothing is measured on such a model: try --dtype float32 or another checkpoint"
        )
