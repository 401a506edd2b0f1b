"""The order of things in a run: claim the directory, build what it is made of, train, export."""

import time
from functools import partial
from pathlib import Path

import torch

from ecliptica.arithmetic import seed_of
from ecliptica.data.loader import micro_batches
from ecliptica.objectives.contract import Step
from ecliptica.planning import gpus
from ecliptica.recipe import Config
from ecliptica.running.checkpoints import state_of
from ecliptica.running.heartbeat import Heartbeat
from ecliptica.running.ranks import ALONE, Ranks, is_lost
from ecliptica.running.run_directory import RunDirectory
from ecliptica.running.signals import Signals
from ecliptica.schema import Work
from ecliptica.training import export, samples, setup
from ecliptica.training.log import shown
from ecliptica.training.reward_scale import set_reward_scale
from ecliptica.training.schedules import Now
from ecliptica.training.setup import Run
from ecliptica.training.start_check import start_check
from ecliptica.training.step import evaluate, of_updates, optimizer_step
from model.errors import InputError


def train(config: Config, ranks: Ranks = ALONE) -> Path:
    """Run `config` to its end, or from where an earlier start of it left off; return the export.

    Collective: every rank calls it. Raises InputError for what the user can mend, and Stopped if a
    signal ended the run, its state saved.
    """
    ranks.together(setup.check, config)
    directory = RunDirectory(config)
    with Signals(ranks) as signals, Heartbeat(ranks, config.training.stall_seconds) as heartbeat:
        try:
            ranks.on_main(directory.claim)
            if ranks.on_main(lambda: directory.complete):
                if ranks.main:
                    print(
                        f"{directory.path}: this run is complete; its export is {directory.final}"
                    )
                return directory.final
            with setup.prepared(config, directory, ranks, signals) as run:
                return run_steps(run, signals, heartbeat)
        except RuntimeError as error:
            if ranks.world == 1 or not is_lost(error):
                raise
            lost, speaks = heartbeat.lost()
            if not lost:
                raise
            raise InputError(
                f"{heartbeat.place}: rank {', '.join(map(str, lost))} went away; all stop; "
                "start the same command again to go on",
                elsewhere=not speaks,
            ) from error
        finally:
            directory.release()


def run_steps(run: Run, signals: Signals, heartbeat: Heartbeat) -> Path:
    """Every step that is left, then the export."""
    ranks = run.ranks
    for step in range(run.start, run.source.steps):
        # This rank's share of the step: preferences from the disk, or a rollout of the policy.
        heartbeat.at(step, "data")
        began = time.perf_counter()
        work = run.source.work(step, ranks)
        waited = time.perf_counter() - began

        # The learning rate is a function of the step alone, so a resumed run needs no schedule
        # state.
        now = run.schedule.at(step)
        for group in run.learner.optimizer.param_groups:
            group["lr"] = now.learning_rate

        # Dropout is all that is drawn in a step; seeded by (run, step, rank) it is the same after a
        # resume.
        torch.manual_seed(seed_of(run.config.training.seed, step, ranks.rank))

        # Forward and backward of the share, then an update; several of a rollout.
        heartbeat.at(step, "forward, backward and update")
        metrics = update(run, work, now)

        # What every rank has to know of the others, in one collective.
        here = [signals.number, waited, gpus.peak_memory(run.device)]
        signal, waited, peak = ranks.reduce(here, "max")
        record_step(run, work, now, metrics, waited, peak)

        # Held-out preferences and a few answers, now and then.
        look(run, work, now, heartbeat)

        # Work is saved now and then, and when a signal asks to stop.
        save(run, step, bool(signal), heartbeat)
        if signal:
            where = f"after step {step + 1} of {run.source.steps}, saved"
            raise signals.stopped(int(signal), run.name, where)
    return export_of(run, heartbeat)


def look(run: Run, work: Work, now: Now, heartbeat: Heartbeat) -> None:
    """How the policy does on what it is not trained on, where it is due."""
    options = run.config.training
    if run.data.held_out and due(now.step, options.eval_every, now.steps):
        heartbeat.at(now.step, "evaluation")
        record_held_out(run, now)
    if due(now.step, options.sample_every, now.steps):
        heartbeat.at(now.step, "samples")
        record_samples(run, work, now.step)


def save(run: Run, step: int, stopping: bool, heartbeat: Heartbeat) -> None:
    """A checkpoint of the state after `step` where one is due or the run stops; on CUDA in the
    background, unless it stops."""
    if run.checkpoints.ready():
        run.checkpoints.finish()
    if not stopping and not due_after(step, run.config.training.checkpoint_every, run.source.steps):
        return
    heartbeat.at(step, "checkpoint")
    state = state_of(run.learner.policy, run.learner.optimizer)
    background = torch.device(run.device).type == "cuda" and not stopping
    run.checkpoints.save(step + 1, state, {"first": run.log.first}, background)


def export_of(run: Run, heartbeat: Heartbeat) -> Path:
    """The export of a run whose steps are done."""
    steps, learner = run.source.steps, run.learner
    run.checkpoints.finish()

    # The last parameters are looked at once more: the export may be all that is kept of them.
    run.checkpoints.check_finite(steps, state_of(learner.policy, learner.optimizer)["model"])
    heartbeat.at(steps, "export")
    if learner.objective.needs(learner.settings).rewards:
        micro = run.config.training.micro_preferences
        set_reward_scale(learner.policy, run.source.used(), micro, run.ranks, run.device)
    record = export.record(run.config, run.data.template, steps)
    out = export.export(learner.policy, run.directory.path, run.config, record, run.ranks)
    run.log.result(f"{out}: exported after {steps} steps")
    return out


def update(run: Run, work: Work, now: Now) -> dict[str, float]:
    """The optimizer updates of a step; their errors name the run and the step."""
    # What has to be so before the first of them: of a rollout always, of preferences at step 0.
    check = work.check
    if check is None and now.step == 0:
        first = work.updates[0]
        check = partial(start_check, learner=run.learner, config=run.config, batches=first)
    metrics = []
    try:
        for batches in work.updates:
            here = [batch.to(run.device) for batch in batches]
            metrics.append(optimizer_step(run.learner, here, step_of(now), run.ranks, check))
            check = None
        joined = of_updates(metrics)
        if work.metrics:  # a rollout's seconds stand beside each other
            joined["update_seconds"] = joined["step_seconds"]
        return joined | work.metrics
    except InputError as error:
        # Every rank's, or this one's alone, which then says it itself.
        raise InputError(
            f"{run.name}: step {now.step}: {error}", elsewhere=error.elsewhere
        ) from error


def step_of(now: Now) -> Step:
    """The step as an objective sees it."""
    return Step(now.step, now.steps)


def record_step(
    run: Run,
    work: Work,
    now: Now,
    metrics: dict[str, float],
    waited: float,
    peak: float,
) -> None:
    """A line of metrics.jsonl. waited: seconds for data; peak: bytes; both of the worst rank."""
    utilisation = gpus.mfu(
        run.learner.policy.config,
        work.batches,
        metrics["step_seconds"],
        full=not run.config.lora.rank,
        extra_forwards=run.reference_runs,
        device=run.device,
    )
    measured = {
        "lr": now.learning_rate,
        "data_seconds": waited,
        "peak_memory_gib": peak / 2**30,
        "mfu": utilisation,
    }
    run.log.step(now.step, metrics | measured)


def record_held_out(run: Run, now: Now) -> None:
    """A line of eval.jsonl: the step's numbers on preferences that are not trained on."""
    micro, ranks = run.config.training.micro_preferences, run.ranks
    packed = micro_batches(run.data.held_out, micro, ranks.rank, ranks.world)
    batches = [batch.to(run.device) for batch in packed]
    metrics = evaluate(run.learner, batches, step_of(now), ranks)
    run.log.append("eval.jsonl", now.step, [metrics])
    run.log.say(f"  held out: {shown(metrics)}")


def record_samples(run: Run, work: Work, step: int) -> None:
    """Lines of samples.jsonl: what the policy answers now; of a rollout some of its own answers, in
    full."""
    answers = work.answers or samples.answer(
        run.learner.policy, run.config.samples, run.data.tokenizer, run.data.template, run.ranks
    )
    run.log.append("samples.jsonl", step, answers)
    for answer in answers:
        run.log.say(samples.in_a_line(answer))


def due(step: int, every: int, steps: int) -> bool:
    """Whether something that is looked at every so often is looked at in this step: the first and
    the last included."""
    return every > 0 and (step % every == 0 or step == steps - 1)


def due_after(step: int, every: int, steps: int) -> bool:
    """Whether a checkpoint follows this step; the last one's keeps the work if the export fails."""
    return every > 0 and ((step + 1) % every == 0 or step == steps - 1)
