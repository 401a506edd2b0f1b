"""The contract "answer within so many words, and end": 1 if it is kept, 0 if not."""

from dataclasses import dataclass

from ecliptica.config import positive


@dataclass(frozen=True)
class Config:
    """The section `reward` with reward.name = "length"."""

    name: str = "length"
    max_words: int = positive(20, "of a response")


def score(answers, config) -> list[float]:
    """[1.0 or 0.0] of (instruction, prompt, text, ended) each."""
    return [
        float(ended and 0 < len(text.split()) <= config.max_words) for _, _, text, ended in answers
    ]
