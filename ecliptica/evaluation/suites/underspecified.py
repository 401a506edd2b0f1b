"""What is left when the instruction is half said? Joint under an instruction with its clause dropped, a vague one, and none.

Beside it the distance to the no-instruction behaviour: mean |log pi(y_{x,j} | I, x) - log pi(y_{x,j} | x)| per token, over that of the full
instruction (1: moves as far as the full one; 0: as if nothing were said). A distance has no direction, so it is absolute; joint is what says
whether the way is right.
"""

from ecliptica.evaluation import compare, statistics
from ecliptica.evaluation.grid import Grid
from ecliptica.evaluation.metrics import joint
from ecliptica.evaluation.suites.switch import add_bank_arguments, measured
from ecliptica.isd.sets import SETS, load_underspecified

KINDS = ("full", "dropped", "vague", "none")


def add_arguments(parser):
    compare.add_arguments(parser)
    add_bank_arguments(parser)
    parser.add_argument("--data", default=SETS / "underspecified.toml", help="TOML: a table an instruction, with dropped and vague")


def run(args):
    bank, entries, instructions = measured(args)
    half = load_underspecified(args.data, list(instructions))
    full = compare.wordings(args, instructions)
    said = {"full": full, **{kind: {name: half[name][kind][0] for name in full} for kind in ("dropped", "vague")}}
    grids = {kind: Grid(bank, entries, wording) for kind, wording in said.items()} | {"none": Grid(bank, entries, full, "no instruction")}
    chance = grids["full"].chances(0)["joint"]
    metrics = {f"joint_{kind}": (f"joint, {kind}", chance) for kind in KINDS} | {f"distance_{kind}": (f"distance to none, {kind} (nats a token)", None) for kind in KINDS[:3]}
    found, kept = {}, {}
    for subject in compare.subjects(args):
        scores = compare.scored(subject, args, (cell for grid in grids.values() for entry in entries for cell in grid.joint_cells(entry)))
        values = {f"joint_{kind}": [joint.value(*grid.pmi(scores, entry)) for entry in entries] for kind, grid in grids.items()}
        values |= {f"distance_{kind}": [distance(grids[kind], grids["none"], scores, entry) for entry in entries] for kind in KINDS[:3]}
        found[subject.label], drawn = values, statistics.draws(len(entries))
        kept[subject.label] = {kind: {"joint": statistics.ratio(values[f"joint_{kind}"], values["joint_full"], drawn),
                                      "distance": statistics.ratio(values[f"distance_{kind}"], values["distance_full"], drawn)} for kind in ("dropped", "vague")}
    notes = [f"\nKept of the full instruction, {label}, {kind}: joint {compare.shown(r['joint'])}, distance {compare.shown(r['distance'])}."
             for label, by_kind in kept.items() for kind, r in by_kind.items()]
    compare.write(args, compare.report("underspecified", args, metrics, found, len(entries), kept=kept, notes=notes))


def distance(grid, without, scores, entry):
    """Mean over instructions of |difference of the log-prob of y_{x,j}| per token."""
    pairs = [(grid.cell(j, entry, entry, j), without.cell(j, entry, entry, j)) for j in grid.names]
    return compare.mean([abs(scores[a] - scores[b]) / scores.tokens(a) for a, b in pairs])
