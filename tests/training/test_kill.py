"""Nothing is lost: real processes, killed and stopped. `pytest --kills 20` draws more moments to
kill at."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from ecliptica.arithmetic import ceil_div
from tests.conftest import write_jsonl
from tests.training.runs import (
    assert_same,
    end_started,
    finish,
    kill,
    lines_until,
    result,
    start,
    wait_for,
    workers_of,
)

STEPS = 14
LONG = "training.max_steps=4000"  # it does not end by itself


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny, preferences):
    """The path of a small recipe: dropout on, a checkpoint after every second step."""
    path = tmp_path_factory.mktemp("kill") / "small.toml"
    data = write_jsonl(path.with_name("train.jsonl"), preferences)
    path.write_text(
        f"""
        [model]
        path = "{tiny}"
        dtype = "float32"
        [data]
        train = "{data}"
        [lora]
        rank = 4
        dropout = 0.1
        [training]
        max_steps = {STEPS}
        batch_preferences = 5
        lr = 1e-3
        checkpoint_every = 2
        """
    )
    return path


@pytest.fixture(scope="module")
def whole(recipe):
    """whole(processes): the result of the recipe when nothing happens to it."""
    results = {}

    def of(processes):
        if processes not in results:
            run = recipe.parent / f"whole-{processes}"
            finish(start(recipe, run, processes=processes))
            results[processes] = result(run)
        return results[processes]

    return of


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    end_started()


def kill_at(process, run, moment, draw):
    """Kill it while it writes a checkpoint (0), after a step (1), or anywhere, loading included
    (2)."""
    step = draw.randrange(2, STEPS)
    parts, lines = run / "checkpoints", run / "metrics.jsonl"
    if moment == 0:
        wait_for(lambda: any(int(p.name[6:12]) > step for p in parts.glob(".step-*.part")), process)
    elif moment == 1:
        wait_for(lambda: lines.exists() and lines.read_bytes().count(b"\n") >= step, process)
    time.sleep(draw.uniform(0, (0.002, 0.05, 5)[moment]))
    kill(process)


@pytest.mark.parametrize("processes", [1, 2])
def test_kill_9_at_any_point_and_the_weights_are_the_same_bits(
    processes, recipe, whole, tmp_path, request
):
    want, draw = whole(processes), random.Random(processes)
    inside = resumed = 0
    for number in range(ceil_div(request.config.getoption("--kills"), processes)):
        run = tmp_path / f"killed-{number}"
        kill_at(start(recipe, run, processes=processes), run, number % 3, draw)
        inside += any((run / "checkpoints").glob(".step-*.part"))
        out = finish(start(recipe, run, processes=processes))
        resumed += "resumed after step" in out
        assert_same(result(run), want)
    print(f"{processes} processes: {inside} cut inside a write, {resumed} resumed")
    assert resumed and inside


def test_sigterm_saves_exits_with_143_and_goes_on_to_the_same_bits(recipe, whole, tmp_path):
    run = tmp_path / "run"
    process = start(recipe, run)
    wait_for((run / "metrics.jsonl").exists, process)
    process.send_signal(signal.SIGTERM)
    out = finish(process, code=143)
    assert "stopped by SIGTERM after step" in out and "saved; the same command goes on" in out
    assert not (run / "final").exists()
    assert "resumed after step" in finish(start(recipe, run))
    assert_same(result(run), whole(1))


def test_a_run_in_use_a_rank_that_is_killed_and_one_that_is_signalled(recipe, tmp_path):
    run = tmp_path / "run"
    process = start(recipe, run, LONG, processes=2)
    wait_for(lambda: any((run / "checkpoints").glob("step-*")), process)

    # Two runs in one directory.
    said = finish(start(recipe, run, LONG), code=2)
    assert said.startswith("error: run.dir: ") and said.count("\n") == 1
    assert "is in use by another run (process " in said

    # A killed rank ends all, and is named.
    began = time.monotonic()
    os.kill(workers_of(process)[1], signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - began < 60
    assert "rank 1 went away; all stop; start the same command again to go on" in out

    # A signal to one rank: all save and stop, each with the signal's exit code.
    process = start(recipe, run, LONG, processes=2)
    lines_until(process, "resumed after step")
    wait_for((run / "metrics.jsonl").exists, process)
    os.kill(workers_of(process)[1], signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert "stopped by SIGTERM after step" in out and "saved; the same command goes on" in out
    assert out.count("exitcode  : 143") == 2, out


def test_a_silent_rank_is_named_and_ends_the_others(recipe, tmp_path):
    stall = 8
    overrides = (LONG, f"training.stall_seconds={stall}")
    process = start(recipe, tmp_path / "run", *overrides, processes=2)
    wait_for((tmp_path / "run" / "metrics.jsonl").exists, process, seconds=120)
    workers = workers_of(process)
    os.kill(workers[1], signal.SIGSTOP)
    began = time.monotonic()

    # The other waits in a collective, and its watch ends it.
    line = lines_until(process, "all stop").splitlines()[-1]
    assert line.startswith("error: step ") and f"rank 1 (process {workers[1]} on " in line
    while _lives(workers[0]):
        assert time.monotonic() - began < 2 * stall + 1, "rank 0 outlived twice the stall"
        time.sleep(0.1)

    # A kill -9 of torchrun alone: its processes end with it.
    kill(process)
    end = time.monotonic() + 60
    while any(map(_lives, workers.values())):
        assert time.monotonic() < end, "torchrun's processes outlived it"
        time.sleep(0.1)


def _lives(pid):
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()
