"""Answers of a model: texts, generated.

An answer depends on its question alone: greedy, or with a seed made from the question's digest;
and always in the batch of its group, whatever else is asked or known already, since the last bits
of a float sum, and with them a near tie between two tokens, depend on the shape of a batch. A
group is one prompt in one wording under all of its instructions.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from ecliptica.config import Rule, not_negative, option, positive, seed
from ecliptica.data.templates import stop_ids
from ecliptica.evaluation.questions import Question, Sampling
from ecliptica.evaluation.scoring import Answered, Loaded, context_ids
from model.errors import InputError
from model.generate import generate

BATCH = 16  # rows at most; a constant, so that no option changes a text
A_MASS = Rule("a share above 0, up to 1", lambda value: 0 < value <= 1)
GROUP = ("condition", "prompt", "wording")  # names that the questions of one group share


@dataclass(frozen=True)
class SamplingOptions:
    """The options of whatever generates."""

    max_new_tokens: int = positive(128, "tokens of an answer at most")
    temperature: float = not_negative(0.0, "0: greedy")
    top_p: float = option(1.0, "sample from the likeliest tokens of this probability", A_MASS)
    seed: int = seed(0, "of the sampling")

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.max_new_tokens, self.temperature, self.top_p, self.seed)


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
