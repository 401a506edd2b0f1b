"""The batch source of preferences on disk: read and encoded once, drawn in an order that only the
seed decides.

A batch source has
    steps                     optimizer steps of the run
    passes                    how often it comes back to the same examples
    preferences               of one step, all ranks together
    work(step, ranks)         what one rank does in a step: its packed micro-batches (schema.Work)
    used()                    the examples that any step takes
and a step is a function of its number and the seed alone: a resumed run and another number of ranks
take the same preferences in the same steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ecliptica.arithmetic import ceil_div, seed_of
from ecliptica.data.loader import load_examples, micro_batches
from ecliptica.data.settings import DataConfig
from ecliptica.data.templates import TEMPLATES, Template, get_template
from ecliptica.objectives.contract import NOTHING_MORE, Needs
from ecliptica.schema import Encoded, PackedBatch, Work
from model.config import load_config
from model.tokenizer import check_sizes, load_tokenizer

# The chat templates that "auto" chooses from, each with a control token that is its own.
MARKERS = (("llama3", "<|start_header_id|>"), ("chatml", "<|im_start|>"))
SHOWN = 3  # reasons of each kind for leaving something out that the log repeats


class Offline:
    """Steps of `batch_preferences` over all ranks, packed into micro-batches of at most
    `micro_preferences`. Every epoch is one permutation.

    options: the section `training`; max_steps > 0 overrides epochs, as many epochs as it takes.
    """

    def __init__(self, examples: Sequence[Encoded], options: Any):
        self.examples = examples
        self.preferences = options.batch_preferences
        self.micro = options.micro_preferences
        self.seed = options.seed
        self.per_epoch = ceil_div(len(examples), self.preferences)
        self.steps = options.max_steps or self.per_epoch * options.epochs
        self.passes = ceil_div(self.steps, self.per_epoch)

    @property
    def a_step(self) -> str:
        """What a step takes, in words."""
        return f"{self.preferences} preferences"

    def work(self, step: int, ranks: Any) -> Work:
        """One update from the preferences of a step."""
        return Work([self.batches(step, ranks)])

    def batches(self, step: int, ranks: Any) -> list[PackedBatch]:
        """The packed micro-batches of one rank in optimizer step `step`, similar lengths
        together."""
        return micro_batches(self.chosen(step), self.micro, ranks.rank, ranks.world)

    def chosen(self, step: int) -> list[Encoded]:
        """The examples of a step, all ranks together, shortest first."""
        epoch, place = divmod(step, self.per_epoch)
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        order = torch.randperm(len(self.examples), generator=generator).tolist()
        first = place * self.preferences
        chosen = [self.examples[i] for i in order[first : first + self.preferences]]
        return sorted(chosen, key=lambda example: example.tokens)

    def used(self) -> Sequence[Encoded]:
        """The examples that any step takes: all of them, unless max_steps ends within the first
        epoch."""
        if self.steps >= self.per_epoch:
            return self.examples
        return [example for step in range(self.steps) for example in self.chosen(step)]


@dataclass(frozen=True)
class Data:
    """What a run reads: its language, and the preferences in it."""

    tokenizer: Any
    template: Template
    examples: list[Encoded]
    held_out: list[Encoded]
    lines: tuple[str, ...]  # what was read, cut and left out, for the log


def load(
    model_path: str, settings: DataConfig, responses: int | None, needs: Needs = NOTHING_MORE
) -> Data:
    """The data of the section `data`, encoded for a model.

    responses: how many of each preference are wanted; None: all. needs: of the objective. Raises
    InputError.
    """
    tokenizer, template, window = language(model_path, settings)
    settings = replace(settings, max_tokens=window)
    examples, counts = load_examples(
        settings.train, settings, tokenizer, template, responses, needs=needs
    )
    held_out = []
    if settings.eval:
        held_out, _ = load_examples(
            settings.eval, settings, tokenizer, template, responses, split="dev", needs=needs
        )
    source = settings.train or settings.format
    reasons = (*counts.dropped[:SHOWN], *counts.skipped[:SHOWN])
    lines = (
        f"{source}: {counts.line()}; at most {window} tokens each",
        *(f"  left out: {reason}" for reason in reasons),
    )
    return Data(tokenizer, template, examples, held_out, lines)


def language(model_path: str, settings: DataConfig) -> tuple[Any, Template, int]:
    """(tokenizer, template, the most tokens of a sequence) of a model. Raises InputError."""
    tokenizer = load_tokenizer(model_path)
    config = load_config(model_path)
    check_sizes(tokenizer, config, model_path)
    name = settings.template
    if name == "auto":
        name = fitting_template(tokenizer)

    # A sequence may be no longer than the model's window, whatever the config allows.
    window = min(settings.max_tokens, config.max_position_embeddings)
    return tokenizer, get_template(name, tokenizer, settings.instruction_in), window


def fitting_template(tokenizer: Any) -> str:
    """The chat template whose control tokens the tokenizer has; alpaca, which needs none,
    otherwise."""
    for name, marker in MARKERS:
        if name in TEMPLATES and tokenizer.token_id(marker) is not None:
            return name
    return "alpaca"
