"""From a file to micro-batches: which preferences make up each optimizer step.

Their order is one that only the seed decides.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ecliptica.data import formats
from ecliptica.data.packing import encode, pack
from ecliptica.data.templates import Template
from ecliptica.schema import Counts, Encoded, PackedBatch
from model.errors import InputError
from model.tokenizer import Tokenizer


def load_examples(
    path: str,
    config: Any,
    tokenizer: Tokenizer,
    template: Template,
    responses: int | None,
    split: str = "train",
) -> tuple[list[Encoded], Counts]:
    """The preferences of a data file, encoded, and what encoding them cost.

    config: a DataConfig; responses: how many of each preference are wanted (None: all); split:
    which one, where a file has several. Raises InputError if not one fits.
    """
    counts = Counts()
    preferences = formats.read(path, config.format, config.on_error, counts.skipped, config, split)
    examples = []
    for preference in preferences:
        if not config.use_instruction:
            preference = replace(preference, instruction=None)
        example = encode(preference, tokenizer, template, config, counts, responses)
        if example is not None:
            examples.append(example)
    if not examples:
        raise InputError(
            f"{path or config.format}: none of {len(preferences)} preferences fits "
            f"data.max_tokens={config.max_tokens}; raise it or shorten the data"
        )
    return examples, counts


class Batches:
    """Steps of `batch` preferences over all ranks, packed into micro-batches of at most `micro`.

    Every epoch is one permutation. max_steps > 0 overrides epochs, as many epochs as it takes.
    A step depends on its number and the seed alone: a resumed run and another number of ranks take
    the same preferences in the same steps.
    """

    def __init__(self, examples: Sequence[Encoded], config: Any):
        self.examples = examples
        self.batch = config.batch_preferences
        self.micro = config.micro_preferences
        self.seed = config.seed
        self.per_epoch = -(-len(examples) // self.batch)
        self.steps = config.max_steps or self.per_epoch * config.epochs

    def step(self, number: int, rank: int = 0, world: int = 1) -> list[PackedBatch]:
        """The packed micro-batches of one rank in a step, similar lengths together."""
        return micro_batches(self.chosen(number), self.micro, rank, world)

    def chosen(self, number: int) -> list[Encoded]:
        """The examples of step `number`, all ranks together, shortest first."""
        epoch, at = divmod(number, self.per_epoch)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.examples), generator=generator).tolist()
        chosen = [self.examples[i] for i in order[at * self.batch : (at + 1) * self.batch]]
        return sorted(chosen, key=lambda example: example.tokens)

    def used(self) -> Sequence[Encoded]:
        """The examples that any step takes: all, unless max_steps ends in the first epoch."""
        if self.steps >= self.per_epoch:
            return self.examples
        return [example for number in range(self.steps) for example in self.chosen(number)]


def micro_batches(
    examples: Sequence[Encoded], micro: int, rank: int = 0, world: int = 1
) -> list[PackedBatch]:
    """One rank's packed batches of at most `micro` examples each.

    Every rank gets equally many, because each forward is a collective when the model is sharded:
    where a rank has no example left it gets a filler, which counts for nothing.
    """
    mine = examples[rank::world]
    most = -(-len(examples) // world)
    parts = -(-most // micro)
    cuts = [len(mine) * n // parts for n in range(parts + 1)]
    batches = []
    for start, end in zip(cuts, cuts[1:]):
        if start < end:
            batches.append(pack(mine[start:end]))
        else:
            batches.append(replace(pack(examples[:1]), ids=()))
    return batches
