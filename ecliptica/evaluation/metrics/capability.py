"""Capability kept: is the language model still one? Of neutral texts the negative log-prob (nats a
token, mean of texts), the perplexity, exp of nats over tokens over all texts, and the exact KL to
the base model a token, 0 of the base model itself.

The base model is what they are compared with; there is no chance level. Blind to instructions.
"""

from dataclasses import replace

from ecliptica.evaluation.metrics import Derived, Metric
from ecliptica.evaluation.questions import Question

# A unit: the log-prob question of one text.


def kl_question(unit: Question) -> Question:
    """KL to the control along the same text."""
    return replace(unit, asked="kl")


def _one(unit: Question) -> tuple[Question]:
    return (unit,)


def _kl(unit: Question) -> tuple[Question, Question]:
    return unit, kl_question(unit)


METRICS = (
    Metric(
        "nats",
        "negative log-prob (nats a token, mean of texts)",
        None,
        blind_to="instructions",
        questions=_one,
        value=lambda unit, answers: -answers[unit] / answers.tokens(unit),
        reads="text",
    ),
    Metric(
        "text_nats",
        "negative log-prob of a text (nats)",
        None,
        blind_to="instructions",
        questions=_one,
        value=lambda unit, answers: -answers[unit],
        reads="text",
        shown=False,
    ),
    Metric(
        "text_tokens",
        "tokens of a text",
        None,
        blind_to="instructions",
        questions=_one,
        value=lambda unit, answers: answers.tokens(unit),
        reads="text",
        shown=False,
    ),
    Metric(
        "text_kl",
        "KL to the base model (nats)",
        None,
        blind_to="instructions",
        questions=_kl,
        value=lambda unit, answers: answers[kl_question(unit)],
        reads="text",
        against_control=True,
        shown=False,
    ),
    Derived(
        "perplexity",
        "perplexity of held-out text",
        None,
        blind_to="instructions",
        of=("text_nats", "text_tokens"),
        how="exp of ratio",
    ),
    Derived(
        "kl",
        "KL to the base model (nats a token)",
        0.0,
        blind_to="instructions",
        of=("text_kl", "text_tokens"),
        against_control=True,
    ),
)
