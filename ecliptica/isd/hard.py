"""The hardest wrong responses that are still balanced.

s(j, k, x) = log pi(y_{x,k} | I_j, x). For each prompt x the rejected response of instruction j is
y_{x,sigma(j)}, where the permutation sigma has no fixed point and maximises sum_j s(j, sigma(j),
x). Every response is taken once, so whatever belongs to a response alone (its length, how usual it
is) or to a context alone is the same in every sum and decides nothing: what is left is confusion.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ecliptica.fields import Record, text
from ecliptica.files import read_records
from model.errors import InputError

# What lines of a ledger hold that are no score: a KL, a divergence, a generated text.
NO_SCORE = {"kl", "jsd", "r"}


class Score(NamedTuple):
    """A line: log pi of the response to `response`, written for the prompt `owner`, under an
    instruction at a prompt."""

    system: str
    prompt: str
    instruction: str
    owner: str
    response: str
    logp: float


def read_scores(
    path: str | Path, names: Sequence[str], system: str | None = None
) -> tuple[dict[str, np.ndarray], str]:
    """({prompt id: s_JK}, system) from lines {"prompt", "instruction", "response_to", "response",
    "logp"[, "system"]}, as `eval.py switch` writes its samples.jsonl.

    Of several systems the named one, or the last in the file. Raises InputError naming a line or a
    missing score.
    """
    lines = [line for line in read_records(path, _score) if line]
    if not lines:
        raise InputError(
            f"{path}: no score under an instruction in it; expected the samples.jsonl of eval.py "
            "switch"
        )
    systems = list(dict.fromkeys(line.system for line in lines))
    wanted = systems[-1] if system is None else system
    if wanted not in systems:
        raise InputError(f"{path}: no system {wanted!r}; it has {', '.join(map(repr, systems))}")

    # Other lines score a response at a distractor prompt.
    own = [line for line in lines if line.system == wanted and line.prompt == line.owner]
    index = {name: number for number, name in enumerate(names)}
    scores = {}
    for line in own:
        empty = np.full((len(index), len(index)), np.nan)
        s_JK = scores.setdefault(line.prompt, empty)
        if line.instruction in index and line.response in index:
            s_JK[index[line.instruction], index[line.response]] = line.logp
    for prompt, s_JK in scores.items():
        for j, k in np.argwhere(np.isnan(s_JK)):
            raise InputError(
                f"{path}: {prompt} has no score of the response {names[k]!r} under the instruction "
                f"{names[j]!r}; hard negatives need every cell"
            )
    return scores, wanted


def _score(record: Record, where: str) -> Score | None:
    """None for a control (no instruction, scrambled prompt, content-free), and for what is no
    score."""
    if record.get("condition", "instruction") != "instruction" or NO_SCORE & record.keys():
        return None
    logp = record.get("logp")
    if type(logp) not in (int, float) or not math.isfinite(logp):
        raise InputError(f"{where}: 'logp' must be a finite number, got {logp!r}")
    return Score(
        system=text(record, "system", where, required=False) or "",
        prompt=text(record, "prompt", where),
        instruction=text(record, "instruction", where),
        owner=text(record, "response_to", where),
        response=text(record, "response", where),
        logp=float(logp),
    )


def hardest(s_JK: np.ndarray) -> list[int]:
    """sigma: the permutation without a fixed point that maximises sum_j s(j, sigma(j))."""
    cost_JK = -np.asarray(s_JK, dtype=float)
    # The same for every sigma; keeps the numbers small.
    cost_JK -= cost_JK.mean(axis=0, keepdims=True)
    # Dearer than any permutation without a fixed point.
    np.fill_diagonal(cost_JK, (np.ptp(cost_JK) + 1) * len(cost_JK))
    return assignment(cost_JK)


def assignment(cost_NN: np.ndarray) -> list[int]:
    """columns: the assignment of rows to columns with the least total cost. Shortest augmenting
    paths (Kuhn-Munkres), O(N^3)."""
    size = len(cost_NN)
    start = size  # a column that is none: where every path starts
    row_price = np.zeros(size + 1)
    column_price = np.zeros(size + 1)
    row_of = np.full(size + 1, -1)  # of each column; -1: free
    for row in range(size):
        # The cheapest path from this row to a free column, by reduced costs.
        row_of[start] = row
        column = start
        best = np.full(size + 1, np.inf)
        came_from = np.full(size + 1, start)
        visited = np.zeros(size + 1, dtype=bool)
        while row_of[column] >= 0:
            visited[column] = True
            at = row_of[column]
            reduced = cost_NN[at] - row_price[at] - column_price[:size]
            nearer = ~visited[:size] & (reduced < best[:size])
            best[:size][nearer] = reduced[nearer]
            came_from[:size][nearer] = column

            # On to the nearest column; prices change so that its reduced cost is 0.
            following = int(np.argmin(np.where(visited[:size], np.inf, best[:size])))
            step = best[following]
            row_price[row_of[visited]] += step
            column_price[visited] -= step
            best[~visited] -= step
            column = following

        # Back along the path: every column takes the row of the one before it.
        while column != start:
            row_of[column] = row_of[came_from[column]]
            column = came_from[column]
    columns = np.empty(size, dtype=int)
    columns[row_of[:size]] = np.arange(size)
    return columns.tolist()
