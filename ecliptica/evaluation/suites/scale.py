"""How many instructions can the model tell apart? Column accuracy of the references with 10, 20, 50 and 100 candidate instructions.

The further instructions have no references of their own: they compete for those of the first ones. Chance 1/candidates.
"""

import numpy as np

from ecliptica.evaluation import compare
from ecliptica.evaluation.cells import Cell
from ecliptica.evaluation.metrics import column_accuracy
from ecliptica.evaluation.suites.switch import add_bank_arguments, measured
from ecliptica.isd.bank import MORE_INSTRUCTIONS, load_axes, load_instructions
from model.errors import InputError


def add_arguments(parser):
    compare.add_arguments(parser)
    add_bank_arguments(parser)
    parser.add_argument("--more", default=MORE_INSTRUCTIONS, help="TOML of further instructions, a table an axis")
    parser.add_argument("--sizes", default="10,20,50,100", help="numbers of candidate instructions")


def run(args):
    _, entries, instructions = measured(args)
    own, more, axes = compare.wordings(args, instructions), compare.wordings(args, load_instructions(args.more)), load_axes(args.more)
    if both := set(own) & set(more):
        raise InputError(f"{args.more}: {min(both)} is in {args.instructions} too; ids must differ")
    ordered = {**own, **{name: more[name] for name in spread(more, axes)}}
    sizes = parsed(args.sizes, len(own), len(ordered))
    metrics = {f"candidates_{n}": (f"column accuracy of {n}", column_accuracy.chance(n)) for n in sizes}
    found, stolen = {}, {}
    names = list(ordered)[: max(sizes)]
    for subject in compare.subjects(args):
        def cell(entry, j, k):
            return Cell(ordered[j], entry.prompt, entry.responses[k], {"prompt": entry.id, "instruction": j, "response_to": entry.id, "response": k})

        scores = compare.scored(subject, args, (cell(entry, j, k) for entry in entries for j in names for k in own))
        tables = [np.array([[scores[cell(entry, j, k)] for k in own] for j in names]) for entry in entries]
        found[subject.label] = {f"candidates_{n}": [column_accuracy.value(s_JK[:n]) for s_JK in tables] for n in sizes}
        won = [axes.get(names[j], "own or canonical") for s_JK in tables for j in s_JK.argmax(0)]
        stolen[subject.label] = {axis: won.count(axis) / len(won) for axis in dict.fromkeys(["own or canonical", *axes.values()])}
    notes = [f"\nWhere the responses go with {max(sizes)} candidates, {label}: " + ", ".join(f"{axis} {share:.2f}" for axis, share in sorted(shares.items(), key=lambda item: -item[1])) + "."
             for label, shares in stolen.items()]
    compare.write(args, compare.report("scale", args, metrics, found, len(entries), stolen=stolen, notes=notes))


def spread(more, axes):
    """Ids of the further instructions, one of each axis in turn, so that a cut at any number takes from all axes."""
    seen = {}
    return sorted(more, key=lambda name: (seen.setdefault(axes[name], []).append(name) or len(seen[axes[name]]), list(dict.fromkeys(axes.values())).index(axes[name])))


def parsed(text, least, most):
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise InputError(f"--sizes {text}: expected whole numbers, comma-separated") from error
    if sizes[0] < least or sizes[-1] > most:
        raise InputError(f"--sizes {text}: from {least}, those with references, to {most}, all there are")
    return sizes
