"""Column accuracy: share of responses k whose most favourable instruction is their own, argmax_j s(j, k, x) = k.

The same string under every instruction, so response length plays no part. Chance 1/J for J instructions. Blind to the prompt.
"""

import numpy as np

from ecliptica.evaluation.metrics import top_share

TITLE = "column accuracy"


def value(s_JK, own=None):
    return float(np.mean(by_response(s_JK, own)))


def by_response(s_JK, own=None):
    """[share of response k]. own: for each column, the row of its own instruction (default: square, k). More rows than columns: the scale test."""
    own = range(s_JK.shape[1]) if own is None else own
    return [top_share(s_JK[:, k], j) for k, j in enumerate(own)]


def chance(instructions):
    return 1 / instructions
