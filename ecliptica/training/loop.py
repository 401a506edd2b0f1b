"""The order of things in a run: claim the directory, load, check at step 0, train, sample, export."""

import math
import shutil
import time
from dataclasses import replace
from pathlib import Path

import torch

from ecliptica import objectives
from ecliptica.config import as_toml
from ecliptica.data.loader import Batches, load_examples, micro_batches
from ecliptica.data.templates import TEMPLATES, encode_pieces, get_template, render_context, stop_ids
from ecliptica.training import export, reference, schedules
from ecliptica.training.metrics import Log, append, shown
from ecliptica.training.step import evaluate, optimizer_step
from model.config import load_config
from model.errors import InputError
from model.generate import generate
from model.lora import add_lora
from model.tokenizer import load_tokenizer
from model.weights import pick_device


def train(config):
    """Run `config` to the end. Returns the directory of the export. Raises InputError for what the user can mend."""
    objective = objectives.get(config.objective)
    run_dir, done = claim(config)
    if done:
        print(f"{run_dir}: this run is complete; its export is {run_dir / 'final'}")
        return run_dir / "final"
    device = pick_device(config.training.device)
    torch.manual_seed(config.training.seed)
    tokenizer = load_tokenizer(config.model.path)
    template = get_template(fitting_template(tokenizer) if config.data.template == "auto" else config.data.template, tokenizer)
    window = min(config.data.max_tokens, load_config(config.model.path).max_position_embeddings)
    data = replace(config.data, max_tokens=window)
    examples, counts = load_examples(data.train, data, tokenizer, template, objective.RESPONSES)
    held_out = load_examples(data.eval, data, tokenizer, template, objective.RESPONSES)[0] if data.eval else []
    model, frozen = build(config, objective, device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.training.lr, weight_decay=config.training.weight_decay)
    batches = Batches(examples, config.training)
    claim_files(run_dir, config)
    stamp = {"ablation": True} if export.is_ablation(config.objective) else {}
    log = Log(run_dir, batches.steps, stamp)
    log.say(f"{data.train}: {counts.line()}; at most {window} tokens each")
    for reason in (*counts.dropped[:3], *counts.skipped[:3]):
        log.say(f"  left out: {reason}")
    log.say(f"{sum(p.numel() for p in trained):,} trained parameters, {batches.steps} steps of {batches.batch} preferences, "
            f"template {template.name}, {device}")
    if stamp:
        log.say("ABLATION: the KL of this run is lifted or is not a KL; every output says so")
    try:
        for step in range(batches.steps):
            lam = schedules.kl_weight(step, batches.steps, config.objective)
            lr = schedules.learning_rate(step, batches.steps, config.training)
            for group in optimizer.param_groups:
                group["lr"] = lr
            packed = [batch.to(device) for batch in batches.step(step)]
            check = step_zero_check(config, frozen) if step == 0 else None
            try:
                metrics = optimizer_step(
                    model, frozen, objective, config.objective, packed, lam, optimizer, config.training.clip_norm, check)
            except InputError as error:
                raise InputError(f"{run_dir}: step {step}: {error}") from error
            log.step(step, metrics | {"lr": lr, "kl_weight": lam})
            if due(step, config.training.eval_every, batches.steps) and held_out:
                packed = [batch.to(device) for batch in micro_batches(held_out, config.training.micro_preferences)]
                found = evaluate(model, frozen, objective, config.objective, packed, lam)
                append(run_dir / "eval.jsonl", {"step": step} | stamp | found)
                log.say(f"  held out: {shown(found)}")
            if due(step, config.training.sample_every, batches.steps):
                sample(model, tokenizer, template, config, run_dir, {"step": step} | stamp, log)
    finally:
        log.close()
    out = export.export(model, run_dir, config, export.record(config, template, batches.steps))
    print(f"{out}: exported after {batches.steps} steps")
    return out


def build(config, objective, device):
    """(policy, reference or None). LoRA trains float32 adapters on a frozen base; full fine-tuning trains float32 masters."""
    lora = config.lora
    model = reference.base_model(config.model, device, None if lora.rank else torch.float32)
    if lora.rank:
        add_lora(model, lora.rank, lora.alpha, lora.targets, lora.dropout, config.training.seed)
    else:
        model.requires_grad_(True)
    model.train()
    model.checkpoint_blocks = config.training.checkpoint_blocks
    needed = objective.needs_reference(config.objective)
    return model, reference.build(config, model, device) if needed else None


def step_zero_check(config, frozen):
    """Before the first update policy and reference are the same function: KL = 0, and DPO's loss = ln 2. Anything else is a bug."""

    def check(metrics):
        if frozen is None or config.lora.dropout > 0:
            return
        if abs(metrics.get("kl", 0.0)) > 1e-4:
            raise RuntimeError(f"step 0: KL to the reference is {metrics['kl']}, not 0: the reference is not the model that training starts from")
        if config.objective.name == "dpo" and not config.objective.reference_free and abs(metrics["loss"] - math.log(2)) > 1e-4:
            raise RuntimeError(f"step 0: the dpo loss is {metrics['loss']}, not ln 2 = {math.log(2):.6f}")

    return check


def due(step, every, steps):
    return every > 0 and (step % every == 0 or step == steps - 1)


def sample(model, tokenizer, template, config, run_dir, head, log):
    """Answer the fixed prompts under every instruction, greedily: whether behaviour switches is seen while it trains."""
    cells = [(p, i) for p in config.samples.prompts for i in config.samples.instructions]
    if not cells:
        return
    contexts = [encode_pieces(tokenizer, render_context(template, p, i)) for p, i in cells]
    model.eval()
    made = generate(model, contexts, config.samples.max_new_tokens, stop_ids(template, tokenizer))
    model.train()
    for (prompt, instruction), ids in zip(cells, made):
        text = tokenizer.decode(ids)
        append(run_dir / "samples.jsonl", head | {"prompt": prompt, "instruction": instruction, "text": text})
        log.say(f"  [{instruction}] {' '.join(text.split())[:160]}")


def fitting_template(tokenizer):
    """The chat template whose control tokens the tokenizer has; alpaca, which needs none, otherwise."""
    for name, marker in (("llama3", "<|start_header_id|>"), ("chatml", "<|im_start|>")):
        if name in TEMPLATES and tokenizer.token_id(marker) is not None:
            return name
    return "alpaca"


def claim(config):
    """(run directory, whether it already holds this very run, complete). A directory of another config is refused."""
    run_dir = Path(config.run.dir)
    stored = run_dir / "config.toml"
    if not run_dir.exists() or (run_dir.is_dir() and not any(run_dir.iterdir())):
        return run_dir, False
    if not run_dir.is_dir():
        raise InputError(f"run.dir: {run_dir} is a file; expected a directory")
    if not stored.exists():
        raise InputError(f"run.dir: {run_dir} is not empty and holds no run (no config.toml); choose another run.dir")
    if stored.read_text(encoding="utf-8") != as_toml(config):
        raise InputError(f"run.dir: {run_dir} holds a run of another config ({stored}); choose another run.dir or move it away")
    return run_dir, (run_dir / "final").is_dir()


def claim_files(run_dir, config):
    """Make the directory this run's: config.toml written, an unfinished run of the same config moved aside, not overwritten."""
    if (run_dir / "metrics.jsonl").exists():
        shutil.move(run_dir, run_dir.with_name(f"{run_dir.name}.unfinished-{time.strftime('%Y%m%d-%H%M%S')}"))
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.toml").write_text(as_toml(config), encoding="utf-8")
