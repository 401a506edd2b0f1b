"""The batch source of the policy's own responses.

A step is one rollout: prompts -> sampled responses -> scores -> log-probs of policy and reference
(and a critic's values) -> advantages -> the micro-batches of several updates. All of it is a
function of the seed, the step and the weights: a run that was killed goes on with the same bits.

Every rank samples its share of the prompts; then all ranks know the whole rollout, so advantages
and whitening are of all of it, and the minibatches are the same however many ranks there are.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ecliptica.arithmetic import ceil_div, seed_of
from ecliptica.data.loader import micro_batches
from ecliptica.online.actor import Actor
from ecliptica.online.group import Group, assembled, numbers_of, split
from ecliptica.online.prompts import Question
from ecliptica.schema import Encoded, PackedBatch, Rows, Sampled, Work


@dataclass(frozen=True)
class Rollouts:
    """Steps of `rollout.prompts_per_step` prompts, each answered `rollout.responses` times.

    config: the recipe; training.max_steps > 0 overrides training.epochs passes over the prompts.
    """

    questions: Sequence[Question]
    config: Any
    actor: Actor | None = None  # who samples and judges; not needed to know what is asked

    passes = 1  # no rollout comes twice, so a cache of the reference is of no use

    @property
    def per_epoch(self) -> int:
        return ceil_div(len(self.questions), self.config.rollout.prompts_per_step)

    @property
    def steps(self) -> int:
        options = self.config.training
        return options.max_steps or self.per_epoch * options.epochs

    @property
    def a_step(self) -> str:
        rollout = self.config.rollout
        return f"{rollout.prompts_per_step} prompts x {rollout.responses} responses"

    def used(self) -> Sequence[Encoded]:
        """Nothing that is known before it is sampled."""
        return ()

    def chosen(self, step: int) -> list[Question]:
        """The questions of a step, all ranks together; every epoch is one permutation."""
        epoch, place = divmod(step, self.per_epoch)
        generator = torch.Generator().manual_seed(seed_of(self.config.training.seed, epoch))
        order = torch.randperm(len(self.questions), generator=generator).tolist()
        count = self.config.rollout.prompts_per_step
        return [self.questions[i] for i in order[place * count : (place + 1) * count]]

    def work(self, step: int, ranks: Any) -> Work:
        """One rollout, and the micro-batches of all updates that are made from it. Collective."""
        actor = self.actor
        seed = seed_of(self.config.training.seed, step)

        # Responses, each rank its share of the prompts; then all of them on every rank.
        began = time.perf_counter()
        groups = actor.answered(self.chosen(step), seed, ranks)
        sampled_at = time.perf_counter()
        groups = actor.scored(groups)
        scored_at = time.perf_counter()

        # What policy, reference and critic say of each token, in the very micro-batches of the
        # first pass: there the ratio of new to old is 1, and that is asserted.
        minibatches = [self.minibatches(groups, seed, epoch) for epoch in range(self.epochs)]
        micro = self.config.training.micro_preferences
        first = [self.packed(minibatch, micro, ranks) for minibatch in minibatches[0]]
        rows = self.observed(groups, first, ranks)
        if step == 0:
            actor.check_reference(rows)

        # Advantages of the whole rollout, then its updates.
        advantages, metrics = actor.objective.advantages(rows, self.config.objective)
        known = dict(zip((group.id for group in groups), split(advantages, groups)))
        updates = [
            [
                with_numbers(batch, known, minibatch)
                for batch in self.packed(minibatch, micro, ranks)
            ]
            for minibatches_of_pass in minibatches
            for minibatch in minibatches_of_pass
        ]
        seconds = {
            "generation_seconds": sampled_at - began,
            "reward_seconds": scored_at - sampled_at,
        }
        return Work(
            updates=updates,
            metrics=numbers_of(groups, rows) | metrics | seconds,
            answers=[group.record() for group in groups[: self.config.rollout.shown]],
            check=actor.check_ratio,
        )

    @property
    def epochs(self) -> int:
        """Passes over one rollout."""
        return self.config.rollout.epochs

    def minibatches(self, groups: Sequence[Group], seed: int, epoch: int) -> list[list[Group]]:
        """The groups of each update of a pass, all ranks together, in an order that (seed, step,
        pass) decide; similar lengths together."""
        generator = torch.Generator().manual_seed(seed_of(seed, epoch))
        order = torch.randperm(len(groups), generator=generator).tolist()
        parts = min(self.config.rollout.minibatches, len(groups))
        cuts = [len(groups) * n // parts for n in range(parts + 1)]
        chosen = [[groups[i] for i in order[start:end]] for start, end in zip(cuts, cuts[1:])]
        return [sorted(part, key=lambda group: group.encoded.tokens) for part in chosen]

    def packed(self, minibatch: Sequence[Group], micro: int, ranks: Any) -> list[PackedBatch]:
        """One rank's micro-batches of an update."""
        examples = [group.encoded for group in minibatch]
        return micro_batches(examples, micro, ranks.rank, ranks.world)

    def observed(
        self, groups: Sequence[Group], minibatches: list[list[PackedBatch]], ranks: Any
    ) -> Rows:
        """The rows of the whole rollout on every rank, in the order of the groups."""
        mine = {}
        for batches in minibatches:
            for batch in batches:
                rows = self.actor.rows(batch)
                mine |= dict(zip(batch.ids, by_preference(rows)))
        everywhere = {}
        for share in ranks.gather(mine):
            everywhere |= share
        return assembled(groups, [everywhere[group.id] for group in groups])


def by_preference(rows: Rows) -> list[Rows]:
    """The numbers of each preference of a batch apart, on the CPU."""
    owner_R = rows.owner_S[rows.segments_R]
    lengths = torch.bincount(owner_R).tolist()
    columns = {}
    for name in ("logp_R", "ref_logp_R", "kl_R", "values_R"):
        value = getattr(rows, name)
        if value is not None:
            columns[name] = value.cpu().split(lengths)
    return [
        {name: parts[number] for name, parts in columns.items()} for number in range(len(lengths))
    ]


def with_numbers(
    batch: PackedBatch, known: dict[str, Sampled], minibatch: Sequence[Group]
) -> PackedBatch:
    """A batch with what is known of its tokens; a filler is of the update's first group."""
    ids = batch.ids or (minibatch[0].id,)
    return replace(batch, sampled=Sampled.joined([known[name] for name in ids]))
