"""Answers of a model: texts, generated.

An answer depends on its question alone: greedy, or with a seed made from the question's digest;
and always in the batch of its group, whatever else is asked or known already, since the last bits
of a float sum, and with them a near tie between two tokens, depend on the shape of a batch. A
group is one prompt in one wording under all of its instructions.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence

from tqdm import tqdm

from ecliptica.data.templates import stop_ids
from ecliptica.evaluation.questions import Answered, Question, Sampling
from ecliptica.evaluation.scoring import Loaded, context_ids
from model.errors import InputError
from model.generate import generate

BATCH = 16  # rows at most; a constant, so that no option changes a text
GROUP = ("condition", "prompt", "wording")  # names that the questions of one group share


def ends(system: Loaded) -> list[int]:
    """The tokens that end an answer."""
    return sorted(stop_ids(system.template, system.tokenizer))


def seed_of(question: Question) -> int:
    """A seed of the question's own, 60 bits."""
    text = f"{question.sampling.seed} {question.digest}"
    return int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)


def generated(
    system: Loaded, questions: Sequence[Question], missing: Collection[Question], label: str
) -> Iterator[Answered]:
    """The answers to the `missing` ones of `questions`, a batch at a time.

    Raises InputError, before the first forward, for a question that does not fit the window.
    """
    missing = set(missing)
    wanted = [batch for batch in batches(questions) if missing & set(batch)]
    contexts = [[_fitting(system, question) for question in batch] for batch in wanted]
    known = len(questions) - len(missing)
    with tqdm(
        total=len(questions), initial=known, desc=label, unit="answer", leave=False, disable=None
    ) as bar:
        for batch, ids in zip(wanted, contexts):
            lines = _lines(system, batch, ids)
            new = [(question, line) for question, line in lines if question in missing]
            yield new
            bar.update(len(new))


def batches(questions: Sequence[Question]) -> list[list[Question]]:
    """The questions of one group together, at most BATCH."""
    groups = {}
    for question in questions:
        group = tuple(question.names[name] for name in GROUP)
        groups.setdefault(group, []).append(question)
    cut = []
    for group in groups.values():
        cut += [group[start : start + BATCH] for start in range(0, len(group), BATCH)]
    return cut


def _fitting(system: Loaded, question: Question) -> list[int]:
    """The ids of the question's context, if there is room for an answer behind it."""
    ids = context_ids(system, question.prompt, question.instruction)
    room = question.sampling.max_new_tokens
    if len(ids) > system.window - room:
        raise InputError(
            f"{question}: {len(ids)} tokens and {room} new ones; "
            f"the model's window is {system.window}"
        )
    return ids


def _lines(system: Loaded, batch: list[Question], contexts: list[list[int]]) -> Answered:
    """What the ledger keeps of a batch. truncated: no stop token among max_new_tokens."""
    sampling = batch[0].sampling
    stops = ends(system)
    answers = generate(
        system.model,
        contexts,
        sampling.max_new_tokens,
        stops,
        sampling.temperature,
        sampling.top_p,
        seeds=[seed_of(question) for question in batch],
    )
    settings = sampling.settings() | {"stop_ids": stops}
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
    return lines


# Texts for contexts that stand in no grid


def respond(system: Loaded, contexts: Sequence[Sequence[int]], sampling: Sampling) -> list[str]:
    """Texts for the contexts, in their order; similar lengths share a batch. Context n samples
    with seed + n whatever its batch."""
    texts = [""] * len(contexts)
    batches = by_length(contexts, sampling.max_new_tokens, system.batch_tokens)
    for batch in tqdm(batches, unit="batch", desc="generating", leave=False, disable=None):
        answers = generate(
            system.model,
            [contexts[number] for number in batch],
            sampling.max_new_tokens,
            ends(system),
            sampling.temperature,
            sampling.top_p,
            seeds=[sampling.seed + number for number in batch],
        )
        for number, ids in zip(batch, answers):
            texts[number] = system.tokenizer.decode(ids)
    return texts


def by_length(contexts: Sequence[Sequence[int]], new_tokens: int, budget: int) -> list[list[int]]:
    """Numbers of contexts, shortest first, in batches that fill at most `budget` tokens of cache
    (a longer single one goes alone)."""
    batches = []
    for number in sorted(range(len(contexts)), key=lambda number: len(contexts[number])):
        row = len(contexts[number]) + new_tokens
        if not batches or (len(batches[-1]) + 1) * row > budget:
            batches.append([])
        batches[-1].append(number)
    return batches
