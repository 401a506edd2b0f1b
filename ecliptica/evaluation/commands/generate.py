"""Responses to given prompts: the input lines of `score` (responses not needed) in, the same lines
with "text" out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ecliptica.config import option
from ecliptica.evaluation import options
from ecliptica.files import check_writable, read_records, write_lines


@dataclass(frozen=True, kw_only=True)
class Options(options.SamplingOptions, options.ContrastOptions, options.Options):
    data: str = option(..., "JSON lines in")
    out: str = option(..., "JSON lines out, in the same order")


def run(options: Options) -> None:
    # Only now what takes seconds to import.
    from ecliptica.evaluation.given import parse
    from ecliptica.evaluation.systems import load_one

    # What can be wrong before a model is loaded: the lines, and the output.
    rendered = options.template == "none"
    given = read_records(
        options.data, lambda record, where: parse(record, where, rendered, responses=False)
    )
    check_writable(options.out, "--out")
    system = load_one(options)

    if options.contrast:
        texts = contrasted(system, given, options)
    else:
        texts = plain(system, given, options)
    write_lines(options.out, (line.record | {"text": text} for line, text in zip(given, texts)))
    print(f"{options.out}: {len(given)} responses generated")


def plain(system: Any, given: Sequence[Any], options: Options) -> list[str]:
    """A text for every line. Raises InputError for one that does not fit the window."""
    from ecliptica.evaluation.answers import respond
    from ecliptica.evaluation.given import check_room, context_of

    contexts = [context_of(system, line) for line in given]
    for line, context in zip(given, contexts):
        check_room(system, line, context, options.max_new_tokens)
    return respond(system, contexts, options.sampling)


def contrasted(system: Any, given: Sequence[Any], options: Options) -> list[str]:
    """The same by contrastive decoding; line n samples with seed + n."""
    from ecliptica.evaluation import contrast
    from ecliptica.evaluation.answers import by_length

    sampling = options.sampling
    contexts = []
    for line in given:
        contexts.append(contrast.contexts_of(system, line.prompt, line.instruction))
        contrast.check_room(system, line.where, contexts[-1], sampling.max_new_tokens)
    texts = [""] * len(contexts)
    instructed = [pair.instructed for pair in contexts]
    for batch in by_length(instructed, sampling.max_new_tokens, system.batch_tokens // 2):
        answers = contrast.generate(
            system,
            [contexts[number] for number in batch],
            sampling,
            [sampling.seed + number for number in batch],
            options.contrast,
        )
        for number, ids in zip(batch, answers):
            texts[number] = system.tokenizer.decode(ids)
    return texts
