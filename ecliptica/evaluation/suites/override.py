"""Does the instruction hold when the prompt says to ignore it? Column accuracy (or joint) with an override suffix over that with a harmless one as long.

Three strengths: mild, medium, strong. The n-th prompt gets the n-th pair of suffixes of each strength, in turn. See metrics/contract_kept.py.
"""

from ecliptica.evaluation import compare
from ecliptica.evaluation.grid import BY_INSTRUCTION, METRICS, Grid
from ecliptica.evaluation.metrics import contract_kept
from ecliptica.evaluation.suites.switch import add_bank_arguments, measured
from ecliptica.isd.sets import SETS, STRENGTHS, load_override
from model.errors import InputError


def add_arguments(parser):
    compare.add_arguments(parser)
    add_bank_arguments(parser)
    parser.add_argument(
        "--data", default=SETS / "override.jsonl", help="JSON lines: id, strength, attack, harmless"
    )
    parser.add_argument(
        "--metric",
        default="column_accuracy",
        choices=BY_INSTRUCTION,
        help="what the contract is measured by",
    )


def run(args):
    bank, entries, instructions = measured(args)
    pairs = {
        strength: [pair for pair in load_override(args.data) if pair.strength == strength]
        for strength in reversed(STRENGTHS)
    }
    if empty := [strength for strength, found in pairs.items() if not found]:
        raise InputError(
            f"{args.data}: no pair of the strength {empty[0]!r}; each of {', '.join(STRENGTHS)} needs one"
        )
    wording = compare.wordings(args, instructions)
    grids = {
        (strength, side): [
            Grid(bank, [entry], wording, suffix=" " + getattr(of[n % len(of)], side))
            for n, entry in enumerate(entries)
        ]
        for strength, of in pairs.items()
        for side in ("attack", "harmless")
    }
    title, chance = METRICS[args.metric], grids["strong", "attack"][0].chances(0)[args.metric]
    metrics = {
        f"{strength}_{side}": (f"{title}, {strength} {side}", chance) for strength, side in grids
    }
    found, subjects = {}, compare.subjects(args)
    for subject in subjects:
        scores = compare.scored(
            subject,
            args,
            (
                cell
                for row in grids.values()
                for grid in row
                for cell in grid.needs(args.metric, grid.entries[0])
            ),
        )
        found[subject.label] = {
            f"{strength}_{side}": [
                compare.mean(grid.shares(args.metric, scores, grid.entries[0])) for grid in row
            ]
            for (strength, side), row in grids.items()
        }
    derived = {
        f"kept_{strength}": (
            f"{title} kept under override, {strength}",
            contract_kept.NULL,
            contract_kept.value,
            {
                label: [values[f"{strength}_attack"], values[f"{strength}_harmless"]]
                for label, values in found.items()
            },
        )
        for strength in pairs
    }
    compare.write(
        args,
        compare.report(
            "override",
            args,
            metrics,
            found,
            len(entries),
            derived=derived,
            headline="kept_strong",
            made=compare.made(subjects, args),
        ),
    )
