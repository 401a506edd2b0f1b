"""Can chosen be told from rejected by the response alone? Then a model would learn what good
responses look like, and not what the instruction asks for. Naive Bayes over words and length, AUC
on pairs of prompts that it has not seen: 0.5 is no better than a coin."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ecliptica.isd.similarity import words

Pair = dict  # with "chosen" and "rejected"


def response_only_auc(train_pairs: Sequence[Pair], test_pairs: Sequence[Pair]) -> float:
    """AUC of chosen above rejected, ties half, of a classifier fitted to the responses of
    `train_pairs`."""
    weight = log_odds(train_pairs)

    def scores(side: str) -> np.ndarray:
        return np.array(
            [sum(weight.get(f, 0.0) for f in features(pair[side])) for pair in test_pairs]
        )

    return auc(scores("chosen"), scores("rejected"))


def log_odds(pairs: Sequence[Pair]) -> dict[str, float]:
    """{feature: log of how much more usual it is in chosen than in rejected responses}, Laplace
    smoothed."""
    chosen = Counter(feature for pair in pairs for feature in features(pair["chosen"]))
    rejected = Counter(feature for pair in pairs for feature in features(pair["rejected"]))
    vocabulary = set(chosen) | set(rejected)
    of_chosen = chosen.total() + len(vocabulary)
    of_rejected = rejected.total() + len(vocabulary)
    return {
        f: math.log((chosen[f] + 1) / of_chosen) - math.log((rejected[f] + 1) / of_rejected)
        for f in vocabulary
    }


def features(response: str) -> list[str]:
    in_order = words(response)
    return [*in_order, f"{len(in_order) // 5 * 5} words or more"]


def auc(good: np.ndarray, bad: np.ndarray) -> float:
    """The share of (good, bad) pairs in order, ties half."""
    order = np.sort(bad)
    below = np.searchsorted(order, good, "left")
    not_above = np.searchsorted(order, good, "right")
    return float((below + not_above).sum() / (2 * len(good) * len(bad)))
