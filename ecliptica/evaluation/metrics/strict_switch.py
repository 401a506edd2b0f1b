"""Strict switch: share of pairs a < b where each instruction prefers its own response outright, s_aa > s_ab and s_bb > s_ba.

Response length and prior do not cancel, so its chance level is that of these very scores with the responses' labels permuted.
"""

import numpy as np

TITLE = "strict switch"


def value(s_JK):
    wins = np.diag(s_JK)[:, None] > s_JK
    return float(np.mean((wins & wins.T)[np.triu_indices(len(s_JK), 1)]))


def chance(s_JK, generator, permutations=100):
    return float(
        np.mean([value(s_JK[:, generator.permutation(len(s_JK))]) for _ in range(permutations)])
    )
