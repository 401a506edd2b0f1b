"""A system under test: a model, maybe an adapter, a tokenizer, a template. Loading, and which
systems stand side by side in one table."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ecliptica.data.templates import Template, as_text, get_template, placed, render_context
from ecliptica.evaluation import contrast
from ecliptica.evaluation.answers import ends, generated
from ecliptica.evaluation.divergences import between_instructions, kl_to_control
from ecliptica.evaluation.options import (
    BASE,
    CONTRASTIVE,
    SYSTEM_TURN,
    TRAINED,
    Compared,
    Options,
)
from ecliptica.evaluation.questions import Answered, Question
from ecliptica.evaluation.scoring import log_probs
from ecliptica.record import RECORD, base_adapter, read_record
from model.config import load_config
from model.devices import pick_device
from model.errors import InputError
from model.llama import Llama
from model.lora import adapters_off, load_adapter, merge_lora
from model.tokenizer import Tokenizer, check_sizes, load_tokenizer
from model.weights import load_model

# What an answer depends on beside the weights themselves, of every directory they come from.
DIGESTED = (
    "config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
    "adapter_config.json",
)


@dataclass(frozen=True)
class System:
    """What is asked: model, tokenizer, template."""

    model: Llama
    tokenizer: Tokenizer
    template: Template | None  # None: contexts and responses come rendered
    batch_tokens: int = 4096
    record: dict[str, Any] = field(default_factory=dict)  # how the trained part was made, if known
    directories: tuple[Path, ...] = field(default=(), compare=False)  # of weights, base first
    adapters: bool = True  # False: the same model with its adapter off
    contrast: float = 0.0  # alpha of contrastive decoding of the instruction; 0: plain

    @property
    def window(self) -> int:
        return self.model.config.max_position_embeddings

    def without_adapter(self) -> "System":
        """The base of a system with an adapter: its control. The two share one model."""
        return replace(self, adapters=False)

    @cached_property
    def digest(self) -> str:
        """16 hex digits that stand for weights, adapter, template, dtype and window: for whatever
        a log-prob depends on beside the question."""
        used = self.directories
        if not self.adapters and len(used) > 1:
            used = used[:-1]
        sha256 = hashlib.sha256()
        for directory in used:
            _digest_directory(sha256, directory)
        text = ""
        if self.template:
            text = as_text(render_context(self.template, "{prompt}", "{instruction}"))
        depends = [text, str(self.model.dtype), self.window]
        if self.contrast:
            depends.append(f"contrast {self.contrast}")
        sha256.update(json.dumps(depends).encode())
        return sha256.hexdigest()[:16]

    def key(self, question: Question) -> str:
        """What the answer to a question depends on beside the question: the system's digest; of a
        generated text the settings and the tokens that end it too."""
        if question.asked != "answer":
            return self.digest
        settings = question.sampling.settings() | {"stop_ids": ends(self)}
        return hashlib.sha256(json.dumps([self.digest, settings]).encode()).hexdigest()[:16]

    def stamp(self) -> dict[str, Any]:
        """What a line of the ledger says of the system: whether its numbers are an ablation's."""
        ablated = self.adapters and self.record.get("ablation")
        return {"ablation": True} if ablated else {}

    @contextmanager
    def switched(self) -> Iterator["System"]:
        """Inside the block the model is this system's: with its adapter, or without."""
        with ExitStack() as stack:
            if not self.adapters:
                stack.enter_context(adapters_off(self.model))
            yield self

    def ask(
        self,
        questions: Sequence[Question],
        missing: Sequence[Question],
        label: str,
        control: "System",
    ) -> Iterator[Answered]:
        """Answers to the `missing` ones of `questions`, all of one kind, as they are made."""
        asked = missing[0].asked
        with ExitStack() as stack:
            stack.enter_context(self.switched())
            if self.contrast:
                yield from self._contrasted(questions, missing, label)
            elif asked == "logp":
                yield from log_probs(self, missing, label)
            elif asked == "jsd":
                yield from between_instructions(self, missing, label)
            elif asked == "answer":
                yield from generated(self, questions, missing, label)
            else:
                if control.model is not self.model:
                    stack.enter_context(control.switched())
                yield from kl_to_control(self, missing, label, control)

    def _contrasted(
        self, questions: Sequence[Question], missing: Sequence[Question], label: str
    ) -> Iterator[Answered]:
        """The same by contrastive decoding, which has log-probs and answers."""
        asked = missing[0].asked
        if asked == "logp":
            yield from contrast.log_probs(self, missing, label, self.contrast)
        elif asked == "answer":
            yield from contrast.generated(self, questions, missing, self.contrast)
        else:
            raise InputError(
                f"--contrast: {CONTRASTIVE} has no {asked} here, only log-probs and answers; leave "
                "it out of this suite"
            )


def _digest_directory(sha256, directory: Path) -> None:
    for path in sorted(directory.glob("*.safetensors")):
        with open(path, "rb") as file:
            sha256.update(hashlib.file_digest(file, "sha256").digest())
    for name in DIGESTED:
        if (directory / name).exists():
            sha256.update((directory / name).read_bytes())


# Loading


def load_one(options: Options, **changes: str) -> System:
    """The system that options name, or another one of the same settings."""
    settings = {field.name: getattr(options, field.name) for field in fields(Options)}
    return load(**settings | changes)


def load(
    model: str | Path,
    template: str,
    adapter: str | Path | None = None,
    dtype: str = "float32",
    batch_tokens: int = 4096,
    device: str = "auto",
    instruction_in: str | None = None,
) -> System:
    """The system of a model directory, perhaps with an adapter.

    instruction_in: a place for the instruction other than that of the training. Raises InputError
    for a template that the tokenizer lacks, or is not the one of the training.
    """
    tokenizer = load_tokenizer(model)
    check_sizes(tokenizer, load_config(model), model)
    record = made_with(model, template, adapter)
    chat = None
    if template != "none":
        place = instruction_in or record.get("instruction_in", "user")
        chat = get_template(template, tokenizer, place)
    llama = load_model(model, getattr(torch, dtype), pick_device(device))
    directories = [Path(model)]
    if adapter:
        # An export from before exports stood by themselves: its base is the model with the
        # adapter that its run started from merged in.
        below = base_adapter(record, adapter)
        if below:
            merge_lora(load_adapter(llama, below))
            directories.append(below)
        load_adapter(llama, adapter)
        llama.requires_grad_(False).eval()
        directories.append(Path(adapter))
    return System(llama, tokenizer, chat, batch_tokens, record, tuple(directories))


def made_with(
    model: str | Path, template: str, adapter: str | Path | None = None
) -> dict[str, Any]:
    """How the trained part was made; empty for a model from elsewhere. Raises InputError for
    another template than that of the training."""
    record = {}
    for directory in filter(None, (model, adapter)):
        own = read_record(directory)
        if not own:
            continue
        record = own
        trained_with = record.get("template")
        if not isinstance(trained_with, str):
            raise InputError(f"{Path(directory) / RECORD}: no template in it; expected its name")
        if template not in ("none", trained_with):
            raise InputError(
                f"--template {template}: {directory} was trained with {trained_with}; "
                f"use --template {trained_with}"
            )
    return record


# Side by side


def is_base_of(control: Any, system: Any) -> bool:
    """Whether the control is this very system without its adapter."""
    if not isinstance(control, System) or not isinstance(system, System):
        return False
    adapted = system.adapters and len(system.directories) > 1
    return adapted and system.without_adapter().digest == control.digest


def compared(options: Compared) -> dict[str, System]:
    """{label: system}, the control first: the base model under the same instructions."""
    system = load_one(options)
    if system.template:
        # The control stands in the same place as what it is compared with.
        options = replace(options, instruction_in=system.template.instruction_in)
    if options.adapter:
        systems = {BASE: system.without_adapter(), TRAINED: system}
    elif options.base:
        systems = {BASE: load_one(options, model=options.base), TRAINED: system}
    else:
        systems = {BASE: system}
    for label, path in options.others():
        systems[label] = load_one(options, adapter=path)

    # Controls that cost no training, of the base model.
    base = systems[BASE]
    if options.contrast:
        systems[CONTRASTIVE] = replace(base, contrast=options.contrast)
    if options.system_turn:
        systems[SYSTEM_TURN] = replace(base, template=placed(base.template, "system"))
    return systems
