"""All likelihood suites, one after another, each into --out/SUITE, and one summary. Killed and started again it goes on where it was.

The bank's suites read the shipped bank; to point them at another, run them by themselves.
"""

import json
from pathlib import Path

from ecliptica.evaluation import compare, suites
from ecliptica.evaluation.suites.switch import add_bank_arguments
from model import cli
from model.errors import InputError

HEADLINES = {"switch": "joint", "paraphrase": "all", "underspecified": "joint_dropped", "override": "strong_attack", "shift": "instructions",
             "refusal": "boundary", "honesty": "difference", "scale": "candidates_100", "capability": "nats"}
OF_BANK = ("switch", "paraphrase", "underspecified", "override", "shift", "scale")


def add_arguments(parser):
    compare.add_arguments(parser)
    add_bank_arguments(parser)
    parser.add_argument("--suites", default=",".join(HEADLINES), help="which, comma-separated")


def run(args):
    chosen = [name for name in args.suites.split(",") if name]
    if unknown := [name for name in chosen if name not in HEADLINES]:
        raise InputError(f"--suites {unknown[0]!r}: expected some of {', '.join(HEADLINES)}")
    if args.rescore:
        raise InputError("--rescore: give it to a suite by itself; its samples are in OUT/SUITE/samples.jsonl")
    for number, name in enumerate(chosen, start=1):
        print(f"[{number}/{len(chosen)}] {name}", flush=True)
        suite, parser = suites.get(name), cli.Parser()
        suite.add_arguments(parser)
        suite.run(parser.parse_args(arguments(args, name)))
    results = {name: json.loads((Path(args.out) / name / "results.json").read_text(encoding="utf-8")) for name in chosen}
    summary = {name: {"metric": found["metrics"][HEADLINES[name]]["title"], "chance": found["metrics"][HEADLINES[name]]["chance"], "reportable": found["reportable"],
                      "systems": {label: values[HEADLINES[name]] for label, values in found["systems"].items()}}
               for name, found in results.items() if HEADLINES[name] in found["metrics"]}
    (Path(args.out) / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    (Path(args.out) / "summary.md").write_text(table(summary), encoding="utf-8")
    print(table(summary))


def arguments(args, name):
    """The command line of one suite from that of all."""
    line = ["--model", args.model, "--template", args.template, "--dtype", args.dtype, "--batch-tokens", str(args.batch_tokens), "--device", args.device,
            "--out", str(Path(args.out) / name)]
    for option in ("adapter", "base", "limit"):
        if getattr(args, option) is not None:
            line += [f"--{option}", str(getattr(args, option))]
    for also in args.also:
        line += ["--also", also]
    if name in OF_BANK:
        line += ["--bank", str(args.bank), "--instructions", str(args.instructions), "--split", args.split]
        line += ["--paraphrase", str(args.paraphrase)] if args.paraphrase else []
    return line


def table(summary):
    labels = list(next(iter(summary.values()))["systems"])
    rows = [["suite", "headline", "chance", *labels], ["---"] * (3 + len(labels))]
    rows += [[name, found["metric"], "-" if found["chance"] is None else f"{found['chance']:.3g}", *(compare.shown(found["systems"][label]) for label in labels)]
             for name, found in summary.items()]
    stamp = "" if all(found["reportable"] for found in summary.values()) else "NOT REPORTABLE: made with --limit.\n\n"
    return stamp + "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
