"""What the systems of one table share: who is compared, where samples go, how results are written."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from ecliptica.evaluation import statistics, systems
from ecliptica.evaluation.cells import Scores
from ecliptica.evaluation.systems import Subject, fingerprint
from ecliptica.files import journal, naming
from ecliptica.isd.bank import PARAPHRASE
from model.errors import InputError

BASE, TRAINED = "prompting-only", "trained"


def add_arguments(
    parser, out="directory to write; what its samples.jsonl has already is not computed again"
):
    systems.add_arguments(parser)
    parser.add_argument(
        "--base",
        help="control model directory, when --model is itself the trained one (full fine-tuning)",
    )
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="LABEL=ADAPTER",
        help="one more trained adapter (another seed, or trained without I); may be repeated",
    )
    parser.add_argument(
        "--limit", type=count, help="only so many prompts: a quick look, stamped as not reportable"
    )
    parser.add_argument(
        "--rescore",
        metavar="SAMPLES",
        help="compute the metrics again from a samples.jsonl; no model is loaded",
    )
    parser.add_argument("--out", required=True, help=out)


def count(text):
    """A whole number of at least 1, for argparse."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected >= 1, got {text}")
    return int(text)


def subjects(args):
    """[Subject], the control first. The base model under the same instructions is the prompting-only control."""
    if args.rescore:
        found = {line["system"]: line["key"] for line in journal(args.rescore) if "key" in line}
        if not found:
            raise InputError(
                f"--rescore {args.rescore}: no scored line in it; expected a samples.jsonl that a suite wrote"
            )
        return [
            Subject(label, key, None)
            for label, key in sorted(found.items(), key=lambda item: item[0] != BASE)
        ]
    also = [text.partition("=") for text in args.also]
    labels = [label for label, _, _ in also]
    if bad := [
        text
        for text, (label, equals, path) in zip(args.also, also)
        if not (label and equals and path)
    ]:
        raise InputError(
            f"--also {bad[0]}: expected LABEL=ADAPTER_DIRECTORY, such as seed-1=runs/seed1/final"
        )
    if len({*labels, BASE, TRAINED}) < len(labels) + 2:
        raise InputError(
            f"--also: the labels {', '.join(labels)} must differ from one another and from {BASE}, {TRAINED}"
        )
    system = systems.load(args)
    if args.adapter:
        found = [
            Subject(BASE, fingerprint(system, False), system, False),
            Subject(TRAINED, fingerprint(system), system),
        ]
    elif args.base:
        control = systems.load(argparse.Namespace(**(vars(args) | {"model": args.base})))
        found = [
            Subject(BASE, fingerprint(control), control),
            Subject(TRAINED, fingerprint(system), system),
        ]
    else:
        found = [Subject(BASE, fingerprint(system), system)]
    for label, _, path in also:
        other = systems.load(argparse.Namespace(**(vars(args) | {"adapter": path})))
        found.append(Subject(label, fingerprint(other), other))
    return found


def made(subjects, args):
    """How a trained subject was made. An ablation goes before the others, so that no other system and no --rescore takes its stamp away."""
    records = [subject.system.made for subject in subjects if subject.system] or [
        systems.record(args)
    ]
    return max(records, key=lambda record: (bool(record.get("ablation")), bool(record)))


def samples_path(args):
    """Where scores are kept. Makes the output directory."""
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    return Path(args.rescore) if args.rescore else out / "samples.jsonl"


def scored(subject, args, cells):
    """The Scores of a subject with all of `cells` in them."""
    with subject.switched() as system:
        return Scores(samples_path(args), subject.key, subject.label, system).ask(cells)


def wordings(args, instructions):
    """{instruction id: its text} in the wording of the split (or --paraphrase)."""
    chosen = {}
    for name, texts in instructions.items():
        if args.paraphrase is not None and not 1 <= args.paraphrase <= len(texts):
            raise InputError(f"--paraphrase {args.paraphrase}: {name} has {len(texts)} wordings")
        chosen[name] = texts[
            args.paraphrase - 1 if args.paraphrase else min(PARAPHRASE[args.split], len(texts) - 1)
        ]
    return chosen


def limited(items, args, key):
    """The first --limit items of each class."""
    groups = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return [item for group in groups.values() for item in group[: args.limit]]


def mean(values):
    return float(np.nanmean(values))


def report(suite, args, metrics, found, units, unit="prompts", derived=None, headline=None, **more):
    """The results of a suite as one dictionary: every metric of every system with its interval, and each difference to the control.

    metrics: {name: (title, chance)}; found: {label: {name: one value a unit, NaN where it has none}}. Differences are paired by
    unit; p: two-sided sign-flip test of the mean difference; p_holm: corrected over all the metrics of this suite and systems.
    derived: {name: (title, chance, how, {label: columns})}: how(means of the columns), such as a ratio of two means, recomputed in every draw; its p
    swaps the two systems within units. headline: the name of the metric that stands for the suite and first in its table (default: the first).
    """
    drawn, derived = statistics.draws(units), derived or {}
    control = next(iter(found))
    titles = {name: (title, chance) for name, (title, chance, *_) in derived.items()} | metrics
    titles = {name: titles[name] for name in sorted(titles, key=lambda name: name != headline)}
    results = {
        "suite": suite,
        "reportable": args.limit is None,
        "units": units,
        "unit": unit,
        "headline": next(iter(titles)),
        "metrics": {
            name: {"title": title, "chance": chance} for name, (title, chance) in titles.items()
        },
        "systems": {
            label: {
                name: statistics.combined(how, columns[label], drawn)
                for name, (_, _, how, columns) in derived.items()
            }
            | {name: statistics.summary(values[name], drawn) for name in metrics}
            for label, values in found.items()
        },
    }
    differences = {
        label: {name: np.subtract(values[name], found[control][name]) for name in metrics}
        for label, values in found.items()
        if label != control
    }
    if differences:
        changes = {
            (label, name): change(how, columns[label], columns[control], drawn)
            for label in differences
            for name, (_, _, how, columns) in derived.items()
        }
        changes |= {
            (label, name): (statistics.summary(d, drawn), statistics.sign_flip(d))
            for label, by_name in differences.items()
            for name, d in by_name.items()
        }
        adjusted = dict(zip(changes, statistics.holm([p for _, p in changes.values()])))
        results["difference"] = {
            label: {
                name: changes[label, name][0]
                | {"p": changes[label, name][1], "p_holm": adjusted[label, name]}
                for name in titles
            }
            for label in differences
        }
    results["per_unit"] = {
        label: {name: [None if np.isnan(v) else float(v) for v in values[name]] for name in metrics}
        for label, values in found.items()
    }
    results["bootstrap"] = {"draws": statistics.DRAWS, "resampled": unit, "level": 0.95}
    results["config"] = {
        key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()
    }
    results["versions"] = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    return results | more


def change(how, mine, control, drawn):
    """(summary of how(mine) - how(control) on the same draws, p)."""
    count = len(mine)
    both = statistics.combined(
        lambda *means: how(*means[:count]) - how(*means[count:]), [*mine, *control], drawn
    )
    return both, statistics.swap_test(how, mine, control)


def write(args, results):
    """results.json and table.md in --out; the table on the screen."""
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n"),
        ("table.md", table(results)),
    ):
        with naming(out / name):
            (out / name).write_text(text, encoding="utf-8")
    print(table(results))


def table(results):
    """The Markdown table a person reads: value [95 % interval]; paired differences to the control last."""
    labels, differences = list(results["systems"]), results.get("difference", {})
    rows = [["metric", "chance", *labels, *(f"{label} - {labels[0]}" for label in differences)]]
    rows.append(["---"] * len(rows[0]))
    for name, metric in results["metrics"].items():
        cells = [shown(results["systems"][label][name]) for label in labels]
        cells += [
            f"{shown(by_name[name])} p={by_name[name]['p_holm']:.2g}"
            for by_name in differences.values()
        ]
        rows.append(
            [
                metric["title"],
                "-" if metric["chance"] is None else f"{metric['chance']:.3g}",
                *cells,
            ]
        )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if results.get("made", {}).get("ablation"):
        lines.insert(0, "ABLATION: the KL of the trained model was lifted or was no KL.\n")
    if not results["reportable"]:
        lines.insert(0, "NOT REPORTABLE: made with --limit.\n")
    lines.append(
        f"\n{results['units']} {results['unit']}; 95 % intervals, {results['bootstrap']['draws']} draws, {results['unit']} resampled, the same draws for "
        "every system"
        + (
            "; p: paired sign-flip test (of a ratio: systems swapped within units), Holm over this table."
            if differences
            else "."
        )
    )
    return "\n".join([*lines, *results.get("notes", ())]) + "\n"


def shown(cell):
    return (
        "n/a"
        if cell["value"] is None
        else f"{cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"
    )
