"""How the exact KL of two models along responses is measured: the command `kl`."""

from collections.abc import Sequence
from typing import Any

from ecliptica.data.templates import encode_pieces, end_of_turn
from ecliptica.evaluation import statistics, systems
from ecliptica.evaluation.answers import ends
from ecliptica.evaluation.given import Given, context_of, encode_response, parse
from ecliptica.evaluation.scoring import Job, Scored, score_all
from ecliptica.evaluation.systems import System
from ecliptica.files import check_writable, read_records, write_lines
from ecliptica.policy import Reference, adapter_off_reference, model_reference
from model.errors import InputError
from model.generate import generate


def measure(options: Any) -> None:
    """The whole command; options: its flags. Raises InputError."""
    # What can be wrong before a model is loaded: the lines, and the output.
    rendered = options.template == "none"
    given = read_records(
        options.data,
        lambda record, where: parse(record, where, rendered, responses=not options.answers),
    )
    check_writable(options.out, "--out")
    system = systems.load_one(options)
    reference = reference_of(system, options)

    texts: Sequence[str | None] = [None] * len(given)
    if options.answers:
        jobs, texts = answered(system, given, options.max_new_tokens)
    else:
        jobs = [along_texts(system, line) for line in given]
    if options.reference:
        check_same_tokens(system, options.reference, jobs)
    scored = score_all(system, jobs, "kl", reference)
    write_lines(options.out, map(line_of, scored, texts))
    print(summary(options.out, scored))


def reference_of(system: System, options: Any) -> Reference:
    """What the KL is taken to."""
    if options.reference is None:
        return adapter_off_reference(system.model)
    other = systems.load_one(options, model=options.reference, adapter=None)
    own_size = system.model.config.vocab_size
    size = other.model.config.vocab_size
    if size != own_size:
        raise InputError(
            f"--reference {options.reference}: {size} tokens, {options.model} has {own_size}; "
            "a KL needs two models of one vocabulary"
        )
    return model_reference(other.model)


def check_same_tokens(system: System, reference: str, jobs: Sequence[Job]) -> None:
    """InputError for a reference whose tokenizer calls a token that occurs by another name."""
    other = systems.load_tokenizer(reference)
    used = {token for job in jobs for ids in (job.context, *job.responses) for token in ids}
    for token in sorted(used):
        own_text = system.tokenizer.token(token)
        if other.token(token) != own_text:
            raise InputError(
                f"--reference {reference}: its token {token} is {other.token(token)!r}, of --model "
                f"{own_text!r}; a KL needs two models of one vocabulary"
            )


# Along what


def along_texts(system: System, line: Given) -> Job:
    """The line's own responses."""
    responses = [encode_response(system, response) for response in line.responses]
    return Job(line.where, context_of(system, line), responses)


def answered(
    system: System, given: Sequence[Given], max_new_tokens: int
) -> tuple[list[Job], list[str]]:
    """Each line's context with the policy's greedy answer, in the very tokens that it chose, and
    its end of turn where it came to one; and the texts."""
    jobs = []
    texts = []
    for line in given:
        context = context_of(system, line)
        if len(context) + max_new_tokens > system.window:
            raise InputError(
                f"{line.where}: {len(context)} tokens and {max_new_tokens} new ones; the model's "
                f"window is {system.window}"
            )
        ids = generate(system.model, [context], max_new_tokens, ends(system))[0]
        texts.append(system.tokenizer.decode(ids))
        if len(ids) < max_new_tokens:
            ids = ids + end_ids(system)
        jobs.append(Job(line.where, context, [ids]))
    return jobs, texts


def end_ids(system: System) -> list[int]:
    """What closes an answer: the template's end of turn, or the model's own end."""
    if system.template is None:
        return [system.tokenizer.eos_ids[0]]
    return encode_pieces(system.tokenizer, [end_of_turn(system.template)])


# What is said of it


def line_of(scored: Scored, text: str | None) -> dict:
    line = {"kl": scored.kls, "tokens": scored.tokens}
    return line if text is None else line | {"text": text}


def summary(out: str, scored: Sequence[Scored]) -> str:
    """Mean a response, mean a token with its interval: lines are resampled."""
    nats = [sum(line.kls) for line in scored]
    tokens = [sum(line.tokens) for line in scored]
    per_token = statistics.ratio(nats, tokens, statistics.draws(len(scored)))
    responses = sum(len(line.kls) for line in scored)
    return (
        f"{out}: {responses} responses, {sum(tokens)} tokens; exact KL "
        f"{sum(nats) / responses:.4f} nats a response, {per_token['value']:.6f} a token "
        f"[{per_token['low']:.6f}, {per_token['high']:.6f}]"
    )
