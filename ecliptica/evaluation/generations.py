"""Answers of a model, each generated once and kept in an append-only file, a line an answer: what cells.py is to scores.

Killed at any point and started again, a run makes what is not there and nothing else. A line is found again by its key (system and
generation settings) and its cell (condition, ids, texts). An answer depends on its cell: greedy, or with a seed made from the cell; and
always in the batch of its group, whatever else is asked for or there already, since the last bits of a float sum, and with them a near
tie between two tokens, depend on the shape of a batch.
"""

import hashlib
import json

from tqdm import tqdm

from ecliptica.data.templates import stop_ids
from ecliptica.evaluation.scoring import context_ids
from ecliptica.files import append_lines, journal
from model.errors import InputError
from model.generate import generate

BATCH = 16  # rows at most; a constant, so that no option changes a text
TEXTS = (
    "condition",
    "prompt",
    "instruction",
    "wording",
    "p",
    "i",
)  # of a cell: three names, the wording's number, prompt and instruction text (None: none)


def add_sampling(parser, max_new_tokens=128):
    parser.add_argument("--max-new-tokens", type=int, default=max_new_tokens)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)


def check_sampling(args):
    if args.max_new_tokens < 1 or args.temperature < 0 or not 0 < args.top_p <= 1:
        raise InputError("expected --max-new-tokens >= 1, --temperature >= 0 and 0 < --top-p <= 1")


def settings(args):
    """What a text depends on besides system and cell. Greedy decoding has neither top-p nor seed."""
    sampling = (
        {"temperature": args.temperature, "top_p": args.top_p, "seed": args.seed}
        if args.temperature
        else {"temperature": 0}
    )
    return {"max_new_tokens": args.max_new_tokens} | sampling


def key_of(subject, args):
    return hashlib.sha256(json.dumps([subject.key, settings(args)]).encode()).hexdigest()[:16]


def digest(cell):
    return hashlib.sha256(json.dumps([cell[name] for name in TEXTS]).encode()).hexdigest()[:24]


def seed_of(cell_digest, seed):
    return int(hashlib.sha256(f"{seed} {cell_digest}".encode()).hexdigest()[:15], 16)


def generated(subject, groups, args, path):
    """[line] of a subject, in the order of the cells of `groups`: from the file where they are there, else made and appended.

    groups: [[cell]], a cell a dictionary of TEXTS. A group is generated together; it must not depend on what else is asked for. subject.system
    None: from the file alone, under the key that is there. Raises InputError, before the first forward, for a cell that does not fit the window.
    """
    key = key_of(subject, args) if subject.system else subject.key
    known = {line["cell"]: line for line in journal(path) if line.get("key") == key and "r" in line}
    cells = [(digest(cell), cell) for group in groups for cell in group]
    missing = [(at, cell) for at, cell in cells if at not in known]
    if missing and subject.system is None:
        cell = missing[0][1]
        raise InputError(
            f"{path}: has no answer of {subject.label} for {cell['prompt']}/{cell['instruction']} (and {len(missing) - 1} more); "
            "it was made with other settings or not finished: run without --rescore"
        )
    if missing:
        batches = [group[at : at + BATCH] for group in groups for at in range(0, len(group), BATCH)]
        batches = [batch for batch in batches if any(digest(cell) not in known for cell in batch)]
        contexts = [[fitting(subject.system, cell, args) for cell in batch] for batch in batches]
        with subject.switched() as system:
            with tqdm(
                total=len(cells),
                initial=len(cells) - len(missing),
                desc=subject.label,
                unit="answer",
                leave=False,
                disable=None,
            ) as bar:
                for batch, context in zip(batches, contexts):
                    new = [
                        line
                        for line in answered(subject, system, batch, context, args, key)
                        if line["cell"] not in known
                    ]
                    append_lines(path, new)
                    known |= {line["cell"]: line for line in new}
                    bar.update(len(new))
    return [known[at] | {"system": subject.label} for at, _ in cells]


def fitting(system, cell, args):
    ids = context_ids(system, cell["p"], cell["i"])
    if len(ids) > system.window - args.max_new_tokens:
        raise InputError(
            f"{cell['prompt']}/{cell['instruction']}: {len(ids)} tokens and {args.max_new_tokens} new ones; the model's window is {system.window}"
        )
    return ids


def answered(subject, system, batch, contexts, args, key):
    """The lines of a batch. truncated: no stop token among max_new_tokens."""
    digests = [digest(cell) for cell in batch]
    made = generate(
        system.model,
        contexts,
        args.max_new_tokens,
        stop_ids(system.template, system.tokenizer),
        args.temperature,
        args.top_p,
        seeds=[seed_of(at, args.seed) for at in digests],
    )
    stamp = {"ablation": True} if subject.adapters and system.made.get("ablation") else {}
    return [
        {
            "system": subject.label,
            "key": key,
            "cell": at,
            **cell,
            "r": system.tokenizer.decode(ids),
            "tokens": len(ids),
            "truncated": len(ids) == args.max_new_tokens,
            "settings": settings(args),
            **stamp,
        }
        for at, cell, ids in zip(digests, batch, made)
    ]
