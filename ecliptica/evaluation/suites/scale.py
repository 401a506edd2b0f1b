"""How many instructions can the model tell apart? Column accuracy of the references with 10, 20, 50 and 100 candidate instructions.

The further instructions have no references of their own: they compete for those of the first ones. Chance 1/candidates. A second table says, axis
by axis, which of them the responses go to (metrics/candidates.py).
"""

import numpy as np

from ecliptica.evaluation import compare, statistics
from ecliptica.evaluation.cells import Cell
from ecliptica.evaluation.metrics import candidates, column_accuracy
from ecliptica.evaluation.suites.switch import add_bank_arguments, measured
from ecliptica.isd.bank import MORE_INSTRUCTIONS, load_axes, load_instructions
from model.errors import InputError

SIZES = (10, 20, 50, 100)


def add_arguments(parser):
    compare.add_arguments(parser)
    add_bank_arguments(parser)
    parser.add_argument(
        "--more", default=MORE_INSTRUCTIONS, help="TOML of further instructions, a table an axis"
    )
    parser.add_argument(
        "--sizes",
        help=f"numbers of candidate instructions, comma-separated (default: those of {', '.join(map(str, SIZES))} that there are)",
    )


def run(args):
    _, entries, instructions = measured(args)
    own, more, axes = (
        compare.wordings(args, instructions),
        compare.wordings(args, load_instructions(args.more)),
        load_axes(args.more),
    )
    if both := set(own) & set(more):
        raise InputError(f"{args.more}: {min(both)} is in {args.instructions} too; ids must differ")
    ordered = {**own, **{name: more[name] for name in spread(more, axes)}}
    sizes = parsed(args.sizes, len(own), len(ordered))
    names = list(ordered)[: sizes[0]]
    groups = [None if name in own else axes[name] or "no axis" for name in names]
    metrics = {
        f"candidates_{n}": (f"column accuracy of {n}", column_accuracy.chance(n)) for n in sizes
    }

    def cell(entry, j, k):
        return Cell(
            ordered[j],
            entry.prompt,
            entry.responses[k],
            {"prompt": entry.id, "instruction": j, "response_to": entry.id, "response": k},
        )

    found, taken, subjects, drawn = {}, {}, compare.subjects(args), statistics.draws(len(entries))
    for subject in subjects:
        scores = compare.scored(
            subject, args, (cell(entry, j, k) for entry in entries for j in names for k in own)
        )
        tables = [
            np.array([[scores[cell(entry, j, k)] for k in own] for j in names]) for entry in entries
        ]
        found[subject.label] = {
            f"candidates_{n}": [column_accuracy.value(s_JK[:n]) for s_JK in tables] for n in sizes
        }
        rows = [candidates.shares(s_JK, groups) for s_JK in tables]
        taken[subject.label] = {
            group: statistics.summary([row[group] for row in rows], drawn) for group in rows[0]
        }
    compare.write(
        args,
        compare.report(
            "scale",
            args,
            metrics,
            found,
            len(entries),
            taken=taken,
            notes=notes(taken, groups, len(own)),
            made=compare.made(subjects, args),
        ),
    )


def notes(taken, groups, own):
    """The second table, what takes most of the control's responses first."""
    labels = list(taken)
    level = {candidates.OWN: 1, candidates.OTHER: own - 1} | {
        group: groups.count(group) for group in filter(None, groups)
    }
    ordered = sorted(
        taken[labels[0]],
        key=lambda group: (group != candidates.OWN, -taken[labels[0]][group]["value"]),
    )
    lines = [
        f"\nWhere the responses go with {len(groups)} candidates; chance: the group's share of the candidates.\n",
        "| taken by | chance | " + " | ".join(labels) + " |",
        "| " + " | ".join(["---"] * (len(labels) + 2)) + " |",
    ]
    return lines + [
        f"| {group} | {level[group] / len(groups):.3g} | "
        + " | ".join(compare.shown(taken[label][group]) for label in labels)
        + " |"
        for group in ordered
    ]


def spread(more, axes):
    """Ids of the further instructions, one of each axis in turn, so that a cut at any number takes from all axes."""
    by_axis = {}
    for name in more:
        by_axis.setdefault(axes[name], []).append(name)
    most = max(map(len, by_axis.values()))
    return [names[n] for n in range(most) for names in by_axis.values() if n < len(names)]


def parsed(text, least, most):
    """Sizes, largest first."""
    if text is None:
        return [n for n in reversed(SIZES) if least <= n <= most] or [most]
    try:
        sizes = sorted({int(part) for part in text.split(",")}, reverse=True)
    except ValueError as error:
        raise InputError(f"--sizes {text}: expected whole numbers, comma-separated") from error
    if sizes[-1] < least or sizes[0] > most:
        raise InputError(
            f"--sizes {text}: from {least}, those with references, to {most}, all there are"
        )
    return sizes
