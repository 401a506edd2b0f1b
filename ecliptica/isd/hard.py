"""The hardest wrong responses that are still balanced.

s(j, k, x) = log pi(y_{x,k} | I_j, x). For each prompt x the rejected response of instruction j is y_{x,sigma(j)}, where the permutation
sigma has no fixed point and maximises sum_j s(j, sigma(j), x). Every response is taken once, so whatever belongs to a response alone
(its length, how usual it is) or to a context alone is the same in every sum and decides nothing: what is left is confusion.
"""

import math

import numpy as np

from ecliptica.fields import text
from ecliptica.files import read_records
from model.errors import InputError

NO_SCORE = {"kl", "jsd", "r"}  # what lines of a ledger say that answer other questions


def read_scores(path, names, system=None):
    """({prompt id: s_JK}, system) from lines {"prompt", "instruction", "response_to", "response", "logp"[, "system"]}, as `eval.py switch` writes
    its samples.jsonl. Of several systems the named one, or the last in the file. Raises InputError naming a line or a missing cell."""
    cells = [cell for cell in read_records(path, _cell) if cell]
    if not cells:
        raise InputError(
            f"{path}: no score under an instruction in it; expected the samples.jsonl of eval.py switch"
        )
    systems = list(dict.fromkeys(cell[0] for cell in cells))
    wanted = systems[-1] if system is None else system
    if wanted not in systems:
        raise InputError(f"{path}: no system {wanted!r}; it has {', '.join(map(repr, systems))}")
    own = [
        cell for cell in cells if cell[0] == wanted and cell[1] == cell[3]
    ]  # other cells score a response at a distractor prompt
    index, scores = {name: n for n, name in enumerate(names)}, {}
    for _, prompt, j, _, k, logp in own:
        s_JK = scores.setdefault(prompt, np.full((len(index), len(index)), np.nan))
        if j in index and k in index:
            s_JK[index[j], index[k]] = logp
    for prompt, s_JK in scores.items():
        for j, k in np.argwhere(np.isnan(s_JK)):
            raise InputError(
                f"{path}: {prompt} has no score of the response {names[k]!r} under the instruction {names[j]!r}; hard negatives need every cell"
            )
    return scores, wanted


def _cell(record, where):
    """(system, prompt, instruction, owner, response, logp) of a line; None for a control (no
    instruction, scrambled prompt, content-free) and for what is no score (a KL, a divergence)."""
    if record.get("condition", "instruction") != "instruction" or NO_SCORE & record.keys():
        return None
    logp = record.get("logp")
    if type(logp) not in (int, float) or not math.isfinite(logp):
        raise InputError(f"{where}: 'logp' must be a finite number, got {logp!r}")
    fields = (
        text(record, key, where) for key in ("prompt", "instruction", "response_to", "response")
    )
    return (text(record, "system", where, required=False) or "", *fields, float(logp))


def hardest(s_JK):
    """sigma, a list: the permutation without a fixed point that maximises sum_j s(j, sigma(j))."""
    cost = -np.asarray(s_JK, dtype=float)
    cost -= cost.mean(axis=0, keepdims=True)  # the same for every sigma; keeps the numbers small
    np.fill_diagonal(
        cost, (np.ptp(cost) + 1) * len(cost)
    )  # dearer than any permutation without a fixed point
    return assignment(cost)


def assignment(cost_NN):
    """columns, a list: the assignment of rows to columns with the least total cost. Shortest augmenting paths (Kuhn-Munkres), O(N^3)."""
    size = len(cost_NN)
    row_price, column_price = np.zeros(size + 1), np.zeros(size + 1)
    row_of = np.full(size + 1, -1)  # of each column; the last column is where a path starts
    for row in range(size):
        row_of[size], column = row, size
        best, came_from, done = (
            np.full(size + 1, np.inf),
            np.full(size + 1, size),
            np.zeros(size + 1, dtype=bool),
        )
        while row_of[column] >= 0:
            done[column] = True
            at = row_of[column]
            reduced = cost_NN[at] - row_price[at] - column_price[:size]
            nearer = ~done[:size] & (reduced < best[:size])
            best[:size][nearer], came_from[:size][nearer] = reduced[nearer], column
            following = int(np.argmin(np.where(done[:size], np.inf, best[:size])))
            step = best[following]
            row_price[row_of[done]] += step
            column_price[done] -= step
            best[~done] -= step
            column = following
        while column != size:
            row_of[column], column = row_of[came_from[column]], came_from[column]
    columns = np.empty(size, dtype=int)
    columns[row_of[:size]] = np.arange(size)
    return columns.tolist()
