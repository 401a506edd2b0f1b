"""Responses to given prompts: the input lines of `score` (responses not needed) in, the same lines with "text" out."""

from tqdm import tqdm

from ecliptica.data.templates import stop_ids
from ecliptica.evaluation import systems
from ecliptica.evaluation.generations import add_sampling, check_sampling
from ecliptica.evaluation.suites.score import check_out, context_of, parse, write_lines
from ecliptica.files import read_records
from model.errors import InputError
from model.generate import generate


def add_arguments(parser):
    systems.add_arguments(parser)
    parser.add_argument("--data", required=True, help="JSON lines in")
    parser.add_argument("--out", required=True, help="JSON lines out, in the same order")
    add_sampling(parser)


def run(args):
    check_sampling(args)
    rows = read_records(
        args.data,
        lambda record, where: (
            record,
            *parse(record, where, args.template == "none", responses=False),
        ),
    )
    check_out(args.out)
    system = systems.load(args)
    contexts = [context_of(system, row) for _, _, row in rows]
    for (_, where, _), context in zip(rows, contexts):
        if not 0 < len(context) <= system.window - args.max_new_tokens:
            raise InputError(
                f"{where}: {len(context)} tokens and {args.max_new_tokens} new ones; the model's window is {system.window}"
            )
    texts = respond(system, contexts, args.max_new_tokens, args.temperature, args.top_p, args.seed)
    write_lines(args.out, ({**record, "text": text} for (record, _, _), text in zip(rows, texts)))
    print(f"{args.out}: {len(rows)} responses generated")


def respond(system, contexts, max_new_tokens, temperature=0.0, top_p=1.0, seed=0):
    """Texts for the contexts, in their order; similar lengths share a batch. Context n samples with seed + n whatever its batch."""
    order = sorted(range(len(contexts)), key=lambda i: len(contexts[i]))
    batches, texts = [], [None] * len(contexts)
    for i in order:
        if (
            not batches
            or (len(batches[-1]) + 1) * (len(contexts[i]) + max_new_tokens) > system.batch_tokens
        ):
            batches.append([])
        batches[-1].append(i)
    for batch in tqdm(batches, unit="batch", desc="generating", leave=False, disable=None):
        made = generate(
            system.model,
            [contexts[i] for i in batch],
            max_new_tokens,
            stop_ids(system.template, system.tokenizer),
            temperature,
            top_p,
            seeds=[seed + i for i in batch],
        )
        for i, ids in zip(batch, made):
            texts[i] = system.tokenizer.decode(ids)
    return texts
