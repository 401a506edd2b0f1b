"""Does a rewording change the answer? Column accuracy under every wording of the instructions: each, the worst, and right under all."""

import numpy as np

from ecliptica.evaluation import compare
from ecliptica.evaluation.grid import Grid
from ecliptica.evaluation.metrics import column_accuracy
from ecliptica.evaluation.suites.switch import add_bank_arguments, measured


def add_arguments(parser):
    compare.add_arguments(parser)
    add_bank_arguments(parser)


def run(args):
    bank, entries, instructions = measured(args)
    wordings = min(map(len, instructions.values()))
    grids = [Grid(bank, entries, {name: texts[w] for name, texts in instructions.items()}) for w in range(wordings)]
    metrics = {f"wording_{w + 1}": (f"column accuracy, wording {w + 1}", column_accuracy.chance(len(instructions))) for w in range(wordings)}
    metrics["all"] = ("right under every wording", column_accuracy.chance(len(instructions)) ** wordings)
    found, worst = {}, {}
    for subject in compare.subjects(args):
        scores = compare.scored(subject, args, (cell for grid in grids for entry in entries for row in grid.matrix(entry) for cell in row))
        right_XWK = np.array([[right(grid, scores, entry) for grid in grids] for entry in entries])
        found[subject.label] = {f"wording_{w + 1}": right_XWK[:, w].mean(1).tolist() for w in range(wordings)} | {"all": right_XWK.prod(1).mean(1).tolist()}
        worst[subject.label] = int(right_XWK.mean((0, 2)).argmin()) + 1
    notes = ["\nWorst wording: " + "; ".join(f"{label} {w} ({compare.mean(found[label][f'wording_{w}']):.3f})" for label, w in worst.items()) + "."]
    compare.write(args, compare.report("paraphrase", args, metrics, found, len(entries), worst=worst, notes=notes))



def right(grid, scores, entry):
    """For each response k: is its own instruction the most favourable one? 1, 0, or a share of a tie."""
    return column_accuracy.by_response(np.array([[scores[cell] for cell in row] for row in grid.matrix(entry)]))
