"""Length contract: under `short`, at most 50 words; under `long`, at least 200; both, for one
prompt. Mean log ratio of the two word counts, null 0.

A model that ignores the instruction keeps at most one of the contracts and has ratio 0; one that
always answers short keeps `short` and not `both`; one that switches the wrong way has a ratio
below 0. An empty answer keeps none. An answer that was cut off counts with the words it has, and
the share of those is reported beside it, for each contract: cut short ones may be longer than they
look, cut long ones may have kept the contract. Words are what white space separates. log ratio:
ln((long + 1) / (short + 1)), so that an empty answer has one.
"""

import math
from functools import partial

from ecliptica.evaluation.metrics import Metric
from ecliptica.evaluation.questions import Question

SHORT, LONG = 50, 200
ROOM = 300  # tokens that 200 words of English take, at least
TITLES = {
    "both": ("both contracts", None),
    "short": (f"short: at most {SHORT} words", None),
    "long": (f"long: at least {LONG} words", None),
    "log_ratio": ("log of long over short, words", 0.0),
    "cut_short": ("cut off, short", None),
    "cut_long": ("cut off, long", None),
}

# A unit: the questions of one prompt under `short` and under `long`.
Contract = tuple[Question, Question]


def count(text: str) -> int:
    return len(text.split())


def value(short_text: str, long_text: str, short_cut: bool, long_cut: bool) -> dict[str, float]:
    """{column: value of one prompt}. short_cut, long_cut: whether the answer reached the token
    limit."""
    short, long = count(short_text), count(long_text)
    kept_short = 0 < short <= SHORT
    kept_long = long >= LONG
    return {
        "both": float(kept_short and kept_long),
        "short": float(kept_short),
        "long": float(kept_long),
        "log_ratio": math.log((long + 1) / (short + 1)),
        "cut_short": float(short_cut),
        "cut_long": float(long_cut),
    }


def _questions(unit: Contract) -> Contract:
    return unit


def _value(column: str, unit: Contract, answers) -> float:
    short, long = (answers[question] for question in unit)
    return value(short["r"], long["r"], short["truncated"], long["truncated"])[column]


METRICS = tuple(
    Metric(
        name,
        title,
        null,
        blind_to="the content",
        questions=_questions,
        value=partial(_value, name),
        reads="contracts",
    )
    for name, (title, null) in TITLES.items()
)
