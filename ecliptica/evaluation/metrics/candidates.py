"""Where responses go among many candidate instructions: for one prompt, the share of its responses whose most favourable instruction is of each group.

Groups: the response's own instruction; another of the first ones; each axis of the further ones. A tie is dealt out evenly. A model that
ignores instructions gives each group its share of the candidates.
"""

import numpy as np

OWN, OTHER = "own", "another of the first"


def shares(s_JK, groups_J):
    """{group: share}. s_JK: more rows than columns, response k's own instruction in row k; groups_J: the group of each row, None for the first ones."""
    found = dict.fromkeys([OWN, OTHER, *filter(None, groups_J)], 0.0)
    top_JK = s_JK == s_JK.max(0)
    for (j, k), top in np.ndenumerate(top_JK):
        if top:
            found[OWN if j == k else groups_J[j] or OTHER] += 1 / top_JK[:, k].sum() / s_JK.shape[1]
    return found
