"""Switch (primary): share of instruction pairs a < b with s_aa + s_bb - s_ab - s_ba > 0. Length
and response prior cancel.

Blind to the prompt, and it saturates early on raw likelihood. A tie, which is what a model that
ignores the instruction gives, counts one half. In an incomplete design (design.py) the pairs are
those of the asked responses, at least two.
"""

import numpy as np

from ecliptica.evaluation.grid import read_square, square
from ecliptica.evaluation.metrics import NAN, Metric

TITLE = "switch"
CHANCE = 0.5


def value(s_JK: np.ndarray) -> float:
    if np.isnan(s_JK).any():
        return NAN
    # [j, k]: what response k gains from its own instruction over j; exactly 0 if the instruction
    # is ignored.
    own_JK = np.diag(s_JK)[None, :] - s_JK
    gain = (own_JK + own_JK.T)[np.triu_indices(len(s_JK), 1)]
    return float(np.mean((gain > 0) + 0.5 * (gain == 0)))


METRICS = (
    Metric(
        "switch",
        TITLE,
        CHANCE,
        blind_to="the prompt",
        questions=square,
        value=lambda cross, answers: value(read_square(cross, answers)),
        reads="grid",
    ),
)
