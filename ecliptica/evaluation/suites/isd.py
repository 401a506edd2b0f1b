"""All likelihood suites, one after another, each into --out/SUITE, and one summary. Killed and started again it goes on where it was.

--bank and --instructions go to the suites of the bank; with instructions of your own leave `underspecified` out, which has texts for the shipped
ones, or run it by itself with --data. --rescore DIR: the --out of an earlier run.
"""

import json
from pathlib import Path

from ecliptica.evaluation import compare, suites
from ecliptica.evaluation.suites.switch import add_bank_arguments
from ecliptica.isd.bank import PARAPHRASE
from model import cli
from model.errors import InputError

OF_BANK = ("switch", "paraphrase", "underspecified", "override", "shift", "scale")
OF_POLICIES = ("refusal", "honesty", "capability")
ALL = OF_BANK + OF_POLICIES


def add_arguments(parser):
    compare.add_arguments(parser)
    add_bank_arguments(parser)
    parser.add_argument("--suites", default=",".join(ALL), help="which, comma-separated")


def run(args):
    chosen = list(dict.fromkeys(name for name in args.suites.split(",") if name))
    if unknown := [name for name in chosen if name not in ALL]:
        raise InputError(f"--suites {unknown[0]!r}: expected some of {', '.join(ALL)}")
    if not chosen:
        raise InputError(f"--suites: none given; expected some of {', '.join(ALL)}")
    summary = {}
    for number, name in enumerate(chosen, start=1):
        print(f"[{number}/{len(chosen)}] {name}", flush=True)
        suite, parser = suites.get(name), cli.Parser()
        suite.add_arguments(parser)
        suite.run(parser.parse_args(arguments(args, name)))
        summary[name] = headline(
            json.loads((Path(args.out) / name / "results.json").read_text(encoding="utf-8"))
        )
    (Path(args.out) / "summary.json").write_text(
        json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (Path(args.out) / "summary.md").write_text(table(summary), encoding="utf-8")
    print(table(summary))


def headline(results):
    """What the summary keeps of a suite's results."""
    name = results["headline"]
    return results["metrics"][name] | {
        "metric": name,
        "units": results["units"],
        "unit": results["unit"],
        "reportable": results["reportable"],
        "ablation": bool(results["made"].get("ablation")),
        "systems": {label: values[name] for label, values in results["systems"].items()},
        "difference": {
            label: values[name] for label, values in results.get("difference", {}).items()
        },
    }


def arguments(args, name):
    """The command line of one suite from that of all."""
    line = [
        "--model",
        args.model,
        "--template",
        args.template,
        "--dtype",
        args.dtype,
        "--batch-tokens",
        str(args.batch_tokens),
        "--device",
        args.device,
        "--out",
        str(Path(args.out) / name),
    ]
    for option in ("adapter", "base", "limit"):
        if getattr(args, option) is not None:
            line += [f"--{option}", str(getattr(args, option))]
    for also in args.also:
        line += ["--also", also]
    if args.rescore:
        line += ["--rescore", str(Path(args.rescore) / name / "samples.jsonl")]
    if name in OF_POLICIES:
        return [*line, "--wording", str(args.paraphrase or PARAPHRASE[args.split] + 1)]
    line += [
        "--bank",
        str(args.bank),
        "--instructions",
        str(args.instructions),
        "--split",
        args.split,
    ]
    return (
        [*line, "--paraphrase", str(args.paraphrase)]
        if args.paraphrase is not None and name != "paraphrase"
        else line
    )


def table(summary):
    labels, others = (list(next(iter(summary.values()))[of]) for of in ("systems", "difference"))
    rows = [
        [
            "suite",
            "headline",
            "chance",
            *labels,
            *(f"{label} - {labels[0]}" for label in others),
            "n",
        ]
    ]
    rows.append(["---"] * len(rows[0]))
    rows += [
        [
            name,
            found["title"],
            "-" if found["chance"] is None else f"{found['chance']:.3g}",
            *(compare.shown(found["systems"][label]) for label in labels),
            *(
                f"{compare.shown(found['difference'][label])} p={found['difference'][label]['p_holm']:.2g}"
                for label in others
            ),
            f"{found['units']} {found['unit']}",
        ]
        for name, found in summary.items()
    ]
    stamps = ["NOT REPORTABLE: made with --limit.\n\n"] * (
        not all(found["reportable"] for found in summary.values())
    )
    stamps += ["ABLATION: the KL of the trained model was lifted or was no KL.\n\n"] * any(
        found["ablation"] for found in summary.values()
    )
    foot = (
        "\n95 % intervals, units resampled"
        + ("; p: Holm over each suite's own table, not over this one" if others else "")
        + ". A table with all metrics is in each suite's directory.\n"
    )
    return "".join(stamps) + "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n" + foot
