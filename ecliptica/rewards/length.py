"""The contract "answer within so many words, and end": 1 if it is kept, 0 if not.

Words are what white space separates. An empty answer keeps nothing, nor does one that was cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ecliptica.config import positive
from ecliptica.rewards.contract import Answer


@dataclass(frozen=True)
class Config:
    """The section `reward` with reward.name = "length"."""

    name: str = "length"
    max_words: int = positive(20, "of a response, which has to end by itself as well")


def score(answers: Sequence[Answer], config: Config) -> list[float]:
    """[1.0 or 0.0]."""
    rewards = []
    for _, _, text, ended in answers:
        words = len(text.split())
        rewards.append(float(ended and 0 < words <= config.max_words))
    return rewards
