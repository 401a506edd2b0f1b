"""What a run leaves behind: `final/`, loadable by peft or transformers, and its record."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ecliptica.data.templates import Template, as_text, render_context
from ecliptica.files import replaced_directory
from ecliptica.objectives import kl
from ecliptica.recipe import Config
from ecliptica.record import RECORD, base_adapter, joint_digest, read_record
from ecliptica.running.ranks import ALONE, Ranks
from ecliptica.training.reference_cache import weights_digest
from model.errors import InputError
from model.llama import Llama
from model.lora import adapter_pieces, lora_layers, save_adapter
from model.lora_layer import POLICY
from model.scalar_head import model_pieces, save_whole
from model.weights import copy_companions


def record(config: Config, template: Template, steps: int) -> dict[str, Any]:
    """What somebody needs to use the export rightly, and where it came from.

    Template, base model, objective, and whether it was an ablation. Paths are absolute: they mean
    the same from every directory.
    """
    text = as_text(render_context(template, "{prompt}", "{instruction}"))
    objective = config.objective
    return {
        "template": template.name,
        "template_text": text,
        "template_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "base_model": _absolute(config.model.path),
        "started_from": _absolute(config.model.adapter) if config.model.adapter else None,
        "dtype": config.model.dtype,
        "objective": objective.name,
        "settings": asdict(objective),
        "steps": steps,
        "ablation": kl.is_ablation(objective),
        "seed": config.training.seed,
        "versions": {
            "torch": torch.__version__,
            "tokenizers": version("tokenizers"),
            "safetensors": version("safetensors"),
        },
    }


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


def check_stands_by_itself(adapter_dir: str | Path) -> None:
    """Raises InputError for an export of the past that is relative to yet another adapter."""
    first = base_adapter(read_record(adapter_dir), adapter_dir)
    if first:
        raise InputError(
            f"{adapter_dir}: this adapter is relative to another one, {first}; finish that "
            "run again, its export then stands by itself"
        )


def export(
    model: Llama, run_dir: Path, config: Config, made: dict[str, Any], ranks: Ranks = ALONE
) -> Path:
    """Write run_dir/final, all or nothing: an adapter in PEFT's layout, or the whole model.

    An adapter is relative to the base model, also if the run started from another adapter: then it
    holds both. Collective: rank 0 writes what all ranks gather, a tensor at a time.
    """
    final = run_dir / "final"
    pieces = adapter_pieces(model) if lora_layers(model) else model_pieces(model)

    def take_part() -> None:
        try:
            if ranks.main:
                _write(final, model, config, made, pieces)
        finally:
            # The others' gathers, and rank 0's own if its write failed.
            for _ in pieces:
                pass

    # Known by its weights: an adapter is of use on this base alone.
    made = made | {"base_sha256": joint_digest(weights_digest([config.model.path], ranks))}
    if POLICY in model.scalar_heads:
        head = model.scalar_heads[POLICY]
        made = made | {"reward": {"mean": head.mean, "std": head.std}}
    ranks.together(take_part)
    return final


def _write(
    final: Path,
    model: Llama,
    config: Config,
    made: dict[str, Any],
    pieces: Iterator[tuple[str, torch.Tensor]],
) -> None:
    """The files of an export. A disk that is full is an InputError that says what is kept."""
    base = config.model.path
    try:
        with replaced_directory(final) as out:
            if lora_layers(model):
                save_adapter(model, out, base, pieces, config.model.adapter or None)
                copy_companions(base, out)
            else:
                save_whole(pieces, out, base, getattr(torch, config.model.dtype))
            (out / RECORD).write_text(json.dumps(made, indent=2) + "\n")
    except OSError as error:
        raise InputError(
            f"{final}: the export could not be written ({error.strerror}); the checkpoints are "
            "kept: make room and start the same command again"
        ) from error
