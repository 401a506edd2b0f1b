"""Is the language model still one? Perplexity of held-out neutral texts under a neutral instruction, and the exact KL to the base model there.

Perplexity: exp of nats over tokens, over all texts; KL[trained || base] a token over the whole vocabulary, 0 of the base model itself. The base
model is what they are compared with; there is no chance level.
"""

import numpy as np

from ecliptica.evaluation import compare
from ecliptica.evaluation.cells import Cell, Measures
from ecliptica.evaluation.policies import add_wording
from ecliptica.evaluation.scoring import context_ids, response_ids, score_all
from ecliptica.isd.bank import INSTRUCTIONS, load_instructions
from ecliptica.isd.sets import SETS, load_capability
from ecliptica.policy import adapter_off_reference, model_reference
from model.errors import InputError

PROMPT, NEUTRAL = "Write a short passage of plain prose.", "neutral"


def add_arguments(parser):
    compare.add_arguments(parser)
    parser.add_argument(
        "--data", default=SETS / "capability.jsonl", help="JSON lines: id, kind, text"
    )
    add_wording(parser)


def run(args):
    items, texts = (
        compare.limited(load_capability(args.data), args, key=lambda item: None),
        load_instructions(INSTRUCTIONS)[NEUTRAL],
    )
    if not 1 <= args.wording <= len(texts):
        raise InputError(
            f"--wording {args.wording}: the instruction {NEUTRAL} has {len(texts)} wordings"
        )
    cells = [
        Cell(
            texts[args.wording - 1], PROMPT, item.text, {"prompt": item.id, "instruction": NEUTRAL}
        )
        for item in items
    ]
    found, totals, subjects = {}, {}, compare.subjects(args)
    for subject in subjects:
        scores = compare.scored(subject, args, cells)
        tokens, kls = (
            [scores.tokens(cell) for cell in cells],
            kl_sums(subject, subjects[0], args, cells),
        )
        totals[subject.label] = {
            "nats": [-scores[cell] for cell in cells],
            "kl": kls,
            "tokens": tokens,
        }
        found[subject.label] = {
            "nats": [-scores[cell] / count for cell, count in zip(cells, tokens)]
        }

    def over_tokens(name):
        return {label: [of[name], of["tokens"]] for label, of in totals.items()}

    derived = {
        "perplexity": (
            "perplexity of held-out text",
            None,
            lambda nats, tokens: np.exp(nats / tokens),
            over_tokens("nats"),
        )
    }
    if len(subjects) > 1:
        derived["kl"] = ("KL to the base model (nats a token)", 0.0, np.divide, over_tokens("kl"))
    compare.write(
        args,
        compare.report(
            "capability",
            args,
            {"nats": ("negative log-prob (nats a token, mean of texts)", None)},
            found,
            len(items),
            "texts",
            derived=derived,
            headline="perplexity",
            perplexity={
                label: float(np.exp(sum(of["nats"]) / sum(of["tokens"])))
                for label, of in totals.items()
            },
            made=compare.made(subjects, args),
        ),
    )


def kl_sums(subject, control, args, cells):
    """Exact KL[subject || control] summed over each text's tokens; 0 for the control. Kept in samples.jsonl like the scores."""
    if subject is control:
        return [0.0] * len(cells)
    with subject.switched() as system:
        kept = Measures(compare.samples_path(args), subject.key, subject.label, "kl", system)
        reference = system and (
            model_reference(control.system.model)
            if args.base and not args.adapter
            else adapter_off_reference(system.model)
        )

        def measure(cell):
            ((_, _, kls),) = score_all(
                system,
                [
                    (
                        cell.names["prompt"],
                        context_ids(system, cell.prompt, cell.instruction),
                        [response_ids(system, cell.response)],
                    )
                ],
                "kl",
                reference,
            )
            return kls[0]

        kept.ask({f"{cell.digest}/{control.key}": (cell.names, cell) for cell in cells}, measure)
    return [kept[f"{cell.digest}/{control.key}"] for cell in cells]
