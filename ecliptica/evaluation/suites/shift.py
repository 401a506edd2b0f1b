"""How far does an instruction move the whole next-token distribution, against how far a mere rewording does?

For each prompt, --pairs random pairs of instructions (a, b): JSD along y_a and y_b between their contexts; and between two wordings of a along y_a,
two wordings of b along y_b. See metrics/distribution_shift.py.
"""

import hashlib
import itertools
import json

import numpy as np
import torch

from ecliptica.data.packing import pack
from ecliptica.evaluation import compare
from ecliptica.evaluation.cells import Measures
from ecliptica.evaluation.metrics import distribution_shift
from ecliptica.evaluation.scoring import check_fits, context_ids, response_ids
from ecliptica.evaluation.suites.switch import add_bank_arguments, measured
from ecliptica.policy import hidden
from ecliptica.schema import Encoded
from model.errors import InputError

ROWS = 128  # of logits at a time
METRICS = {
    "instructions": ("JSD between instructions (nats a token)", None),
    "wordings": ("JSD between wordings (nats a token)", None),
}


def add_arguments(parser):
    compare.add_arguments(parser)
    add_bank_arguments(parser)
    parser.add_argument(
        "--pairs", type=compare.count, default=3, help="pairs of instructions a prompt"
    )
    parser.add_argument("--seed", type=int, default=0, help="which pairs")


def run(args):
    _, entries, instructions = measured(args)
    if min(map(len, instructions.values())) < 2:
        raise InputError(
            f"{args.instructions}: an instruction has one wording; the shift is measured against that between two of each"
        )
    wording = compare.wordings(args, instructions)
    asked = [
        questions(entry, instructions, wording, args.pairs, (args.seed, number))
        for number, entry in enumerate(entries)
    ]
    found, subjects = {}, compare.subjects(args)
    for subject in subjects:
        with subject.switched() as system:
            kept = Measures(compare.samples_path(args), subject.key, subject.label, "jsd", system)
            kept.ask(
                {
                    digest(*question): (names, question)
                    for by_name in asked
                    for of in by_name.values()
                    for names, question in of
                },
                lambda question: measure(system, *question),
            )
        found[subject.label] = {
            name: [
                compare.mean([kept[digest(*question)] for _, question in by_name[name]])
                for by_name in asked
            ]
            for name in METRICS
        }
    ratio = {
        "ratio": (
            "distribution shift: instructions over wordings",
            1.0,
            np.divide,
            {
                label: [values["instructions"], values["wordings"]]
                for label, values in found.items()
            },
        )
    }
    notes = [
        f"\n{label}: between instructions {distribution_shift.share(compare.mean(values['instructions'])):.4f} of ln 2, the most there can be; "
        f"between wordings {distribution_shift.share(compare.mean(values['wordings'])):.4f}."
        for label, values in found.items()
    ]
    compare.write(
        args,
        compare.report(
            "shift",
            args,
            METRICS,
            found,
            len(entries),
            derived=ratio,
            headline="ratio",
            notes=notes,
            made=compare.made(subjects, args),
        ),
    )


def questions(entry, instructions, wording, pairs, seed):
    """{metric: [(names, (prompt, first text, second text, response))]} of one prompt: distinct pairs of instructions, as many as asked for or all."""
    possible, found = list(itertools.combinations(wording, 2)), {name: [] for name in METRICS}
    for index in np.random.default_rng(seed).permutation(len(possible))[:pairs]:
        a, b = possible[index]
        for k in (a, b):
            other = next(text for text in instructions[k] if text != wording[k])
            for name, texts in (
                ("instructions", (wording[a], wording[b])),
                ("wordings", (wording[k], other)),
            ):
                found[name].append(
                    (
                        {
                            "prompt": entry.id,
                            "between": f"{a}, {b}" if name == "instructions" else k,
                            "response": k,
                        },
                        (entry.prompt, *texts, entry.responses[k]),
                    )
                )
    return found


def digest(*texts):
    return hashlib.sha256(json.dumps(["jsd", *texts]).encode()).hexdigest()[:24]


def measure(system, prompt, first, second, response):
    """jsd between two instructions, given as texts."""
    contexts, answer = (
        [context_ids(system, prompt, text) for text in (first, second)],
        response_ids(system, response),
    )
    for context in contexts:
        check_fits(system, repr(prompt), context, [answer])
    return jsd(system, contexts, answer)


@torch.no_grad()
def jsd(system, contexts, response):
    """Mean over the response's positions of the JSD between the distributions under two contexts, nats. Logits in float32, ROWS positions at a time."""
    batch = pack(
        [Encoded("", tuple(context), (tuple(response),), (0.0,)) for context in contexts]
    ).to(system.model.head_weight_VD.device)
    rows_RD, head_VD = (
        hidden(system.model, batch)[batch.rows_R].float(),
        system.model.head_weight_VD.to(system.model.dtype).float(),
    )
    first_RD, second_RD = rows_RD.split(len(response))
    parts = [
        distribution_shift.token_jsd(a @ head_VD.T, b @ head_VD.T)
        for a, b in zip(first_RD.split(ROWS), second_RD.split(ROWS))
    ]
    return float(torch.cat(parts).mean())
