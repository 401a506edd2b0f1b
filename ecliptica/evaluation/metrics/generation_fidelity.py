"""Generation fidelity: does a free answer show its instruction, and does it answer its prompt?

instruction: a classifier trained on the train split's references (naive Bayes over words, word
  pairs, length and format) names the instruction an answer was generated under. Chance 1/K. Its
  confusion on references it never saw is published beside it: it bounds what can be read.
prompt: of ten prompts of one domain, its own is the nearest by TF-IDF. A prompt's document is its
  text and, where all ten have references, those. Chance 1/10. Blind to the instruction; an answer
  that repeats the question passes.
both: the two at once, for the same answer. Chance 1/(10 K); a model that ignores the prompt has at
  most 1/10, one that ignores the instruction at most 1/K.
A tie counts its share, an empty answer is wrong in all three. cut: reached the token limit.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from ecliptica.evaluation.grid import DISTRACTORS
from ecliptica.evaluation.metrics import Metric, nothing, top_share
from ecliptica.isd.bank import Entry
from ecliptica.isd.instruction_classifier import InstructionClassifier, words

TITLES = {
    "both": ("generation fidelity (instruction and prompt)", "the truth"),
    "instruction": ("instruction recognised", "the prompt"),
    "prompt": ("prompt retrieved", "the instruction"),
}
Vector = dict[str, float]


# The instruction


class Classifier(InstructionClassifier):
    """What an answer is taken for."""

    def shares(self, text: str) -> dict[str, float]:
        """{label: 1 if the text is taken for its, a share of a tie, else 0}; all 0 for an empty
        text."""
        if not text.strip():
            return dict.fromkeys(self.labels, 0.0)
        scores_K = self.scores(text)
        return {label: top_share(scores_K, n) for n, label in enumerate(self.labels)}


# The prompt


class Retrieval:
    """TF-IDF over prompts and their references; cosine of an answer with each."""

    def __init__(self, documents: Mapping[str, tuple[str, Sequence[str]]]):
        """documents: {id: (prompt, [references], none if there are none)}."""
        self.documents = documents
        self._vectors: dict[tuple[str, bool], Vector] = {}
        self.documents_with = Counter()
        for id in documents:
            self.documents_with.update(set(words(self._text(id, whole=True))))

    def _text(self, id: str, whole: bool) -> str:
        """A document: the prompt, and if whole its references too."""
        prompt, references = self.documents[id]
        return " ".join([prompt, *references]) if whole else prompt

    def vector(self, text: str) -> Vector:
        """{word: weight}, of length 1; words of no document have no weight."""
        weights = {}
        for word, n in Counter(words(text)).items():
            if word in self.documents_with:
                rarity = (1 + len(self.documents)) / (1 + self.documents_with[word])
                weights[word] = n * math.log(rarity)
        length = math.sqrt(sum(weight * weight for weight in weights.values())) or 1.0
        return {word: weight / length for word, weight in weights.items()}

    def document(self, id: str, whole: bool) -> Vector:
        if (id, whole) not in self._vectors:
            self._vectors[id, whole] = self.vector(self._text(id, whole))
        return self._vectors[id, whole]

    def share(self, text: str, own: str, others: Sequence[str]) -> float:
        """1 if `own` is the nearest prompt of [own, *others], a share of a tie, else 0."""
        if not text.strip():
            return 0.0
        ids = (own, *others)
        # All with references, or none: a longer document has more to match.
        whole = all(self.documents[id][1] for id in ids)
        vector = self.vector(text)
        cosines = []
        for id in ids:
            document = self.document(id, whole)
            cosines.append(sum(v * document.get(word, 0.0) for word, v in vector.items()))
        return top_share(np.round(cosines, 12), 0)


def other_prompts(entry: Entry, bank: Sequence[Entry], count: int = DISTRACTORS) -> list[str]:
    """Ids of the prompts that an answer to `entry` must be told from: its own domain first; with
    references first if it has them itself."""
    others = [other for other in bank if other.id != entry.id]
    others.sort(
        key=lambda other: (
            other.domain != entry.domain,
            bool(other.responses) != bool(entry.responses),
            other.split != entry.split,
        )
    )
    return [other.id for other in others[:count]]


# Columns. A unit is one prompt with what was answered to it (judge.Answered).


def _null(column: str, units, answers) -> float:
    return units[0].judge.chance[column]


def _value(column: str, unit, answers) -> float:
    return unit.mean(answers, column)


def _parts(column: str, unit, answers) -> list[float]:
    return unit.by_instruction(answers, column)


METRICS = (
    *(
        Metric(
            name,
            title,
            partial(_null, name),
            blind_to,
            nothing,
            partial(_value, name),
            reads="answered",
            parts=partial(_parts, name),
        )
        for name, (title, blind_to) in TITLES.items()
    ),
    Metric(
        "cut", "answers cut off", None, "the content", nothing, partial(_value, "cut"), "answered"
    ),
)
