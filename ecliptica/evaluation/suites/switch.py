"""Does the instruction switch the behaviour? Joint, column accuracy, prompt match, switch and strict switch, base and trained side by side.

Log-probs only, no judge. Controls: the base model under the same instructions (prompting only), the instruction removed,
the prompt scrambled. Writes results.json, samples.jsonl (every score, resumable) and table.md into --out.
"""

import numpy as np

from ecliptica.evaluation import compare
from ecliptica.evaluation.grid import CONDITIONS, METRICS, Grid
from ecliptica.evaluation.scoring import context_ids, response_ids, score_all
from ecliptica.isd.bank import BANK, INSTRUCTIONS, SPLITS, load_bank, load_instructions
from ecliptica.policy import adapter_off_reference
from model.errors import InputError


def add_arguments(parser):
    compare.add_arguments(parser)
    add_bank_arguments(parser)
    parser.add_argument(
        "--controls",
        default="no instruction,scrambled prompt",
        help="conditions to add to the table, comma-separated; '' for none",
    )


def add_bank_arguments(parser, paraphrase=True):
    parser.add_argument(
        "--bank",
        default=BANK,
        help="JSON lines, or a directory of them (default: the shipped bank)",
    )
    parser.add_argument(
        "--instructions",
        default=INSTRUCTIONS,
        help="TOML of id = [paraphrases] (default: the shipped ones)",
    )
    parser.add_argument("--split", default="test", choices=SPLITS)
    if paraphrase:
        parser.add_argument(
            "--paraphrase", type=int, help="which wording, from 1 (default: train 1, dev 2, test 3)"
        )


def measured(args):
    """(bank, entries of the split that have references, {instruction id: wordings} of those that the references answer)."""
    instructions = load_instructions(args.instructions)
    bank = load_bank(args.bank, instructions)
    split = [entry for entry in bank if entry.split == args.split]
    if not split:
        raise InputError(
            f"{args.bank}: no prompt in the split {args.split!r}; it has {', '.join(sorted({e.split for e in bank}))}"
        )
    entries = [entry for entry in split if entry.responses][: args.limit]
    if not entries:
        raise InputError(
            f"{args.bank}: no prompt of the split {args.split!r} has reference responses"
        )
    names = [name for name in instructions if name in entries[0].responses]
    for entry in entries:
        if set(entry.responses) != set(names) or len(names) < 2:
            raise InputError(
                f"{args.bank}: {entry.id} has responses to {len(entry.responses)} instructions; every prompt of the split "
                f"needs the same ones, at least two (the first has {', '.join(names)})"
            )
    if len(bank) < 2:
        raise InputError(
            f"{args.bank}: one prompt; prompt match needs at least one other to tell it from"
        )
    return bank, entries, {name: instructions[name] for name in names}


def run(args):
    controls = [name for name in args.controls.split(",") if name]
    if unknown := [name for name in controls if name not in CONDITIONS[1:]]:
        raise InputError(f"--controls {unknown[0]!r}: expected {', '.join(CONDITIONS[1:])}")
    bank, entries, instructions = measured(args)
    wording = compare.wordings(args, instructions)
    grids = {name: Grid(bank, entries, wording, name) for name in (CONDITIONS[0], *controls)}
    subjects, found, strict, interactions, conditions, apart = (
        compare.subjects(args),
        {},
        0.0,
        {},
        {},
        {},
    )
    for subject in subjects:
        for condition, grid in grids.items():
            scores = compare.scored(subject, args, grid.cells())
            values, null, matrix = grid.values(scores)
            if condition == CONDITIONS[0]:
                apart[subject.label] = instruction_rows(grid.by_instruction(scores), grid.names)
                found[subject.label], interactions[subject.label] = values, matrix.round(3).tolist()
                strict = strict or null  # of the control, whose labels mean as little
            else:
                conditions.setdefault(subject.label, {})[condition] = values
    chances = grids[CONDITIONS[0]].chances(strict)
    metrics = {name: (title, chances[name]) for name, title in METRICS.items()}
    more = {
        "instructions": list(wording),
        "wording": wording,
        "prompt_ids": [entry.id for entry in entries],
        "interaction": interactions,
        "by_instruction": apart,
        "controls": control_rows(conditions, len(entries)),
        "made": compare.made(subjects, args),
    }
    results = compare.report("switch", args, metrics, found, len(entries), **more)
    results["notes"] = notes(results)
    if args.adapter and not args.rescore:
        kl = mean_kl(subjects[1].system, entries, wording)
        results["kl"] = kl
        results["notes"].append(
            f"Exact KL[trained || base] on the reference responses: {kl['per_response']:.2f} nats a response, {kl['per_token']:.4f} a token."
        )
    compare.write(args, results)


def instruction_rows(values, names):
    """{metric: {instruction: summary}}: the parts of a mean over instructions, prompts resampled."""
    drawn = compare.statistics.draws(len(next(iter(values.values()))))
    return {
        metric: {
            name: compare.statistics.summary(column, drawn)
            for name, column in zip(names, values_PJ.T)
        }
        for metric, values_PJ in values.items()
    }


def control_rows(conditions, units):
    """{label: {condition: {metric: summary}}}, on the same draws as the table."""
    drawn = compare.statistics.draws(units)
    return {
        label: {
            name: {metric: compare.statistics.summary(v, drawn) for metric, v in values.items()}
            for name, values in by_name.items()
        }
        for label, by_name in conditions.items()
    }


def notes(results):
    """The controls as a second table, tested without I and with the wrong prompt."""
    lines = [f"\n{len(results['instructions'])} instructions, wording of the split."]
    if results["controls"]:
        titles = [metric["title"] for metric in results["metrics"].values()]
        lines += [
            "\nControls: the same systems with the instruction removed, and with the prompts dealt out wrongly.\n",
            "| system, condition | " + " | ".join(titles) + " |",
            "| " + " | ".join(["---"] * (len(titles) + 1)) + " |",
        ]
        lines += [
            f"| {label}, {name} | "
            + " | ".join(compare.shown(values[metric]) for metric in results["metrics"])
            + " |"
            for label, by_name in results["controls"].items()
            for name, values in by_name.items()
        ]
        lines.append("")
    return lines


def mean_kl(system, entries, wording):
    """Exact KL[trained || base] on the reference responses under their own instructions, nats."""
    jobs = [
        (
            f"{entry.id}/{j}",
            context_ids(system, entry.prompt, wording[j]),
            [response_ids(system, entry.responses[j])],
        )
        for entry in entries
        for j in wording
    ]
    results = score_all(system, jobs, "kl", adapter_off_reference(system.model))
    total, tokens = sum(kls[0] for _, _, kls in results), sum(counts[0] for _, counts, _ in results)
    per_prompt = np.array([kls[0] for _, _, kls in results]).reshape(len(entries), -1).mean(1)
    return {
        "per_response": total / len(jobs),
        "per_token": total / tokens,
        "interval": compare.statistics.summary(per_prompt, compare.statistics.draws(len(entries))),
    }
