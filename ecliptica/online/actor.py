"""Who samples and judges: the policy as it is now, its reference, its critic and the reward."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch

from ecliptica.arithmetic import seed_of
from ecliptica.online.group import Group
from ecliptica.online.prompts import Question
from ecliptica.online.settings import RolloutConfig
from ecliptica.policy import Reference, response_rows
from ecliptica.rewards.contract import Scorer
from ecliptica.schema import PackedBatch, Rows
from model.generate import Room, sample
from model.llama import Llama

# How far the first ratios may be from 1 and the first KL from 0. In half precision the forward
# without a gradient may round otherwise than the one with it.
NEAR = {torch.float32: 1e-3}
NEAR_IN_HALF = 0.05


@dataclass(frozen=True)
class Actor:
    """All that a rollout needs; nothing here is learnt."""

    policy: Llama
    reference: Reference
    critic: str | None  # the name of its adapter; None: the objective has no critic
    objective: ModuleType
    score: Scorer
    rollout: RolloutConfig
    tokenizer: Any
    stop_ids: frozenset[int]
    device: str
    evaluated: Callable[[], AbstractContextManager]  # a model that drops nothing out

    @property
    def near(self) -> float:
        return NEAR.get(self.policy.dtype, NEAR_IN_HALF)

    def answered(self, questions: Sequence[Question], seed: int, ranks: Any) -> list[Group]:
        """The questions with their responses, on every rank. Collective.

        Each response is a function of (seed, its number in the step, the weights). A rank without a
        question of its own answers the first, unheard, for the others' collectives.
        """
        numbers = list(range(len(questions)))[ranks.rank :: ranks.world]
        mine = numbers or [0]
        copies = self.rollout.responses
        seeds = [seed_of(seed, number, copy) for number in mine for copy in range(copies)]
        places = self.rollout.rows or len(seeds)
        with self.evaluated():
            responses = sample(
                self.policy,
                [list(questions[number].context) for number in mine],
                Room(self.rollout.max_new_tokens, places - places % copies, copies),
                self.stop_ids,
                self.rollout.temperature,
                seeds,
                agreed=lambda done: ranks.reduce([not done], "max") == [0],
            )
        shares = ranks.gather(responses[: copies * len(numbers)])
        groups = []
        for number, question in enumerate(questions):
            place = copies * (number // ranks.world)
            of_question = shares[number % ranks.world][place : place + copies]
            groups.append(self.group(question, of_question))
        return groups

    def group(self, question: Question, responses: Sequence[Sequence[int]]) -> Group:
        """A response ended if its last token is a stop token: nothing else is asked, and nothing is
        written into it."""
        ended = tuple(response[-1] in self.stop_ids for response in responses)
        texts = []
        for response, end in zip(responses, ended):
            texts.append(self.tokenizer.decode(list(response[:-1] if end else response)))
        return Group(question, tuple(map(tuple, responses)), tuple(texts), ended)

    def scored(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with the score of each response: the reward's, and `missing_end` beside it
        where it was cut."""
        answers = []
        for group in groups:
            asked = group.question
            for text, end in zip(group.texts, group.ended):
                answers.append((asked.instruction, asked.prompt, text, end))
        scores = iter(self.score(answers))
        judged = []
        for group in groups:
            penalties = [0.0 if end else self.rollout.missing_end for end in group.ended]
            of_group = tuple(next(scores) + penalty for penalty in penalties)
            judged.append(replace(group, scores=of_group))
        return judged

    def rows(self, batch: PackedBatch) -> Rows:
        """What policy, reference and critic say of each response token, without gradient."""
        with self.evaluated():
            return response_rows(
                self.policy,
                batch.to(self.device),
                self.reference,
                grad=False,
                critic=self.critic,
                temperature=self.rollout.temperature,
            )

    # What has to be so, whatever the data

    def check_reference(self, rows: Rows) -> None:
        """Before the first update policy and reference are the same function."""
        kl = float(rows.kl_R.abs().max())
        if kl > self.near:
            raise RuntimeError(
                f"step 0: a token's KL to the reference is {kl}, not 0: the reference is not the "
                "model that training starts from"
            )

    def check_ratio(self, metrics: dict[str, float]) -> None:
        """Before the first update of a rollout the policy is the one that sampled it."""
        for name in ("ratio_mean", "ratio_max"):
            if abs(metrics[name] - 1) > self.near:
                raise RuntimeError(
                    f"{name} is {metrics[name]} before the first update of a rollout, not 1: the "
                    "log-probs of sampling and of training are not those of one function"
                )
