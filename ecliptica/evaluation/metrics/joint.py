"""Joint (headline): share of instructions j under which y_{x,j} beats, in its own context (I_j, x), every response to another
instruction (x, k), to another prompt (x', j), and to both (x', k), by PMI against a content-free context:

    PMI(y; c) = log pi(y | c) - log pi(y | "N/A", no instruction)

PMI takes out what a response's length and fluency give it in any context. Right instruction *and* right prompt are needed: a model
that ignores either is at chance among the candidates that it cannot tell apart. Chance 1/(1 + number of rivals), stated per run.
"""

import numpy as np

from ecliptica.evaluation.metrics import top_share

TITLE, CONTENT_FREE = "joint", "N/A"


def value(own_J, rivals_JC):
    return float(np.mean(by_instruction(own_J, rivals_JC)))


def by_instruction(own_J, rivals_JC):
    """[share of instruction j]. own_J: PMI of y_{x,j} in (I_j, x). rivals_JC: PMI, in that same context, of everything it has to beat."""
    return [top_share(np.concatenate([[own], rivals]), 0) for own, rivals in zip(own_J, rivals_JC)]


def chance(rivals):
    return 1 / (rivals + 1)
