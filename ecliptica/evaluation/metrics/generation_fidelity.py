"""Generation fidelity: does a free answer show its instruction, and does it answer its prompt?

instruction: a classifier trained on the train split's references (naive Bayes over words, word pairs, length and format) names the instruction
  an answer was generated under. Chance 1/K. Its confusion on references it never saw is published beside it: it bounds what can be read.
prompt: of ten prompts of one domain, its own is the nearest by TF-IDF. A prompt's document is its text and, where all ten have references, those.
  Chance 1/10. Blind to the instruction; an answer that repeats the question passes.
both: the two at once, for the same answer. Chance 1/(10 K); a model that ignores the prompt has at most 1/10, one that ignores the instruction at most 1/K.
A tie counts its share, an empty answer is wrong in all three.
"""

import math
import re
from collections import Counter

import numpy as np

from ecliptica.evaluation.metrics import top_share

TITLES = {
    "both": "generation fidelity (instruction and prompt)",
    "instruction": "instruction recognised",
    "prompt": "prompt retrieved",
}


def words(text):
    return re.findall(r"[\w']+", text.lower())


def features(text):
    """Counts of words, word pairs, and what the eye sees: length, questions, lists, paragraphs."""
    said = words(text)
    found = Counter(said)
    found.update(" ".join(pair) for pair in zip(said, said[1:]))
    found[f"<length {int(math.log2(len(said) + 1) * 2)}>"] += 3
    found.update(
        {
            "<question>": 2 * text.count("?"),
            "<exclaims>": text.count("!"),
            "<list>": len(re.findall(r"^\s*(?:[-*]|\d+\.)\s", text, re.M)),
            "<paragraphs>": text.count("\n\n"),
            "<ends in a question>": 3 * text.rstrip().endswith("?"),
        }
    )
    return +found


class Classifier:
    """Multinomial naive Bayes with Laplace smoothing and equal priors."""

    def __init__(self, texts, labels):
        self.labels = list(dict.fromkeys(labels))
        counts = {label: Counter() for label in self.labels}
        for text, label in zip(texts, labels):
            counts[label].update(features(text))
        self.column = {
            feature: n for n, feature in enumerate(sorted(set().union(*counts.values())))
        }
        count_KF = np.array(
            [[c[feature] for feature in self.column] for c in counts.values()], dtype=np.float64
        )
        self.logp_FK = np.log(
            (count_KF + 1) / (count_KF.sum(1, keepdims=True) + len(self.column))
        ).T

    def shares(self, text):
        """{label: 1 if the text is taken for its, a share of a tie, else 0}; all 0 for an empty text."""
        found = {feature: n for feature, n in features(text).items() if feature in self.column}
        scores_K = (
            np.array(list(found.values()), dtype=np.float64)
            @ self.logp_FK[[self.column[f] for f in found]]
            if found
            else np.zeros(len(self.labels))
        )
        return {
            label: top_share(scores_K, n) if text.strip() else 0.0
            for n, label in enumerate(self.labels)
        }


class Retrieval:
    """TF-IDF over prompts and their references; cosine of an answer with each."""

    def __init__(self, documents):
        """documents: {id: (prompt, [references], none if there are none)}."""
        self.documents, self.kept = documents, {}
        self.count = Counter(
            word
            for prompt, references in documents.values()
            for word in set(words(" ".join([prompt, *references])))
        )

    def vector(self, text):
        found = {
            word: n * math.log((1 + len(self.documents)) / (1 + self.count[word]))
            for word, n in Counter(words(text)).items()
            if word in self.count
        }
        length = math.sqrt(sum(v * v for v in found.values())) or 1.0
        return {word: v / length for word, v in found.items()}

    def document(self, id, whole):
        if (id, whole) not in self.kept:
            prompt, references = self.documents[id]
            self.kept[id, whole] = self.vector(" ".join([prompt, *references]) if whole else prompt)
        return self.kept[id, whole]

    def share(self, text, own, others):
        """1 if `own` is the nearest prompt of [own, *others], a share of a tie, else 0."""
        ids, vector = (own, *others), self.vector(text)
        whole = all(
            self.documents[id][1] for id in ids
        )  # all with references, or none: a longer document has more to match
        near = [
            sum(v * self.document(id, whole).get(word, 0.0) for word, v in vector.items())
            for id in ids
        ]
        return top_share(np.round(near, 12), 0) if text.strip() else 0.0


def candidates(entry, bank, count=9):
    """Ids of the prompts that an answer to `entry` must be told from: its own domain first; with references first if it has them itself."""
    others = [other for other in bank if other.id != entry.id]
    others.sort(
        key=lambda other: (
            other.domain != entry.domain,
            bool(other.responses) != bool(entry.responses),
            other.split != entry.split,
        )
    )
    return [other.id for other in others[:count]]
