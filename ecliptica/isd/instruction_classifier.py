"""Which instruction does a text show? Naive Bayes over words, word pairs, length and format."""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np


def words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def features(text: str) -> Counter:
    """Counts of words, word pairs, and what the eye sees: length, questions, lists, paragraphs."""
    in_order = words(text)
    counts = Counter(in_order)
    counts.update(" ".join(pair) for pair in zip(in_order, in_order[1:]))
    length = int(math.log2(len(in_order) + 1) * 2)
    counts[f"<length {length}>"] += 3
    counts["<question>"] += 2 * text.count("?")
    counts["<exclaims>"] += text.count("!")
    counts["<list>"] += len(re.findall(r"^\s*(?:[-*]|\d+\.)\s", text, re.M))
    counts["<paragraphs>"] += text.count("\n\n")
    counts["<ends in a question>"] += 3 * text.rstrip().endswith("?")
    return +counts


class InstructionClassifier:
    """Multinomial naive Bayes with Laplace smoothing and equal priors."""

    def __init__(self, texts: Sequence[str], labels: Sequence[str]):
        self.labels = list(dict.fromkeys(labels))
        counts = {label: Counter() for label in self.labels}
        for text, label in zip(texts, labels):
            counts[label].update(features(text))
        vocabulary = sorted(set().union(*counts.values()))
        self.column = {feature: n for n, feature in enumerate(vocabulary)}
        rows = [[count[feature] for feature in vocabulary] for count in counts.values()]
        count_KF = np.array(rows, dtype=np.float64)
        total_K1 = count_KF.sum(1, keepdims=True) + len(vocabulary)
        self.logp_FK = np.log((count_KF + 1) / total_K1).T

    def scores(self, text: str) -> np.ndarray:
        """[K]: the log-likelihood of a text's known features under each label."""
        scores_K = np.zeros(len(self.labels))
        known = {name: n for name, n in features(text).items() if name in self.column}
        if known:
            columns = [self.column[name] for name in known]
            scores_K = np.array(list(known.values()), dtype=np.float64) @ self.logp_FK[columns]
        return scores_K

    def log_probs(self, text: str) -> dict[str, float]:
        """{label: log P(label | text)}, in nats."""
        scores_K = self.scores(text)
        logp_K = scores_K - np.logaddexp.reduce(scores_K)
        return dict(zip(self.labels, logp_K.tolist()))
