"""A balanced incomplete design: of the responses to a prompt only some are asked, so that the same
minutes buy more prompts. Prompts are what intervals resample, so more of them is the better use.

Which responses is drawn once, from a seed: each equally often over the prompts (counts differ by
at most one), and each pair about equally often. No response is treated unlike another, so a mean
over prompts and over the asked responses, or over their pairs, has the mean of the full design.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np


def drawn(
    prompts: Sequence[str], names: Sequence[str], each: int, seed: int = 0
) -> dict[str, tuple[str, ...]]:
    """{prompt: the `each` names of it that are asked, in the order of `names`}.

    The first prompts have the same whatever follows them.
    """
    generator = np.random.default_rng(seed)
    asked_of = Counter()
    together = Counter()
    design = {}
    for prompt in prompts:
        chosen = []
        while len(chosen) < each:
            # The least asked so far; of these whoever stood least beside those chosen; then luck.
            left = [name for name in names if name not in chosen]
            luck = generator.permutation(len(left))
            ranks = []
            for name, lot in zip(left, luck):
                beside = sum(together[frozenset((name, other))] for other in chosen)
                ranks.append((asked_of[name], beside, lot, name))
            chosen.append(min(ranks)[-1])
        asked_of.update(chosen)
        together.update(frozenset((a, b)) for a in chosen for b in chosen if a < b)
        design[prompt] = tuple(name for name in names if name in chosen)
    return design
