"""The order of things in a run: claim the directory, load, resume or check at step 0, train, save, sample, export."""

import math
import time
from dataclasses import replace

import torch

from ecliptica import objectives
from ecliptica.data.loader import Batches, load_examples, micro_batches
from ecliptica.data.templates import (
    TEMPLATES,
    encode_pieces,
    get_template,
    render_context,
    stop_ids,
)
from ecliptica.training import export, hardware, reference, schedules
from ecliptica.training.cache import Cache
from ecliptica.training.checkpoint import Checkpoints, Stop, Stopped, state_of
from ecliptica.training.distributed import ALONE, is_lost, settle
from ecliptica.training.metrics import Log, shown
from ecliptica.training.rundir import RunDir
from ecliptica.training.step import evaluate, optimizer_step
from ecliptica.training.watch import Watch
from model.config import load_config
from model.devices import pick_device
from model.errors import InputError
from model.generate import generate
from model.tokenizer import check_sizes, load_tokenizer


def train(config, ranks=ALONE):
    """Run `config` to its end, or from where an earlier start of it left off. Returns the directory of the export; None if a
    signal stopped the run, its state saved. Raises InputError for what the user can mend. Collective: every rank calls it."""
    run = RunDir(config)
    ranks.together(ready, config)
    with Stop(ranks) as stop, Watch(ranks, config.training.stall_seconds) as watch:
        try:
            ranks.on_main(run.claim)
            if ranks.on_main(lambda: run.complete):
                if ranks.main:
                    print(f"{run.path}: this run is complete; its export is {run.path / 'final'}")
                return run.path / "final"
            return run_steps(config, run, ranks, stop, watch)
        except Stopped:
            if ranks.main:
                print(
                    f"{run.path}: stopped by {stop.name or 'a signal'} before its next step; the same command goes on"
                )
            return None
        except RuntimeError as error:
            if ranks.world == 1 or not is_lost(error):
                raise
            gone, mine = watch.lost()
            if not gone:
                raise
            told = InputError(
                f"{watch.place[1]}: rank {', '.join(map(str, gone))} went away; all stop; start the same command again to go on"
            )
            told.elsewhere = not mine
            raise told from error
        finally:
            run.release()


def ready(config):
    """What can be wrong before anything is written: objective, device."""
    objectives.get(config.objective)
    pick_device(config.training.device)


def load_data(config, responses):
    """(tokenizer, template, examples, held-out examples, one line each that says what was cut or left out)."""
    tokenizer = load_tokenizer(config.model.path)
    check_sizes(tokenizer, load_config(config.model.path), config.model.path)
    template = get_template(
        fitting_template(tokenizer) if config.data.template == "auto" else config.data.template,
        tokenizer,
    )
    window = min(config.data.max_tokens, load_config(config.model.path).max_position_embeddings)
    data = replace(config.data, max_tokens=window)
    examples, counts = load_examples(data.train, data, tokenizer, template, responses)
    held_out = (
        load_examples(data.eval, data, tokenizer, template, responses, "dev")[0]
        if data.eval
        else []
    )
    lines = [f"{data.train or data.format}: {counts.line()}; at most {window} tokens each"]
    return (
        tokenizer,
        template,
        examples,
        held_out,
        lines + [f"  left out: {why}" for why in (*counts.dropped[:3], *counts.skipped[:3])],
    )


def run_steps(config, run, ranks, stop, watch):
    objective, options = objectives.get(config.objective), config.training
    device = pick_device(options.device)
    tokenizer, template, examples, held_out, lines = ranks.together(
        load_data, config, objective.RESPONSES
    )
    batches = Batches(examples, options)
    stamp = {"ablation": True} if export.is_ablation(config.objective) else {}
    log = Log(run.path, batches.steps, stamp, ranks.main)
    try:
        for line in lines:
            log.say(line)
        stop.check()
        model = reference.starting_model(config, device, ranks, trained=True).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trained,
            lr=options.lr,
            weight_decay=options.weight_decay,
            fused=torch.device(device).type == "cuda" or None,
        )
        log.say(
            f"{sum(p.numel() for p in trained):,} trained parameters, {batches.steps} steps of {batches.batch} preferences, "
            f"template {template.name}, {device}"
            + (f", {ranks.world} processes" if ranks.world > 1 else "")
        )
        if stamp:
            log.say("ABLATION: the KL of this run is lifted or is not a KL; every output says so")
        frozen = None
        if objective.needs_reference(config.objective):
            stop.check()
            frozen = reference.build(
                config, model, device, ranks, batches, held_out, log.say, stop.check
            )
        checkpoints = Checkpoints(run.path, options.keep_checkpoints, ranks, log.say)
        state = state_of(model, optimizer)
        found = checkpoints.resume(state) or {"step": 0, "first": {}}
        start, log.first = found["step"], found["first"]
        ranks.on_main(run.take_back, start)
        log.start(start)
        if start:
            log.say(f"{run.path}: resumed after step {start} of {batches.steps}")
        runs_forward = frozen is not None and not isinstance(frozen, Cache)
        hardware.forget_peak(device)
        stop.check()
        for step in range(start, batches.steps):
            began = time.perf_counter()
            watch.at(step, "data")
            packed = [batch.to(device) for batch in batches.step(step, ranks.rank, ranks.world)]
            waited = time.perf_counter() - began
            lam, lr = (
                schedules.kl_weight(step, batches.steps, config.objective),
                schedules.learning_rate(step, batches.steps, options),
            )
            for group in optimizer.param_groups:
                group["lr"] = lr
            torch.manual_seed(
                (options.seed * 1_000_003 + step) * 65_536 + ranks.rank
            )  # dropout, the only thing drawn in a step
            check = step_zero_check(config, frozen, packed) if step == 0 else None
            watch.at(step, "forward, backward and update")
            try:
                metrics = optimizer_step(
                    model,
                    frozen,
                    objective,
                    config.objective,
                    packed,
                    lam,
                    optimizer,
                    options.clip_norm,
                    check,
                    ranks,
                )
            except (
                InputError
            ) as error:  # every rank's, or this one's alone, which then says it itself
                told = InputError(f"{run.path}: step {step}: {error}")
                told.elsewhere = error.elsewhere
                raise told from error
            stopped, waited, peak = ranks.reduce(
                [bool(stop.name), waited, hardware.peak_memory(device)], "max"
            )
            log.step(
                step,
                metrics
                | {
                    "lr": lr,
                    "kl_weight": lam,
                    "data_seconds": waited,
                    "peak_memory_gib": peak / 2**30,
                    "mfu": hardware.mfu(
                        model,
                        packed,
                        metrics["step_seconds"],
                        not config.lora.rank,
                        runs_forward,
                        device,
                    ),
                },
            )
            if due(step, options.eval_every, batches.steps) and held_out:
                watch.at(step, "evaluation")
                packed = [
                    batch.to(device)
                    for batch in micro_batches(
                        held_out, options.micro_preferences, ranks.rank, ranks.world
                    )
                ]
                measured = evaluate(model, frozen, objective, config.objective, packed, lam, ranks)
                log.append("eval.jsonl", {"step": step} | stamp | measured)
                log.say(f"  held out: {shown(measured)}")
                settle(model)
            if due(step, options.sample_every, batches.steps):
                watch.at(step, "samples")
                sample(model, tokenizer, template, config, {"step": step} | stamp, log, ranks)
                settle(model)
            if checkpoints.ready():
                checkpoints.finish()
            if stopped or due_after(step, options.checkpoint_every, batches.steps):
                watch.at(step, "checkpoint")
                checkpoints.save(
                    step + 1,
                    state_of(model, optimizer),
                    {"first": log.first},
                    background=torch.device(device).type == "cuda" and not stopped,
                )
            if stopped:
                if ranks.main:
                    print(
                        f"{run.path}: stopped by {stop.name or 'a signal'} after step {step + 1} of {batches.steps}, saved; the same command goes on"
                    )
                return None
        checkpoints.finish()
        checkpoints.check_finite(batches.steps, state_of(model, optimizer)["model"])
        watch.at(batches.steps, "export")
        out = export.export(
            model, run.path, config, export.record(config, template, batches.steps), ranks
        )
    finally:
        log.close()
    if ranks.main:
        print(f"{out}: exported after {batches.steps} steps")
    return out


def step_zero_check(config, frozen, packed):
    """Before the first update policy and reference are the same function: KL = 0, and DPO's loss = ln 2. Anything else is a bug.

    A cache was made in other packings, and half precision rounds differently there: up to 0.01 nats a token are let pass.
    """
    near_kl = near_loss = 1e-4
    if isinstance(frozen, Cache) and config.model.dtype == "bfloat16":
        near_kl, near_loss = 0.01 * max(batch.rows_R.numel() for batch in packed), 0.2

    def check(metrics):
        if frozen is None or config.lora.dropout > 0:
            return
        if abs(metrics.get("kl", 0.0)) > near_kl:
            raise RuntimeError(
                f"step 0: KL to the reference is {metrics['kl']}, not 0: the reference is not the model that training starts from"
            )
        if (
            config.objective.name == "dpo"
            and not config.objective.reference_free
            and abs(metrics["loss"] - math.log(2)) > near_loss
        ):
            raise RuntimeError(
                f"step 0: the dpo loss is {metrics['loss']}, not ln 2 = {math.log(2):.6f}"
            )

    return check


def due(step, every, steps):
    """Whether something that is looked at every so often is looked at in this step: the first and the last included."""
    return every > 0 and (step % every == 0 or step == steps - 1)


def due_after(step, every, steps):
    """Whether a checkpoint follows this step; the last one's keeps the work if the export fails."""
    return every > 0 and ((step + 1) % every == 0 or step == steps - 1)


def sample(model, tokenizer, template, config, head, log, ranks):
    """Answer the fixed prompts under every instruction, greedily: whether behaviour switches is seen while it trains. The cells are
    dealt to the ranks; with a sharded model all of them generate until the last is done."""
    cells = [(p, i) for p in config.samples.prompts for i in config.samples.instructions]
    if not cells:
        return
    mine = cells[ranks.rank :: ranks.world] or cells[:1]
    contexts = [encode_pieces(tokenizer, render_context(template, p, i)) for p, i in mine]
    model.eval()
    made = generate(
        model,
        contexts,
        config.samples.max_new_tokens,
        stop_ids(template, tokenizer),
        agreed=lambda done: ranks.reduce([not done], "max") == [0],
    )
    model.train()
    texts = ranks.gather([tokenizer.decode(ids) for ids in made])
    for number, (prompt, instruction) in enumerate(cells):
        text = texts[number % ranks.world][number // ranks.world]
        log.append(
            "samples.jsonl", head | {"prompt": prompt, "instruction": instruction, "text": text}
        )
        log.say(f"  [{instruction}] {' '.join(text.split())[:160]}")


def fitting_template(tokenizer):
    """The chat template whose control tokens the tokenizer has; alpaca, which needs none, otherwise."""
    for name, marker in (("llama3", "<|start_header_id|>"), ("chatml", "<|im_start|>")):
        if name in TEMPLATES and tokenizer.token_id(marker) is not None:
            return name
    return "alpaca"
