"""--plan: the cells, what they would take on this machine, and what they could show. Nothing is
trained and nothing is written.

Times come from cells of this ablation that are done already; where there are none, from the
products that are needed at the rate of this machine's products, measured in a moment.
"""

import time
from dataclasses import replace
from typing import Any

import torch

from ecliptica import markdown, objectives
from ecliptica.config import as_toml
from ecliptica.evaluation import pooling, suites
from ecliptica.experiments import measuring
from ecliptica.experiments.ablation import Measurement
from ecliptica.experiments.cells import CONTROL, Cell, Grid
from ecliptica.experiments.store import Store
from ecliptica.planning import estimate as sizes
from ecliptica.planning.gpus import step_flops
from ecliptica.planning.workload import chosen_gpu, model_shape, workload
from ecliptica.recipe import Config

SHARE = 0.5  # of the rate of a large product that a model reaches: assumed
TOKENS_A_WORD = 1.4
WORST_SPREAD = 0.5  # standard deviation of a share that is as often 0 as 1


def report(grid: Grid, store: Store) -> str:
    """The text that --plan prints."""
    for suite in grid.ablation.suites:
        measuring.check(suite)
    done, records = store.done(), store.records()
    rate = None
    needs: dict[str, tuple[float, float | None, float]] = {}
    rows, left = [], 0.0
    for cell in grid.cells:
        known = records.get(cell.name)
        if cell.name in done and known:
            training = (known["training"] or {}).get("seconds", 0.0)
            peak = (known["training"] or {}).get("peak_memory_gib")
            evaluation, state = known["evaluation_seconds"], "done"
        else:
            rate = rate or products_per_second()
            training, peak, evaluation = needed(grid, cell, rate, needs)
            state, left = "to do", left + training + evaluation
        memory = "-" if peak is None else f"{peak:.1f}"
        rows.append([cell.name, state, minutes(training), minutes(evaluation), memory])
    head = ["cell", "state", "training, min", "evaluation, min", "memory, GiB"]
    trained = [cell for cell in grid.cells if cell.seed is not None]
    lines = [
        f"{grid.ablation.name}: {len(grid.cells)} cells, {len(trained)} of them trained; about "
        f"{left / 60:.0f} minutes are left, one after another",
        "",
        markdown.table(head, rows),
        "",
        *smallest(grid, store),
    ]
    return "\n".join(lines)


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}"


# Time and memory


def products_per_second(size: int = 1024) -> float:
    """Floating-point operations a second of a float32 product on this machine."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.ones(size, size, device=device)
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        float((a @ a)[0, 0])
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def needed(
    grid: Grid, cell: Cell, rate: float, known: dict[str, Any]
) -> tuple[float, float | None, float]:
    """(seconds of training, GiB, seconds of evaluation). known: of configs of the same size."""
    config = grid.config(cell)
    shape, _ = model_shape(config)
    head = 2 * shape.vocab_size * shape.hidden_size
    flops_a_token = step_flops(shape, 1, 0, False, -1) + head  # of a forward alone
    speed = rate * SHARE
    evaluation = sum(
        evaluation_tokens(suite) * flops_a_token / speed for suite in grid.ablation.suites
    )
    if cell.seed is None:
        return 0.0, None, evaluation
    key = same_size(config)
    if key not in known:
        known[key] = training_needs(config, shape, speed)
    training, peak = known[key]
    return training, peak, evaluation


def same_size(config: Config) -> str:
    """A text that configs share which need as much: all but what no size depends on."""
    training = replace(config.training, seed=0, lr=1.0)
    plain = replace(config, training=training, run=replace(config.run, dir=""))
    name = config.objective.name
    return f"{name} {as_toml(plain, leave_out=('plan', 'objective', 'model'))}"


def training_needs(config: Config, shape: Any, speed: float) -> tuple[float, float]:
    """(seconds, GiB a process) of a run."""
    gpus = replace(config.plan, gpus=1)
    config = replace(config, plan=gpus)
    work = workload(config, shape)
    need = sizes.estimate(config, chosen_gpu(config), shape, work)
    forwards = 1 if objectives.get(config.objective).needs(config.objective).frozen_model else 0
    full = config.lora.rank == 0
    flops = step_flops(shape, work.tokens, work.rows, full, forwards)
    micro = -(-config.training.batch_preferences // config.training.micro_preferences)
    return work.steps * micro * flops / speed, need.total / 2**30


def evaluation_tokens(measurement: Measurement) -> float:
    """Tokens of the forwards that one system needs for a suite, roughly: a context once, and its
    responses; of answers as many as they may have."""
    suite = suites.get(measurement.suite)
    if not suite.asks_systems:
        return 0.0
    words = {"model": "x", "template": "x", "out": "x"}
    _, options, _ = measuring.options_of(suite, measurement, words)
    study = suite.prepare(options)
    asked = {question for question in study.questions(study.units, True)}
    contexts = {(question.instruction, question.prompt) for question in asked}
    texts = [f"{instruction or ''} {prompt}" for instruction, prompt in contexts]
    texts += [question.response or "" for question in asked]
    answers = sum(q.sampling.max_new_tokens for q in asked if q.sampling is not None)
    return sum(len(text.split()) for text in texts) * TOKENS_A_WORD + answers


# What could be seen


def smallest(grid: Grid, store: Store) -> list[str]:
    """The smallest difference to prompting only that each suite's headline could show."""
    lines = []
    seeds = len(grid.ablation.seeds)
    for suite in grid.ablation.suites:
        control = store.results(CONTROL, suite.label)
        arms = arms_of(grid, store, suite.label)
        if arms:
            name = arms[0][0].headline
            pairs = [pooling.spreads(own, name) for own in arms if name not in own[0].derived]
            if not pairs:
                continue
            of_units = sum(pair[0] for pair in pairs) / len(pairs)
            of_seeds = max(pair[1] for pair in pairs)
            units, why = arms[0][0].units, "spread of differences in the cells that are done"
        elif control is not None and control.headline in control.per_unit[control.control]:
            name = control.headline
            column = pooling.column([control], 0, name)
            of_units = float(column.std(ddof=1)) * 2**0.5
            of_seeds = 0.0
            units, why = control.units, "spread of the base between units, twice; seeds unknown"
        else:
            name, units = units_of(suite)
            if not units:
                continue
            of_units, of_seeds = WORST_SPREAD * 2**0.5, 0.0
            why = "the widest spread of a share, since nothing is measured yet; seeds unknown"
        least = pooling.smallest_difference(of_units, units, of_seeds, seeds)
        lines.append(
            f"{suite.label}: smallest detectable difference of {name} {least:.3f} "
            f"({units} units, {seeds} seeds, 80 % power at 5 %; {why})"
        )
    return lines


def arms_of(grid: Grid, store: Store, label: str) -> list[list[Any]]:
    """The results of every arm that is there."""
    by_arm: dict[str, list[Any]] = {}
    done = store.done()
    for cell in grid.cells:
        results = store.results(cell.name, label) if cell.name in done else None
        if cell.seed is not None and results is not None:
            by_arm.setdefault(cell.arm, []).append(results)
    return list(by_arm.values())


def units_of(measurement: Measurement) -> tuple[str, int]:
    """(headline, how many units) of a suite that asks systems; ("", 0) of another."""
    suite = suites.get(measurement.suite)
    if not suite.asks_systems:
        return "", 0
    words = {"model": "x", "template": "x", "out": "x"}
    _, options, _ = measuring.options_of(suite, measurement, words)
    study = suite.prepare(options)
    first = next(iter(study.metrics)).name
    return study.headline or first, len(study.units)
