"""Does the instruction switch the behaviour? Switch, strict switch, column accuracy and prompt match, base and trained side by side.

Log-probs only, no judge. The base model under the same instructions is the prompting-only control; the difference is
paired by prompt. Writes results.json, samples.jsonl (every score) and table.md into --out.
"""

import argparse
import json
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from ecliptica.evaluation import statistics, switching, systems
from ecliptica.evaluation.scoring import context_ids, response_ids, score_all
from ecliptica.isd.bank import BANK, INSTRUCTIONS, PARAPHRASE, SPLITS, load_bank, load_instructions, referenced
from ecliptica.policy import adapter_off_reference
from model.errors import InputError
from model.lora import adapters_off

DISTRACTORS = 9
METRICS = {"column_accuracy": "column accuracy", "switch": "switch", "strict_switch": "strict switch", "prompt_match": "prompt match"}


def add_arguments(parser):
    systems.add_arguments(parser)
    parser.add_argument("--base", help="control model directory, when --model is itself the trained one (full fine-tuning)")
    parser.add_argument("--bank", default=BANK, help="a JSONL file or a directory of them (default: the shipped bank)")
    parser.add_argument("--instructions", default=INSTRUCTIONS, help="TOML of id = [paraphrases] (default: the shipped ones)")
    parser.add_argument("--split", default="test", choices=SPLITS)
    parser.add_argument("--paraphrase", type=int, help="which wording, from 1 (default: train 1, dev 2, test 3)")
    parser.add_argument("--limit", type=int, help="only so many prompts: a quick look, stamped as not reportable")
    parser.add_argument("--out", required=True, help="directory to write")


def run(args):
    instructions = load_instructions(args.instructions)
    bank = load_bank(args.bank, instructions)
    entries = [entry for entry in referenced(bank) if entry.split == args.split][: args.limit]
    if not entries:
        raise InputError(f"{args.bank}: no prompt in the split {args.split!r} with responses; there are {', '.join(sorted({e.split for e in referenced(bank)}) or 'none')}")
    names = [name for name in instructions if name in entries[0].responses]
    for entry in entries:
        if set(entry.responses) != set(names) or len(names) < 2:
            raise InputError(f"{args.bank}: {entry.id} has responses to {len(entry.responses)} instructions; every prompt of the split "
                             f"needs the same ones, at least two (the first has {', '.join(names)})")
    if len(bank) < 2:
        raise InputError(f"{args.bank}: one prompt; prompt match needs at least one other to tell it from")
    wording = {name: texts[paraphrase_index(args, texts)] for name, texts in instructions.items() if name in names}
    system = systems.load(args)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    jobs, keys = build_jobs(system, bank, entries, wording)
    results, kl, samples = {}, None, open(out / "samples.jsonl", "w", encoding="utf-8")
    with samples:
        for label, chosen, context in runs(args, system):
            with context:
                scores = collect(score_all(chosen, jobs, label), keys)
                results[label] = per_prompt(scores, bank, entries, names)
            for (prompt, j, owner, k), (logp, tokens) in scores.items():
                samples.write(json.dumps({"system": label, "prompt": prompt, "instruction": j, "response_to": owner, "response": k,
                                          "logp": logp, "tokens": tokens}) + "\n")
    if args.adapter:
        kl = mean_kl(system, entries, wording)
    report = summarise(results, names, args, kl, wording, entries, len(bank)) | {"made": system.made}
    (out / "results.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "table.md").write_text(table(report), encoding="utf-8")
    print(table(report))


def paraphrase_index(args, texts):
    if args.paraphrase is None:
        return min(PARAPHRASE[args.split], len(texts) - 1)
    if not 1 <= args.paraphrase <= len(texts):
        raise InputError(f"--paraphrase {args.paraphrase}: the instructions have {len(texts)} wordings")
    return args.paraphrase - 1


def runs(args, system):
    """(label, system, context manager) of each model compared, the control first."""
    if args.adapter:
        return [("prompting-only", system, adapters_off(system.model)), ("trained", system, nullcontext())]
    if args.base:
        control = systems.load(argparse.Namespace(**(vars(args) | {"model": args.base})))
        return [("prompting-only", control, nullcontext()), ("trained", system, nullcontext())]
    return [("prompting-only", system, nullcontext())]


def distractors(entry, bank):
    """The prompts that `entry` must be told from: its own domain first, its own split first (their contexts are scored anyway)."""
    others = [other for other in bank if other.id != entry.id]
    others.sort(key=lambda other: (other.domain != entry.domain, other.split != entry.split))
    return others[:DISTRACTORS]


def build_jobs(system, bank, entries, wording):
    """Scoring jobs, one a context (I_j, x), and what each of its responses is: keys (x, j, owner of the response, k)."""
    wanted = {}
    for entry in entries:
        for j in wording:
            wanted.setdefault((entry.id, j), []).extend((entry, k) for k in wording)
            for other in distractors(entry, bank):
                wanted.setdefault((other.id, j), []).append((entry, j))
    prompt_of = {entry.id: entry.prompt for entry in bank}
    encoded = {(entry.id, k): response_ids(system, entry.responses[k]) for entry in entries for k in wording}
    jobs, keys = [], []
    for (prompt, j), cells in wanted.items():
        jobs.append((f"{prompt}/{j}", context_ids(system, prompt_of[prompt], wording[j]), [encoded[owner.id, k] for owner, k in cells]))
        keys.append([(prompt, j, owner.id, k) for owner, k in cells])
    return jobs, keys


def collect(results, keys):
    return {key: (logp, tokens) for row, (logps, counts, _) in zip(keys, results) for key, logp, tokens in zip(row, logps, counts)}


def per_prompt(scores, bank, entries, names):
    """{metric: one value a prompt}, the strict switch's permutation null, and the interaction matrix averaged over prompts."""
    generator, values, matrices, nulls = np.random.default_rng(0), {name: [] for name in METRICS}, [], []
    for entry in entries:
        s_JK = np.array([[scores[entry.id, j, entry.id, k][0] for k in names] for j in names])
        others = [[scores[other.id, j, entry.id, j][0] for other in distractors(entry, bank)] for j in names]
        values["switch"].append(switching.switch(s_JK))
        values["strict_switch"].append(switching.strict_switch(s_JK))
        values["column_accuracy"].append(switching.column_accuracy(s_JK))
        values["prompt_match"].append(switching.prompt_match(np.diag(s_JK), others))
        nulls.append(switching.strict_switch_null(s_JK, generator))
        matrices.append(switching.interaction(s_JK))
    return {"values": values, "strict_null": float(np.mean(nulls)), "interaction": np.mean(matrices, axis=0).round(3).tolist()}


def mean_kl(system, entries, wording):
    """Exact KL[trained || base] on the reference responses under their own instructions, nats."""
    jobs = [(f"{entry.id}/{j}", context_ids(system, entry.prompt, wording[j]), [response_ids(system, entry.responses[j])])
            for entry in entries for j in wording]
    results = score_all(system, jobs, "kl", adapter_off_reference(system.model))
    total, tokens = sum(kls[0] for _, _, kls in results), sum(counts[0] for _, counts, _ in results)
    return {"per_response": total / len(jobs), "per_token": total / tokens}


def summarise(results, names, args, kl, wording, entries, bank_size):
    """results.json: every metric with its interval and chance level, the paired difference, and all that is needed to repeat it."""
    drawn = statistics.draws(len(entries))
    found = {label: {name: statistics.summary(run["values"][name], drawn) for name in METRICS} for label, run in results.items()}
    chance = {"switch": 0.5, "column_accuracy": 1 / len(names), "prompt_match": 1 / (min(DISTRACTORS, bank_size - 1) + 1),
              "strict_switch": results["prompting-only"]["strict_null"]}
    report = {"suite": "switch", "reportable": args.limit is None, "prompts": len(entries), "instructions": names, "systems": found,
              "chance": chance, "interaction": {label: run["interaction"] for label, run in results.items()},
              "per_prompt": {label: run["values"] for label, run in results.items()}, "prompt_ids": [entry.id for entry in entries]}
    if "trained" in results:
        report["difference"] = {
            name: statistics.summary(np.subtract(results["trained"]["values"][name], results["prompting-only"]["values"][name]), drawn)
            for name in METRICS}
    if kl:
        report["kl"] = kl
    report["config"] = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    report["wording"] = wording
    report["bootstrap"] = {"draws": statistics.DRAWS, "resampled": "prompts", "level": 0.95}
    report["versions"] = {"python": sys.version.split()[0], "torch": torch.__version__}
    return report


def table(report):
    """The Markdown table a person reads: value [95 % interval], the paired difference last."""
    labels = [*report["systems"], *(["difference"] if "difference" in report else [])]
    rows = [["metric", "chance", *labels], ["---"] * (2 + len(labels))]
    for name, title in METRICS.items():
        cells = [report["systems"].get(label, report.get("difference"))[name] for label in labels]
        rows.append([title, f"{report['chance'][name]:.2f}", *(f"{c['value']:.3f} [{c['low']:.3f}, {c['high']:.3f}]" for c in cells)])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if not report["reportable"]:
        lines.insert(0, "NOT REPORTABLE: made with --limit.\n")
    if report["made"].get("ablation"):
        lines.insert(0, "ABLATION: the KL of the trained model was lifted or was no KL.\n")
    lines.append(f"\n{report['prompts']} prompts x {len(report['instructions'])} instructions; intervals: 95 %, {statistics.DRAWS} draws, prompts resampled.")
    if "kl" in report:
        lines.append(f"Exact KL[trained || base] on the reference responses: {report['kl']['per_response']:.2f} nats a response, {report['kl']['per_token']:.4f} a token.")
    return "\n".join(lines) + "\n"
