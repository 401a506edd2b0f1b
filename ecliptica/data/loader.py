"""From a file to micro-batches: which preferences make up each optimizer step, in an order that only the seed decides."""

from dataclasses import replace

import torch

from ecliptica.data import formats
from ecliptica.data.packing import encode, pack
from ecliptica.schema import Counts
from model.errors import InputError


def load_examples(path, config, tokenizer, template, responses):
    """([Encoded], Counts) of a data file. responses: how many of each preference are wanted (None: all)."""
    counts = Counts()
    preferences = formats.read(path, config.format, config.on_error, counts.skipped)
    examples = []
    for preference in preferences:
        if not config.use_instruction:
            preference = replace(preference, instruction=None)
        example = encode(preference, tokenizer, template, config, counts, responses)
        if example is not None:
            examples.append(example)
    if not examples:
        raise InputError(f"{path}: none of {len(preferences)} preferences fits data.max_tokens={config.max_tokens}; raise it or shorten the data")
    return examples, counts


class Batches:
    """Steps of `batch` preferences, each a list of packed micro-batches of at most `micro`. Every epoch is one permutation.

    max_steps > 0 overrides epochs, as many epochs as it takes. The order comes from a private generator: nothing else moves it.
    """

    def __init__(self, examples, config):
        self.examples, self.batch, self.micro, self.seed = examples, config.batch_preferences, config.micro_preferences, config.seed
        self.per_epoch = -(-len(examples) // self.batch)
        self.steps = config.max_steps or self.per_epoch * config.epochs

    def step(self, number):
        """The packed micro-batches of optimizer step `number`, similar lengths together."""
        epoch, at = divmod(number, self.per_epoch)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.examples), generator=generator).tolist()
        chosen = [self.examples[i] for i in order[at * self.batch : (at + 1) * self.batch]]
        chosen.sort(key=lambda example: example.tokens)
        return micro_batches(chosen, self.micro)


def micro_batches(examples, micro):
    return [pack(examples[start : start + micro]) for start in range(0, len(examples), micro)]
