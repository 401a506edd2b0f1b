"""Does a rewording change the answer? Column accuracy (or joint) under every wording of the instructions: right under all, the worst, each."""

import numpy as np

from ecliptica.evaluation import compare
from ecliptica.evaluation.grid import BY_INSTRUCTION, METRICS, Grid
from ecliptica.evaluation.metrics import paraphrase
from ecliptica.evaluation.suites.switch import add_bank_arguments, measured
from model.errors import InputError


def add_arguments(parser):
    compare.add_arguments(parser)
    add_bank_arguments(parser, paraphrase=False)
    parser.add_argument(
        "--metric",
        default="column_accuracy",
        choices=BY_INSTRUCTION,
        help="what is right under a wording",
    )


def run(args):
    bank, entries, instructions = measured(args)
    count = min(map(len, instructions.values()))
    if count < 2:
        raise InputError(
            f"{args.instructions}: an instruction has one wording; this suite compares at least two of each"
        )
    grids = [
        Grid(bank, entries, {name: texts[w] for name, texts in instructions.items()})
        for w in range(count)
    ]
    title, chance = METRICS[args.metric], grids[0].chances(0)[args.metric]
    each = {f"wording_{w + 1}": (f"{title}, wording {w + 1}", chance) for w in range(count)}
    found, subjects = {}, compare.subjects(args)
    for subject in subjects:
        scores = compare.scored(
            subject,
            args,
            (
                cell
                for grid in grids
                for entry in entries
                for cell in grid.needs(args.metric, entry)
            ),
        )
        shares_XWK = np.array(
            [[grid.shares(args.metric, scores, entry) for grid in grids] for entry in entries]
        )
        found[subject.label] = {"all": [paraphrase.value(shares_WK) for shares_WK in shares_XWK]}
        found[subject.label] |= {
            f"wording_{w + 1}": shares_XWK[:, w].mean(1).tolist() for w in range(count)
        }
    worst = {
        "worst": (
            f"{title}, {paraphrase.WORST}",
            chance,
            paraphrase.worst,
            {label: [values[w] for w in each] for label, values in found.items()},
        )
    }
    lowest = {
        label: int(np.argmin([np.mean(values[w]) for w in each])) + 1
        for label, values in found.items()
    }
    notes = [
        "\nThe worst wording is "
        + "; ".join(f"number {w} for {label}" for label, w in lowest.items())
        + ". Wording 1 trains, 2 is for dev, 3 for test."
    ]
    metrics = {"all": (f"{title} {paraphrase.ALL}", chance)} | each
    compare.write(
        args,
        compare.report(
            "paraphrase",
            args,
            metrics,
            found,
            len(entries),
            derived=worst,
            headline="all",
            worst_wording=lowest,
            notes=notes,
            made=compare.made(subjects, args),
        ),
    )
