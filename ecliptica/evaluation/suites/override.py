"""Does the instruction hold when the prompt says to ignore it? Column accuracy with an override suffix against a harmless one as long.

Three strengths (mild, medium, strong). Kept: the ratio of the two, null 1; below 1 the override works. The n-th prompt gets the n-th pair of
suffixes of each strength, in turn.
"""

import numpy as np

from ecliptica.evaluation import compare, statistics
from ecliptica.evaluation.grid import Grid
from ecliptica.evaluation.metrics import column_accuracy
from ecliptica.evaluation.suites.switch import add_bank_arguments, measured
from ecliptica.isd.sets import SETS, STRENGTHS, load_override
from model.errors import InputError


def add_arguments(parser):
    compare.add_arguments(parser)
    add_bank_arguments(parser)
    parser.add_argument("--data", default=SETS / "override.jsonl", help="JSON lines: id, strength, attack, harmless")


def run(args):
    bank, entries, instructions = measured(args)
    pairs = {strength: [pair for pair in load_override(args.data) if pair.strength == strength] for strength in STRENGTHS}
    if empty := [strength for strength, found in pairs.items() if not found]:
        raise InputError(f"{args.data}: no pair of the strength {empty[0]!r}; each of {', '.join(STRENGTHS)} needs one")
    wording = compare.wordings(args, instructions)
    grids = {(strength, side): [Grid(bank, [entry], wording, suffix=" " + getattr(of[n % len(of)], side)) for n, entry in enumerate(entries)]
             for strength, of in pairs.items() for side in ("attack", "harmless")}
    metrics = {f"{strength}_{side}": (f"column accuracy, {strength} {side}", column_accuracy.chance(len(wording))) for strength, side in grids}
    found, kept = {}, {}
    for subject in compare.subjects(args):
        scores = compare.scored(subject, args, (cell for row in grids.values() for grid in row for line in grid.matrix(grid.entries[0]) for cell in line))
        values = {f"{strength}_{side}": [accuracy(grid, scores) for grid in row] for (strength, side), row in grids.items()}
        found[subject.label], drawn = values, statistics.draws(len(entries))
        kept[subject.label] = {s: statistics.ratio(values[f"{s}_attack"], values[f"{s}_harmless"], drawn) for s in STRENGTHS}
    notes = [f"\nKept under override, {label}: " + ", ".join(f"{s} {compare.shown(r)}" for s, r in by_strength.items()) + "; null 1." for label, by_strength in kept.items()]
    compare.write(args, compare.report("override", args, metrics, found, len(entries), kept=kept, notes=notes))


def accuracy(grid, scores):
    return column_accuracy.value(np.array([[scores[cell] for cell in row] for row in grid.matrix(grid.entries[0])]))
