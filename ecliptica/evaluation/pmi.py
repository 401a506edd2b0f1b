"""PMI: how much more likely a context makes a response than one that says nothing,

    PMI(y; c) = log pi(y | c) - log pi(y | "N/A", no instruction)

It takes out what a response's length and fluency give it in any context.
"""

from collections.abc import Iterator
from dataclasses import replace

from ecliptica.evaluation.questions import Question

CONTENT_FREE = "N/A"


def prior(question: Question) -> Question:
    """The same response in the context that says nothing."""
    kept = ("response_to", "response")
    names = {name: question.names[name] for name in kept if name in question.names}
    names = {"condition": "content-free"} | names
    return replace(question, prompt=CONTENT_FREE, instruction=None, turns=(), names=names)


def questions(question: Question) -> Iterator[Question]:
    """What `pmi` reads."""
    yield question
    yield prior(question)


def pmi(answers, question: Question) -> float:
    """Of a log-prob question, nats."""
    return answers[question] - answers[prior(question)]
