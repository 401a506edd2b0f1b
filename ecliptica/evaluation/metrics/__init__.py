"""One file, one metric: its definition, its chance level, and the value of one prompt. Prompts are what intervals resample.

s_JK[j, k] = s(j, k, x) = log pi(y_{x,k} | I_j, x), response tokens only, for one prompt x.
"""

import numpy as np


def top_share(values, index):
    """1 if `index` is the maximum, 1/n if it shares it with n - 1 others, else 0: a blind model gets chance, not luck of the order."""
    values = np.asarray(values)
    top = values == values.max()
    return float(top[index] / top.sum())
