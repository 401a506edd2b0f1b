"""Responses to given prompts: the input lines of `score` (responses not needed) in, the same lines
with "text" out."""

from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from ecliptica.config import option
from ecliptica.evaluation import systems
from ecliptica.evaluation.answers import SamplingOptions, ends
from ecliptica.evaluation.given import Given, context_of, parse
from ecliptica.evaluation.questions import Sampling
from ecliptica.evaluation.scoring import Loaded
from ecliptica.files import check_writable, read_records, write_lines
from model.errors import InputError
from model.generate import generate


@dataclass(frozen=True, kw_only=True)
class Options(SamplingOptions, systems.Options):
    data: str = option(..., "JSON lines in")
    out: str = option(..., "JSON lines out, in the same order")


def run(options: Options) -> None:
    # What can be wrong before a model is loaded: the lines, and the output.
    rendered = options.template == "none"
    given = read_records(
        options.data, lambda record, where: parse(record, where, rendered, responses=False)
    )
    check_writable(options.out, "--out")
    system = systems.load_one(options)

    contexts = [context_of(system, line) for line in given]
    for line, context in zip(given, contexts):
        check_room(system, line, context, options.max_new_tokens)
    texts = respond(system, contexts, options.sampling)
    write_lines(options.out, (line.record | {"text": text} for line, text in zip(given, texts)))
    print(f"{options.out}: {len(given)} responses generated")


def check_room(system: Loaded, line: Given, context: Sequence[int], new_tokens: int) -> None:
    """Raises InputError for a context that leaves the model's window no room for a response."""
    if not 0 < len(context) <= system.window - new_tokens:
        raise InputError(
            f"{line.where}: {len(context)} tokens and {new_tokens} new ones; "
            f"the model's window is {system.window}"
        )


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
