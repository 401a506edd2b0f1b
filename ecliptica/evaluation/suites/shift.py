"""How far does an instruction move the whole next-token distribution, against how far a mere rewording does?

For each prompt, --pairs random pairs of instructions (a, b): JSD along y_a and y_b between their contexts, and along y_a between two wordings
of a. See metrics/distribution_shift.py.
"""

import json

import numpy as np
import torch
from tqdm import tqdm

from ecliptica.data.packing import pack
from ecliptica.evaluation import compare, statistics
from ecliptica.evaluation.cells import Cell, read_lines
from ecliptica.evaluation.metrics.distribution_shift import token_jsd
from ecliptica.evaluation.scoring import context_ids, response_ids
from ecliptica.evaluation.suites.switch import add_bank_arguments, measured
from ecliptica.policy import hidden
from ecliptica.schema import Encoded
from model.errors import InputError

ROWS = 128  # of logits at a time
METRICS = {"instructions": ("JSD between instructions (nats a token)", None), "wordings": ("JSD between wordings (nats a token)", None)}


def add_arguments(parser):
    compare.add_arguments(parser)
    add_bank_arguments(parser)
    parser.add_argument("--pairs", type=int, default=3, help="pairs of instructions a prompt")


def run(args):
    _, entries, instructions = measured(args)
    if args.pairs < 1 or min(map(len, instructions.values())) < 2:
        raise InputError(f"--pairs {args.pairs}: expected >= 1, and at least two wordings of every instruction in {args.instructions}")
    wording, names = compare.wordings(args, instructions), list(instructions)
    found, ratios = {}, {}
    for subject in compare.subjects(args):
        known = {line["cell"]: line["jsd"] for line in read_lines(compare.samples_path(args)) if line.get("key") == subject.key and "jsd" in line}
        values = {name: [] for name in METRICS}
        with subject.switched() as system, open(compare.samples_path(args), "a", encoding="utf-8") as file:
            for number, entry in enumerate(tqdm(entries, desc=subject.label, leave=False, disable=None)):
                generator, drawn = np.random.default_rng(number), {name: [] for name in METRICS}
                for _ in range(args.pairs):
                    a, b = (names[i] for i in generator.choice(len(names), 2, replace=False))
                    other = next(text for text in instructions[a] if text != wording[a])
                    for name, texts, owners in (("instructions", (wording[a], wording[b]), (a, b)), ("wordings", (wording[a], other), (a,))):
                        drawn[name] += [measure(system, subject, known, file, entry, texts, owner) for owner in owners]
                for name in METRICS:
                    values[name].append(compare.mean(drawn[name]))
        found[subject.label] = values
        ratios[subject.label] = statistics.ratio(values["instructions"], values["wordings"], statistics.draws(len(entries)))
    notes = [f"\nDistribution shift, {label}: {compare.shown(r)}; null 1." for label, r in ratios.items()]
    compare.write(args, compare.report("shift", args, METRICS, found, len(entries), ratio=ratios, notes=notes))


def measure(system, subject, known, file, entry, texts, owner):
    """Mean token JSD along y_{x,owner} between two instruction texts; from the file where it is there."""
    key = Cell(" || ".join(texts), entry.prompt, entry.responses[owner]).digest
    if key not in known:
        if system is None:
            raise InputError(f"--rescore: no divergence of {subject.label} for {entry.id}; it was made with other settings or not finished")
        known[key] = jsd(system, [context_ids(system, entry.prompt, text) for text in texts], response_ids(system, entry.responses[owner]))
        file.write(json.dumps({"system": subject.label, "key": subject.key, "cell": key, "prompt": entry.id, "response": owner, "jsd": known[key]}) + "\n")
        file.flush()
    return known[key]


@torch.no_grad()
def jsd(system, contexts, response):
    """Mean over the response's positions of the JSD between the model's distributions under two contexts, nats."""
    batch = pack([Encoded("", tuple(context), (tuple(response),), (0.0,)) for context in contexts]).to(system.model.head_weight_VD.device)
    rows_RD, head_VD = hidden(system.model, batch)[batch.rows_R], system.model.head_weight_VD.to(system.model.dtype)
    first, second = rows_RD.split(len(response))
    parts = [token_jsd(a @ head_VD.T, b @ head_VD.T) for a, b in zip(first.split(ROWS), second.split(ROWS))]
    return float(torch.cat(parts).mean())
