"""Underspecified: the share of the joint metric that a half-said instruction keeps of the full one
(ratio of means, null 1; and difference, null 0), and its distance to the behaviour without
instruction: mean over instructions j and responses k of

    |log pi(y_{x,k} | I_j, x) - log pi(y_{x,k} | x)| / tokens of y_{x,k}        nats a token

over the same of the full instruction: 1, it moves the model as far as the full one; 0, as if
nothing were said. Absolute is right here: how far the two behaviours lie apart has no direction,
and signed changes of the ten responses would cancel. It rewards nothing: whether the way is right
is what joint says. A model that ignores instructions has distance 0 under all and no ratio.

Mind that two systems at chance keep a share of 1: read it beside joint under the full instruction.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np

from ecliptica.evaluation.grid import Cross, read_square, square
from ecliptica.evaluation.metrics import Derived, Metric, joint
from ecliptica.evaluation.questions import Question
from ecliptica.isd.sets import CLEAR

FULL, NONE = "full", "none"
SAID = (FULL, *CLEAR)  # dropped, vague
KINDS = (*SAID, NONE)

# A unit: one prompt, crossed with the instructions as they are said in each kind.
HalfSaid = dict[str, Cross]


def distance(said_JK: np.ndarray, unsaid_K: np.ndarray, tokens_K: np.ndarray) -> float:
    """One prompt: log-probs under the instructions, without any, and tokens of the responses. Nats
    a token, >= 0."""
    return float(np.mean(np.abs(np.asarray(said_JK) - unsaid_K) / tokens_K))


def joint_of(kind: str, unit: HalfSaid, answers) -> float:
    return joint.value(*joint.read(unit[kind], answers))


def change_of(kind: str, unit: HalfSaid, answers) -> float:
    return joint_of(kind, unit, answers) - joint_of(FULL, unit, answers)


def distance_of(kind: str, unit: HalfSaid, answers) -> float:
    said_JK = read_square(unit[kind], answers)
    unsaid_K = read_square(unit[NONE], answers)[0]
    own = list(square(unit[kind]))[: len(unit[kind].names)]
    return distance(said_JK, unsaid_K, [answers.tokens(question) for question in own])


def joint_questions(kind: str, unit: HalfSaid) -> Iterator[Question]:
    return joint.questions(unit[kind])


def change_questions(kind: str, unit: HalfSaid) -> Iterator[Question]:
    yield from joint.questions(unit[kind])
    yield from joint.questions(unit[FULL])


def distance_questions(kind: str, unit: HalfSaid) -> Iterator[Question]:
    yield from square(unit[kind])
    yield from square(unit[NONE])


def joint_null(units, answers) -> float:
    return joint.null([unit[FULL] for unit in units], answers)


def _columns() -> Iterator[Metric | Derived]:
    def column(name, title, null, questions, value, kind):
        return Metric(
            f"{name}_{kind}",
            title,
            null,
            blind_to="",
            questions=partial(questions, kind),
            value=partial(value, kind),
            reads="half-said",
        )

    for kind in KINDS:
        yield column("joint", f"joint, {kind}", joint_null, joint_questions, joint_of, kind)
    for kind in (*CLEAR, NONE):
        yield column("change", f"joint, {kind} - full", 0.0, change_questions, change_of, kind)
    for kind in SAID:
        title = f"distance to none, {kind} (nats a token)"
        yield column("distance", title, None, distance_questions, distance_of, kind)
    for kind in (*CLEAR, NONE):
        of = (f"joint_{kind}", f"joint_{FULL}")
        yield Derived(f"kept_{kind}", f"joint kept, {kind}", 1.0, "", of)
    for kind in CLEAR:
        of = (f"distance_{kind}", f"distance_{FULL}")
        title = f"distance to none over that of full, {kind}"
        yield Derived(f"moved_{kind}", title, 1.0, "the direction", of)


METRICS = tuple(_columns())
