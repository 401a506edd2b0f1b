"""A system under test: a model, maybe an adapter, a tokenizer, a template. Loading, and the options every suite shares."""

import hashlib
import json
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ecliptica.data.templates import Template, as_text, get_template, render_context
from ecliptica.record import base_adapter, read_record
from model.config import load_config
from model.devices import pick_device
from model.errors import InputError
from model.llama import Llama
from model.lora import adapters_off, load_adapter, merge_lora
from model.tokenizer import Tokenizer, check_sizes, load_tokenizer
from model.weights import load_model


@dataclass(frozen=True)
class System:
    model: Llama
    tokenizer: Tokenizer
    template: Template | None  # None: contexts and responses come rendered
    batch_tokens: int
    made: dict  # how the trained part was made (ecliptica.json); empty for a model from elsewhere
    files: tuple = field(default=(), compare=False)  # directories of weights, base first

    @property
    def window(self):
        return self.model.config.max_position_embeddings


@dataclass(frozen=True)
class Subject:
    """One column of a table: a system with its adapters on or off. system None: its scores are read from a file (--rescore)."""

    label: str
    key: str
    system: System | None
    adapters: bool = True

    @contextmanager
    def switched(self):
        """Inside the block the system's model is this subject's."""
        with (
            nullcontext()
            if self.adapters or self.system is None
            else adapters_off(self.system.model)
        ):
            yield self.system


def fingerprint(system, adapters=True):
    """16 hex digits that stand for weights, adapter, template text, dtype and window: the cache key of everything a model said."""
    digest = hashlib.sha256()
    merged = system.made.get("base_adapter")
    directories = (
        *system.files[:1],
        *([merged] if merged and len(system.files) > 1 else []),
        *(system.files[1:] if adapters else ()),
    )
    for directory in directories:
        for path in sorted(Path(directory).glob("*.safetensors")):
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        for name in ("config.json", "tokenizer.json", "tokenizer.model", "adapter_config.json"):
            if (Path(directory) / name).exists():
                digest.update((Path(directory) / name).read_bytes())
    text = (
        as_text(render_context(system.template, "{prompt}", "{instruction}"))
        if system.template
        else ""
    )
    digest.update(json.dumps([text, str(system.model.dtype), system.window]).encode())
    return digest.hexdigest()[:16]


def add_arguments(parser, template=True):
    parser.add_argument("--model", required=True, help="Hugging Face model directory")
    parser.add_argument("--adapter", help="LoRA adapter directory (PEFT layout)")
    if template:
        parser.add_argument(
            "--template",
            required=True,
            help="llama3, chatml, alpaca, paper; none: the input is rendered text",
        )
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--batch-tokens", type=int, default=4096, help="packed tokens a forward pass takes at most"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))


def record(args):
    """How the trained part was made (its ecliptica.json); empty for a model from elsewhere. Raises InputError: trained with another template."""
    made = {}
    for directory in filter(None, (args.model, args.adapter)):
        made = read_record(directory) or made
        if made and args.template not in ("none", made["template"]):
            raise InputError(
                f"--template {args.template}: {directory} was trained with {made['template']}; use "
                f"--template {made['template']}"
            )
    return made


def load(args):
    """The System that the options name. Raises InputError: a template the tokenizer lacks, or not the one it was trained with."""
    if args.batch_tokens < 1:
        raise InputError(f"--batch-tokens: expected > 0, got {args.batch_tokens}")
    tokenizer = load_tokenizer(args.model)
    check_sizes(tokenizer, load_config(args.model), args.model)
    template = None if args.template == "none" else get_template(args.template, tokenizer)
    made = record(args)
    model = load_model(args.model, getattr(torch, args.dtype), pick_device(args.device))
    if args.adapter:
        if made.get(
            "base_adapter"
        ):  # the run went on from another adapter: its base is the model with that one merged in
            merge_lora(load_adapter(model, made["base_adapter"]))
        load_adapter(model, args.adapter)
        model.requires_grad_(False).eval()
    return System(
        model,
        tokenizer,
        template,
        args.batch_tokens,
        made,
        tuple(filter(None, (args.model, args.adapter))),
    )
