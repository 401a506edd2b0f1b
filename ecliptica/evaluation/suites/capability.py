"""Is the language model still one? Held-out neutral text under a neutral instruction: nats a token, and exact KL to the base model."""

import math

from ecliptica.evaluation import compare
from ecliptica.evaluation.cells import Cell
from ecliptica.evaluation.scoring import context_ids, response_ids, score_all
from ecliptica.isd.bank import INSTRUCTIONS, load_instructions
from ecliptica.isd.sets import SETS, load_capability
from ecliptica.policy import adapter_off_reference

PROMPT = "Write a short passage of plain prose."


def add_arguments(parser):
    compare.add_arguments(parser)
    parser.add_argument("--data", default=SETS / "capability.jsonl", help="JSON lines: id, kind, text")


def run(args):
    items, neutral = compare.limited(load_capability(args.data), args, key=lambda item: None), next(iter(load_instructions(INSTRUCTIONS).values()))[-1]
    cells = [Cell(neutral, PROMPT, item.text, {"prompt": item.id, "instruction": "neutral"}) for item in items]
    found, notes, perplexity, subjects = {}, [], {}, compare.subjects(args)
    for subject in subjects:
        scores = compare.scored(subject, args, cells)
        found[subject.label] = {"nats": [-scores[cell] / scores.tokens(cell) for cell in cells]}
        perplexity[subject.label] = math.exp(-sum(scores[cell] for cell in cells) / sum(scores.tokens(cell) for cell in cells))
    notes.append("\nPerplexity: " + ", ".join(f"{label} {value:.3f}" for label, value in perplexity.items()) + ".")
    more = {"perplexity": perplexity}
    if args.adapter and not args.rescore:
        system = subjects[1].system
        jobs = [(cell.names["prompt"], context_ids(system, cell.prompt, cell.instruction), [response_ids(system, cell.response)]) for cell in cells]
        results = score_all(system, jobs, "kl", adapter_off_reference(system.model))
        more["kl_per_token"] = sum(kls[0] for _, _, kls in results) / sum(counts[0] for _, counts, _ in results)
        notes.append(f"Exact KL[trained || base] on these texts: {more['kl_per_token']:.4f} nats a token.")
    compare.write(args, compare.report("capability", args, {"nats": ("negative log-prob (nats a token)", None)}, found, len(items), "texts", notes=notes, **more))
