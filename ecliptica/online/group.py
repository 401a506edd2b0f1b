"""A prompt and its responses, and the numbers of a whole rollout."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ecliptica.objectives.advantages import divergence
from ecliptica.online.prompts import Question
from ecliptica.schema import Encoded, Rows, Sampled

Numbers = dict[str, torch.Tensor]  # {column of Rows: [R]}


@dataclass(frozen=True)
class Group:
    """What a policy answered to one question."""

    question: Question
    responses: tuple[tuple[int, ...], ...]  # token ids, the stop token that ended one included
    texts: tuple[str, ...]
    ended: tuple[bool, ...]  # by a stop token of its own; otherwise it was cut
    scores: tuple[float, ...] = ()

    @property
    def id(self) -> str:
        return self.question.id

    @property
    def encoded(self) -> Encoded:
        """As packing takes it: the prompt once, and each response a branch."""
        return Encoded(self.id, self.question.context, self.responses, self.scores)

    @property
    def tokens(self) -> int:
        """Of all responses."""
        return sum(map(len, self.responses))

    def record(self) -> dict[str, Any]:
        """Its first response in full, to be read."""
        return {
            "prompt": self.question.prompt,
            "instruction": self.question.instruction,
            "text": self.texts[0],
            "ended": self.ended[0],
            "score": self.scores[0],
        }


def assembled(groups: Sequence[Group], numbers: Sequence[Numbers]) -> Rows:
    """The rows of a whole rollout, from those of each group."""
    lengths = [len(response) for group in groups for response in group.responses]
    segments_R = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    owners = [number for number, group in enumerate(groups) for _ in group.responses]
    columns = {name: torch.cat([each[name] for each in numbers]) for name in numbers[0]}
    return Rows(
        segments_R=segments_R,
        owner_S=torch.tensor(owners),
        scores_S=torch.tensor([score for group in groups for score in group.scores]),
        **columns,
    )


def split(sampled: Sampled, groups: Sequence[Group]) -> list[Sampled]:
    """What is known of each group's tokens."""
    parts = []
    first = 0
    for group in groups:
        parts.append(sampled.part(first, first + group.tokens))
        first += group.tokens
    return parts


def numbers_of(groups: Sequence[Group], rows: Rows) -> dict[str, float]:
    """What is logged of a rollout.

    KL is in nats a response token, by all three estimators; entropy is the mean of -log pi over the
    sampled tokens, which is unbiased.
    """
    scores = rows.scores_S.double()
    ended = [end for group in groups for end in group.ended]
    logp_R, ref_logp_R = rows.logp_R.double(), rows.ref_logp_R.double()
    kl_R = rows.kl_R.double()
    return {
        "reward": float(scores.mean()),
        "reward_std": float(scores.std(correction=0)),
        "length": float(rows.tokens_S.double().mean()),
        "ended": sum(ended) / len(ended),
        "entropy": -float(logp_R.mean()),
        "kl": float(kl_R.mean()),
        "kl_k1": float(divergence("k1", logp_R, ref_logp_R, None).mean()),
        "kl_k3": float(divergence("k3", logp_R, ref_logp_R, None).mean()),
        "kl_sequence": float(kl_R.sum()) / len(ended),
    }
