"""Paraphrase: what of a metric survives a rewording of the instruction, by (x, k): right under every wording; the mean of the worst wording.

Right under every wording is the smallest of the wordings' values, 1, 0 or the share of a tie. A model that takes the same instruction for every
response, or sees none, is right for 1/J under all of them; one that guesses anew under each wording for 1/J^W. The first, the higher, is
given as the chance level. The worst wording is chosen on the data, anew in every draw: its mean is a little below that of a fixed one.
"""

import numpy as np

ALL, WORST = "under every wording", "worst wording"


def value(shares_WK):
    """Mean over k of the smallest value over the wordings W."""
    return float(np.min(shares_WK, axis=0).mean())


def worst(*means_W):
    """The lowest of the wordings' means: what compare.report derives from their columns."""
    return np.min(means_W, axis=0)
