"""Generation fidelity: does a free answer show its instruction, and does it answer its prompt?

instruction: a classifier trained on the train split's references (naive Bayes over words, word pairs, length and format) names the instruction
it was generated under. Chance 1/K; its accuracy on references it never saw is published beside it, since it bounds what can be read.
prompt: the answer's TF-IDF vector is nearer to its own prompt's text than to those of 9 distractors. Chance 1/10.
both: the two at once, for the same answer. Chance 1/(10 K). An empty answer is wrong in all three.
"""

import math
import re
from collections import Counter

import numpy as np

from ecliptica.evaluation.metrics import top_share

TITLES = {"both": "generation fidelity (instruction and prompt)", "instruction": "instruction recognised", "prompt": "prompt retrieved"}


def words(text):
    return re.findall(r"[\w']+", text.lower())


def features(text):
    """Counts of words, word pairs, and what the eye sees: length, questions, lists, paragraphs."""
    said = words(text)
    found = Counter(said)
    found.update(" ".join(pair) for pair in zip(said, said[1:]))
    found[f"<length {int(math.log2(len(said) + 1) * 2)}>"] += 3
    found.update({"<question>": 2 * text.count("?"), "<exclaims>": text.count("!"), "<list>": len(re.findall(r"^\s*(?:[-*]|\d+\.)\s", text, re.M)),
                  "<paragraphs>": text.count("\n\n"), "<ends in a question>": 3 * text.rstrip().endswith("?")})
    return +found


class Classifier:
    """Multinomial naive Bayes with Laplace smoothing and equal priors."""

    def __init__(self, texts, labels):
        self.labels = list(dict.fromkeys(labels))
        counts = {label: Counter() for label in self.labels}
        for text, label in zip(texts, labels):
            counts[label].update(features(text))
        self.vocabulary = set().union(*counts.values())
        self.logp = {label: {"": -math.log(c.total() + len(self.vocabulary)), **{f: math.log((n + 1) / (c.total() + len(self.vocabulary))) for f, n in c.items()}}
                     for label, c in counts.items()}

    def scores(self, text):
        """Log-likelihood of a text by label, in the order of `labels`."""
        found = {f: n for f, n in features(text).items() if f in self.vocabulary}
        return np.array([sum(n * self.logp[label].get(f, self.logp[label][""]) for f, n in found.items()) for label in self.labels])

    def share(self, text, label):
        """1 if the text is taken for `label`'s, a share of a tie, else 0."""
        return top_share(self.scores(text), self.labels.index(label)) if text.strip() else 0.0


class Retrieval:
    """TF-IDF over prompts; cosine of an answer with each."""

    def __init__(self, prompts):
        """prompts: {id: text}."""
        self.count = Counter(word for text in prompts.values() for word in set(words(text)))
        self.size, self.vectors = len(prompts), {}
        self.vectors = {id: self.vector(text) for id, text in prompts.items()}

    def vector(self, text):
        found = {word: n * math.log((1 + self.size) / (1 + self.count[word])) for word, n in Counter(words(text)).items() if word in self.count}
        length = math.sqrt(sum(v * v for v in found.values())) or 1.0
        return {word: v / length for word, v in found.items()}

    def share(self, text, own, others):
        """1 if `own` is the nearest prompt of [own, *others], a share of a tie, else 0."""
        vector = self.vector(text)
        near = [sum(v * self.vectors[id].get(word, 0.0) for word, v in vector.items()) for id in (own, *others)]
        return top_share(near, 0) if text.strip() else 0.0
