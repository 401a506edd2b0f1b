"""What is left when the instruction is half said? Joint under an instruction with its clause dropped, a vague one, and none, against the full one;
and how far each moves the model from the behaviour without instruction. See metrics/underspecified.py.

Of several texts of one kind, the n-th prompt gets the n-th, in turn.
"""

import numpy as np

from ecliptica.evaluation import compare
from ecliptica.evaluation.grid import Grid
from ecliptica.evaluation.metrics import joint, underspecified
from ecliptica.evaluation.suites.switch import add_bank_arguments, measured
from ecliptica.isd.sets import CLEAR, SETS, load_underspecified

SAID = ("full", *CLEAR)  # dropped, vague


def add_arguments(parser):
    compare.add_arguments(parser)
    add_bank_arguments(parser)
    parser.add_argument(
        "--data",
        default=SETS / "underspecified.toml",
        help="TOML: a table an instruction, with dropped and vague",
    )


def run(args):
    bank, entries, instructions = measured(args)
    half, full = (
        load_underspecified(args.data, list(instructions)),
        compare.wordings(args, instructions),
    )

    def wording(kind, n):
        return (
            full
            if kind in ("full", "none")
            else {name: half[name][kind][n % len(half[name][kind])] for name in full}
        )

    grids = {
        kind: [
            Grid(
                bank,
                [entry],
                wording(kind, n),
                "no instruction" if kind == "none" else "instruction",
            )
            for n, entry in enumerate(entries)
        ]
        for kind in (*SAID, "none")
    }
    chance = float(np.mean([grid.chances(0)["joint"] for grid in grids["full"]]))
    found, subjects = {}, compare.subjects(args)
    for subject in subjects:
        scores = compare.scored(
            subject,
            args,
            (
                cell
                for row in grids.values()
                for grid in row
                for cell in grid.joint_cells(grid.entries[0])
            ),
        )
        values = {
            f"joint_{kind}": [joint.value(*grid.pmi(scores, grid.entries[0])) for grid in row]
            for kind, row in grids.items()
        }
        values |= {
            f"change_{kind}": np.subtract(values[f"joint_{kind}"], values["joint_full"]).tolist()
            for kind in (*CLEAR, "none")
        }
        values |= {
            f"distance_{kind}": [
                distance(*pair, scores) for pair in zip(grids[kind], grids["none"])
            ]
            for kind in SAID
        }
        found[subject.label] = values

    def share(of, kind):
        return np.divide, {
            label: [values[f"{of}_{kind}"], values[f"{of}_full"]] for label, values in found.items()
        }

    derived = {
        f"kept_{kind}": (f"joint kept, {kind}", 1.0, *share("joint", kind))
        for kind in (*CLEAR, "none")
    }
    derived |= {
        f"moved_{kind}": (
            f"distance to none over that of full, {kind}",
            1.0,
            *share("distance", kind),
        )
        for kind in CLEAR
    }
    metrics = {f"joint_{kind}": (f"joint, {kind}", chance) for kind in grids} | {
        f"change_{kind}": (f"joint, {kind} - full", 0.0) for kind in (*CLEAR, "none")
    }
    metrics |= {
        f"distance_{kind}": (f"distance to none, {kind} (nats a token)", None) for kind in SAID
    }
    compare.write(
        args,
        compare.report(
            "underspecified",
            args,
            metrics,
            found,
            len(entries),
            derived=derived,
            headline="kept_dropped",
            made=compare.made(subjects, args),
        ),
    )


def distance(grid, without, scores):
    """metrics.underspecified.distance of the one prompt of both grids."""
    cells, entry = grid.matrix(grid.entries[0]), grid.entries[0]
    unsaid = [scores[without.cell(k, entry, entry, k)] for k in grid.names]
    return underspecified.distance(
        grid.square(scores, entry), unsaid, [scores.tokens(cell) for cell in cells[0]]
    )
