"""Prompt match: share of instructions j under which log pi(y_{x,j} | I_j, x') over x and N distractor prompts x' is highest at x.

The same string under every prompt, so response length plays no part. Chance 1/(N + 1). Blind to the instruction.
"""

import numpy as np

from ecliptica.evaluation.metrics import top_share

TITLE = "prompt match"


def value(own_J, others_JN):
    return float(
        np.mean(
            [top_share(np.concatenate([[own], others]), 0) for own, others in zip(own_J, others_JN)]
        )
    )


def chance(distractors):
    return 1 / (distractors + 1)
