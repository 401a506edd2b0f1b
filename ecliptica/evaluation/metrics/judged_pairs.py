"""Judged pairs: of several responses to a prompt, is the one that somebody judged best the
model's favourite?

likelihood: by log pi(y | I, x). pmi: by how much more likely I and x make y than a context that
says nothing (pmi.py). length_normalised: by log pi(y | I, x) a token. 1 where the best response is
the maximum, a share on ties. Null: the mean over records of 1 / responses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ecliptica.evaluation import pmi
from ecliptica.evaluation.metrics import Metric, mean, top_share
from ecliptica.evaluation.questions import Question


@dataclass(frozen=True, eq=False)
class Judged:
    """A unit: the questions of a record's responses, in its order, and which is judged best."""

    questions: tuple[Question, ...]
    best: int


def _plain(unit: Judged) -> Sequence[Question]:
    return unit.questions


def _with_priors(unit: Judged) -> Sequence[Question]:
    return [asked for question in unit.questions for asked in pmi.questions(question)]


def _likelihood(answers, question: Question) -> float:
    return answers[question]


def _a_token(answers, question: Question) -> float:
    return answers[question] / answers.tokens(question)


def _null(units: Sequence[Judged], answers: Sequence) -> float:
    return mean([1 / len(unit.questions) for unit in units])


def _metric(name: str, title: str, score: Callable, questions: Callable) -> Metric:
    def value(unit: Judged, answers) -> float:
        scores = [score(answers, question) for question in unit.questions]
        return top_share(scores, unit.best)

    return Metric(name, title, _null, "", questions, value, reads="judged")


METRICS = (
    _metric("likelihood", "best by likelihood", _likelihood, _plain),
    _metric("pmi", "best by PMI", pmi.pmi, _with_priors),
    _metric("length_normalised", "best by likelihood a token", _a_token, _plain),
)
