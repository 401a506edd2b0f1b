"""From a file to micro-batches: which preferences make up each optimizer step, in an order that only the seed decides."""

from dataclasses import replace

import torch

from ecliptica.data import formats
from ecliptica.data.packing import encode, pack
from ecliptica.schema import Counts
from model.errors import InputError


def load_examples(path, config, tokenizer, template, responses, split="train"):
    """([Encoded], Counts) of a data file. responses: how many of each preference are wanted (None: all). split: which one, where a file has several."""
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
            f"{path or config.format}: none of {len(preferences)} preferences fits data.max_tokens={config.max_tokens}; raise it or shorten the data"
        )
    return examples, counts


class Batches:
    """Steps of `batch` preferences over all ranks, packed into micro-batches of at most `micro`. Every epoch is one permutation.

    max_steps > 0 overrides epochs, as many epochs as it takes. A step depends on its number and the seed alone: a resumed
    run and another number of ranks take the same preferences in the same steps.
    """

    def __init__(self, examples, config):
        self.examples, self.batch, self.micro, self.seed = (
            examples,
            config.batch_preferences,
            config.micro_preferences,
            config.seed,
        )
        self.per_epoch = -(-len(examples) // self.batch)
        self.steps = config.max_steps or self.per_epoch * config.epochs

    def step(self, number, rank=0, world=1):
        """The packed micro-batches of one rank in optimizer step `number`, similar lengths together."""
        return micro_batches(self.chosen(number), self.micro, rank, world)

    def chosen(self, number):
        """The examples of step `number`, all ranks together, shortest first."""
        epoch, at = divmod(number, self.per_epoch)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.examples), generator=generator).tolist()
        chosen = [self.examples[i] for i in order[at * self.batch : (at + 1) * self.batch]]
        return sorted(chosen, key=lambda example: example.tokens)

    def used(self):
        """The examples that any step takes: all of them, unless max_steps ends within the first epoch."""
        if self.steps >= self.per_epoch:
            return self.examples
        return [example for number in range(self.steps) for example in self.chosen(number)]


def micro_batches(examples, micro, rank=0, world=1):
    """One rank's packed batches of at most `micro` examples each. Every rank gets equally many, because each forward is a
    collective when the model is sharded: where a rank has no example left it gets a filler, which counts for nothing."""
    mine, most = examples[rank::world], -(-len(examples) // world)
    parts = -(-most // micro)
    cuts = [len(mine) * n // parts for n in range(parts + 1)]
    groups = [mine[start:end] for start, end in zip(cuts, cuts[1:])]
    return [pack(group) if group else replace(pack(examples[:1]), ids=()) for group in groups]
