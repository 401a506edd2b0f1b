"""A question: one thing that is asked of a system under test.

What is asked is

    logp      log pi(response | instruction, prompt), nats, summed over the response's tokens
    kl        KL[system || control] along the same tokens, nats, summed
    jsd       Jensen-Shannon divergence along the response between the next-token distributions
              under two instructions, nats, mean of the response's positions
    answer    a text, generated

A question is known by its digest, never by its names: those are for people who read the ledger.
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

ASKED = ("logp", "kl", "jsd", "answer")


@dataclass(frozen=True)
class Sampling:
    """How an answer is generated. temperature 0: greedy, which has neither top_p nor seed."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def settings(self) -> dict[str, Any]:
        """What a text depends on beside the system and the question."""
        settings = {"max_new_tokens": self.max_new_tokens}
        if self.temperature == 0:
            return settings | {"temperature": 0}
        sampled = {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        return settings | sampled


@dataclass(frozen=True, eq=False)
class Question:
    """One question. Two are equal if their digests are."""

    prompt: str
    instruction: str | None  # None: the context is the prompt alone
    response: str | None = None  # None: an answer is asked for
    asked: str = "logp"
    other_instruction: str | None = None  # of a jsd: the second context's
    sampling: Sampling | None = None  # of an answer
    turns: tuple[tuple[str, str], ...] = ()  # of a logp or kl: (user, assistant) texts before it
    names: dict[str, Any] = field(default_factory=dict)  # ids of prompt, instruction, ...

    @cached_property
    def digest(self) -> str:
        """24 hex digits of all that makes this question another one than the next."""
        return hashlib.sha256(json.dumps(self._identity()).encode()).hexdigest()[:24]

    def _identity(self) -> list:
        if self.asked == "jsd":
            return ["jsd", self.prompt, self.instruction, self.other_instruction, self.response]
        if self.asked == "answer":
            # The names count here: an answer is sampled with a seed of its own for each of them.
            ids = [self.names[name] for name in ("condition", "prompt", "instruction", "wording")]
            return [*ids, self.prompt, self.instruction]
        identity = [self.instruction, self.prompt, self.response]
        return [*identity, self.turns] if self.turns else identity

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Question) and self._whole() == other._whole()

    def __hash__(self) -> int:
        return hash(self._whole())

    def _whole(self) -> tuple:
        return self.asked, self.digest, self.sampling

    def __str__(self) -> str:
        """The ids it was made from; for a question without names its prompt."""
        return "/".join(str(name) for name in self.names.values()) or repr(self.prompt)


# Questions with what a line of the ledger says of each.
Answered = list[tuple[Question, dict[str, Any]]]
