"""Loops: the share of answers that repeat themselves: more than 30 % of their words stand in
sentences that came before, or in five-word sequences that came before. Beside it the
length, which a loop fills up.

Null: none; the base model's own share is what to compare with. Blind to instruction and prompt. A
model that learned to say the right words over and over passes every likelihood metric; here it is
seen.
"""

import re
from functools import partial

from ecliptica.evaluation.metrics import Metric, nothing
from ecliptica.evaluation.metrics.generation_fidelity import words

WORDS_OF_A_SEQUENCE = 5
REPEATED = 0.3  # of the words, above which an answer is a loop


def repeated_share(text: str) -> float:
    """Share of an answer's words that repeat: in a sentence that came before, or in a sequence of
    five words that came before; the larger of the two. 0 for an empty answer."""
    in_order = words(text)
    if not in_order:
        return 0.0
    return max(_in_old_sentences(text), _in_old_sequences(in_order)) / len(in_order)


def _in_old_sentences(text: str) -> int:
    """Words of sentences, or lines, that came before."""
    seen, repeated = set(), 0
    for sentence in re.split(r"[.!?]+\s|\n+", text):
        in_order = tuple(words(sentence))
        if in_order in seen:
            repeated += len(in_order)
        seen.add(in_order)
    return repeated


def _in_old_sequences(in_order: list[str]) -> int:
    """Words covered by a sequence of five that came before; overlapping ones are counted once."""
    seen, covered = set(), set()
    for at in range(len(in_order) - WORDS_OF_A_SEQUENCE + 1):
        sequence = tuple(in_order[at : at + WORDS_OF_A_SEQUENCE])
        if sequence in seen:
            covered.update(range(at, at + WORDS_OF_A_SEQUENCE))
        seen.add(sequence)
    return len(covered)


def is_loop(text: str) -> bool:
    """Whether more than 30 % of an answer repeats."""
    return repeated_share(text) > REPEATED


def _value(column: str, unit, answers) -> float:
    return unit.mean(answers, column)


METRICS = tuple(
    Metric(name, title, None, blind_to, nothing, partial(_value, name), "answered")
    for name, title, blind_to in (
        ("loops", "answers that loop", "instruction and prompt"),
        ("words", "words of an answer", "the content"),
    )
)
