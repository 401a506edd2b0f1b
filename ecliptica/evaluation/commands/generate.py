"""Responses to given prompts: the input lines of `score` (responses not needed) in, the same lines
with "text" out."""

from dataclasses import dataclass

from ecliptica.config import option
from ecliptica.evaluation import options
from ecliptica.files import check_writable, read_records, write_lines
from model.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Options(options.SamplingOptions, options.Options):
    data: str = option(..., "JSON lines in")
    out: str = option(..., "JSON lines out, in the same order")


def run(options: Options) -> None:
    # Only now what takes seconds to import.
    from ecliptica.evaluation.answers import respond
    from ecliptica.evaluation.given import context_of, parse
    from ecliptica.evaluation.systems import load_one

    # What can be wrong before a model is loaded: the lines, and the output.
    rendered = options.template == "none"
    given = read_records(
        options.data, lambda record, where: parse(record, where, rendered, responses=False)
    )
    check_writable(options.out, "--out")
    system = load_one(options)

    contexts = [context_of(system, line) for line in given]
    room = system.window - options.max_new_tokens
    for line, context in zip(given, contexts):
        if not 0 < len(context) <= room:
            raise InputError(
                f"{line.where}: {len(context)} tokens and {options.max_new_tokens} new ones; "
                f"the model's window is {system.window}"
            )
    texts = respond(system, contexts, options.sampling)
    write_lines(options.out, (line.record | {"text": text} for line, text in zip(given, texts)))
    print(f"{options.out}: {len(given)} responses generated")
