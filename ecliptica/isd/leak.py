"""Can chosen be told from rejected by the response alone? Then a model would learn what good responses look like, and not what the
instruction asks for. Naive Bayes over words and length, AUC on pairs of prompts that it has not seen: 0.5 is no better than a coin."""

import math
from collections import Counter

import numpy as np

from ecliptica.isd.similarity import words


def response_only_auc(train_pairs, test_pairs):
    """AUC of chosen above rejected, ties half, of a classifier fitted to the responses of `train_pairs`."""
    counts = {
        side: Counter(feature for pair in train_pairs for feature in features(pair[side]))
        for side in ("chosen", "rejected")
    }
    vocabulary = set(counts["chosen"]) | set(counts["rejected"])
    total = {side: sum(found.values()) + len(vocabulary) for side, found in counts.items()}
    weight = {
        f: math.log((counts["chosen"][f] + 1) / total["chosen"])
        - math.log((counts["rejected"][f] + 1) / total["rejected"])
        for f in vocabulary
    }
    good, bad = (
        np.array([sum(weight.get(f, 0.0) for f in features(pair[side])) for pair in test_pairs])
        for side in ("chosen", "rejected")
    )
    return auc(good, bad)


def features(response):
    found = words(response)
    return [*found, f"{len(found) // 5 * 5} words or more"]


def auc(good, bad):
    """The share of (good, bad) pairs in order, ties half."""
    order = np.sort(bad)
    below, not_above = np.searchsorted(order, good, "left"), np.searchsorted(order, good, "right")
    return float((below + not_above).sum() / (2 * len(good) * len(bad)))
