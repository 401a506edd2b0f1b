"""Switch (primary): share of instruction pairs a < b with s_aa + s_bb - s_ab - s_ba > 0. Length and response prior cancel.

Blind to the prompt, and it saturates early on raw likelihood. A tie, which is what a model that ignores the instruction
gives, counts one half.
"""

import numpy as np

TITLE, CHANCE = "switch", 0.5


def value(s_JK):
    own = (
        np.diag(s_JK)[None, :] - s_JK
    )  # [j, k]: what response k gains from its own instruction over j; exactly 0 if the instruction is ignored
    gain = (own + own.T)[np.triu_indices(len(s_JK), 1)]
    return float(np.mean((gain > 0) + 0.5 * (gain == 0)))
