"""Answers judged without a model: what is learned from a bank's references, and one prompt's
answers measured with it. The metrics are in generation_fidelity.py and published.py."""

from collections.abc import Sequence
from dataclasses import dataclass

from ecliptica.evaluation.metrics import loops, mean, published
from ecliptica.evaluation.metrics.generation_fidelity import (
    Classifier,
    Retrieval,
    other_prompts,
    words,
)
from ecliptica.isd.bank import Entry, referenced
from model.errors import InputError

Line = dict  # what isd-generate writes of an answer


class Judge:
    """What is learned from the bank: the classifier and its confusion, the documents of the
    prompts, the published prototypes."""

    def __init__(self, bank: Sequence[Entry], instructions: Sequence[str], where: str):
        train = referenced([e for e in bank if e.split == "train"], instructions)
        self.unseen = referenced([e for e in bank if e.split != "train"], instructions)
        if not train:
            raise InputError(
                f"{where}: no prompt of the train split has references; the classifier of "
                "instructions learns from them"
            )
        texts = [entry.responses[name] for entry in train for name in instructions]
        self.labels = list(instructions)
        self.classifier = Classifier(texts, list(instructions) * len(train))
        documents = {entry.id: (entry.prompt, list(entry.responses.values())) for entry in bank}
        self.retrieval = Retrieval(documents)
        self.others = {entry.id: other_prompts(entry, bank) for entry in bank}
        own = {name: [entry.responses[name] for entry in train] for name in instructions}
        self.prototypes = published.prototypes(own)

        among = len(self.others[bank[0].id]) + 1
        self.chance = {
            "both": 1 / (len(instructions) * among),
            "instruction": 1 / len(instructions),
            "prompt": 1 / among,
        }
        self.confusion = self._confusion(instructions) if self.unseen else {}
        self.accuracy = None
        if self.unseen:
            self.accuracy = mean([row[name] for name, row in self.confusion.items()])

    def _confusion(self, instructions: Sequence[str]) -> dict[str, dict[str, float]]:
        """{instruction: {taken for: share}} of the references that were not trained on."""
        confusion = {}
        for name in instructions:
            shares = [self.classifier.shares(entry.responses[name]) for entry in self.unseen]
            confusion[name] = {
                other: mean([share[other] for share in shares]) for other in instructions
            }
        return confusion

    def values(
        self, prompt: str, lines: dict[str, Line]
    ) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """({column: value}, {column: {instruction: value}}) of one prompt in one wording, from
        {instruction: line}."""
        shown, retrieved, fidelities = {}, {}, []
        for name, line in lines.items():
            text = line["r"]
            shown[name] = self.classifier.shares(text)[name]
            retrieved[name] = self.retrieval.share(text, prompt, self.others[prompt])
            fidelities.append(published.fidelity(text, self.prototypes[name]))
        both = {name: shown[name] * retrieved[name] for name in lines}
        each = {"both": both, "instruction": shown, "prompt": retrieved}

        shift = published.shift([line["r"] for line in lines.values()])
        whole = {column: mean(list(values.values())) for column, values in each.items()}
        texts = [line["r"] for line in lines.values()]
        whole["cut"] = mean([line["truncated"] for line in lines.values()])
        whole["loops"] = mean([loops.is_loop(text) for text in texts])
        whole["words"] = mean([len(words(text)) for text in texts])
        whole["published_fidelity"] = mean(fidelities)
        whole["published_shift"] = shift
        whole["published_m1"] = published.m1(fidelities, shift)
        return whole, each


@dataclass(frozen=True, eq=False)
class Answered:
    """A unit: one prompt under one condition, in one or several wordings, which are averaged.

    Answers are {(condition, prompt, wording): {instruction: line}}.
    """

    judge: Judge
    prompt: str
    condition: str
    wordings: tuple[int, ...]

    def mean(self, answers, column: str) -> float:
        return mean([whole[column] for whole, _ in self._values(answers)])

    def by_instruction(self, answers, column: str) -> list[float]:
        each = [by_column[column] for _, by_column in self._values(answers)]
        return [mean([values[name] for values in each]) for name in self.judge.labels]

    def _values(self, answers) -> list:
        """Of each wording; nothing under a condition that this system did not answer."""
        return [
            answers.judged(self.judge, (self.condition, self.prompt, wording))
            for wording in self.wordings
            if answers.has(self.condition)
        ]
