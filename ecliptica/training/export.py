"""What a run leaves behind: `final/`, loadable by peft or transformers, and the record of how it was made."""

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version

import torch

from ecliptica.data.templates import as_text, render_context
from ecliptica.files import replaced_directory
from ecliptica.objectives import kl
from ecliptica.running.ranks import ALONE
from model.errors import InputError
from model.lora import lora_layers, lora_parameters, save_adapter
from model.weights import copy_tokenizer, save_tensors, whole

RECORD = "ecliptica.json"


def record(config, template, steps):
    """What somebody needs to use the export rightly: template, base model, objective, and whether it was an ablation."""
    text = as_text(render_context(template, "{prompt}", "{instruction}"))
    o = config.objective
    return {
        "template": template.name,
        "template_text": text,
        "template_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "base_model": config.model.path,
        "base_adapter": config.model.adapter or None,
        "dtype": config.model.dtype,
        "objective": o.name,
        "settings": asdict(o),
        "steps": steps,
        "ablation": kl.is_ablation(o),
        "seed": config.training.seed,
        "versions": {
            "torch": torch.__version__,
            "tokenizers": version("tokenizers"),
            "safetensors": version("safetensors"),
        },
    }


def export(model, run_dir, config, made, ranks=ALONE):
    """Write run_dir/final: the adapter in PEFT's layout, or the whole model in Hugging Face's, all or nothing. Collective: rank 0
    writes what all ranks gather, a tensor at a time."""
    lora = bool(lora_layers(model))
    pieces = (
        (name, whole(p))
        for name, p in (lora_parameters(model) if lora else model.named_parameters())
    )

    def write():
        with replaced_directory(run_dir / "final") as out:
            if lora:
                save_adapter(model, out, config.model.path, pieces)
                copy_tokenizer(config.model.path, out)
            else:
                save_tensors(pieces, out, config.model.path, getattr(torch, config.model.dtype))
            (out / RECORD).write_text(json.dumps(made, indent=2) + "\n")

    def write_or_say():
        try:
            write()
        except OSError as error:
            raise InputError(
                f"{run_dir / 'final'}: the export could not be written ({error.strerror}); the checkpoints are kept: "
                "make room and start the same command again"
            ) from error

    def take_part():
        try:
            if ranks.main:
                write_or_say()
        finally:
            for _ in pieces:  # the others' gathers, and rank 0's own if its write failed
                pass

    ranks.together(take_part)
    return run_dir / "final"
