"""Nothing is lost: real processes, killed, stopped and fed broken files. `pytest --kills 20` draws more moments to kill at."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ecliptica.config import load
from ecliptica.recipe import Config
from ecliptica.training import cache, checkpoint, loop
from model.errors import InputError
from tests.conftest import write_jsonl

ROOT = Path(__file__).parent.parent.parent
STEPS = 14


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As the processes below: bits are compared, and the math library may choose its number of threads by the load of the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny, preferences):
    """The path of a small recipe: dropout on, a checkpoint after every second step."""
    path = tmp_path_factory.mktemp("survival") / "small.toml"
    data = write_jsonl(path.with_name("train.jsonl"), preferences)
    path.write_text(
        f'[model]\npath = "{tiny}"\ndtype = "float32"\n[data]\ntrain = "{data}"\n[lora]\nrank = 4\ndropout = 0.1\n'
        f"[training]\nmax_steps = {STEPS}\nbatch_preferences = 5\nlr = 1e-3\ncheckpoint_every = 2\n"
    )
    return path


@pytest.fixture(scope="module")
def whole(recipe):
    """whole(processes): the result of the recipe when nothing happens to it."""
    made = {}

    def of(processes):
        if processes not in made:
            finish(start(recipe, recipe.parent / f"whole-{processes}", processes=processes))
            made[processes] = result(recipe.parent / f"whole-{processes}")
        return made[processes]

    return of


def start(recipe, run, *overrides, processes=1):
    """A training process (or torchrun with several), in a session of its own so that all of it can be killed."""
    launcher = (
        [sys.executable]
        if processes == 1
        else [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={processes}",
        ]
    )
    return subprocess.Popen(
        [*launcher, "train.py", str(recipe), f"run.dir={run}", *overrides],
        cwd=ROOT,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(process, code=0):
    out, _ = process.communicate(timeout=200)
    assert process.returncode == code, out
    return out


def result(run):
    """(weights, metrics without the times) of a finished run; every step is there once."""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == list(range(len(metrics)))
    return load_file(run / "final" / "adapter_model.safetensors"), [
        {k: v for k, v in row.items() if "second" not in k and "memory" not in k} for row in metrics
    ]


def assert_same(found, want):
    assert found[1] == want[1] and found[0].keys() == want[0].keys()
    assert all(torch.equal(found[0][name], want[0][name]) for name in want[0])


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, (
            process.communicate()[0] if process.poll() is not None else "too late"
        )
        time.sleep(0.001)


def kill(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("processes", [1, 2])
def test_kill_9_at_any_point_and_the_weights_are_the_same_bits(
    processes, recipe, whole, tmp_path, request
):
    want, draw, inside, resumed = whole(processes), random.Random(processes), 0, 0
    for number in range(-(-request.config.getoption("--kills") // processes)):
        run = tmp_path / f"killed-{number}"
        process, step = start(recipe, run, processes=processes), draw.randrange(2, STEPS)
        parts, lines = run / "checkpoints", run / "metrics.jsonl"
        if number % 3 == 0:  # while a checkpoint is being written
            wait_for(
                lambda: any(int(p.name[6:12]) > step for p in parts.glob(".step-*.part")), process
            )
        elif number % 3 == 1:  # after a step
            wait_for(lambda: lines.exists() and lines.read_bytes().count(b"\n") >= step, process)
        time.sleep(
            draw.uniform(0, (0.002, 0.05, 5)[number % 3])
        )  # the last: anywhere, loading included
        kill(process)
        inside += any(parts.glob(".step-*.part"))
        resumed += "resumed after step" in finish(start(recipe, run, processes=processes))
        assert_same(result(run), want)
    print(
        f"{processes} processes: {inside} cut inside a write, {resumed} resumed from a checkpoint"
    )
    assert resumed and inside


def test_sigterm_saves_exits_0_and_goes_on_to_the_same_bits(recipe, whole, tmp_path):
    process = start(recipe, tmp_path / "run")
    wait_for((tmp_path / "run" / "metrics.jsonl").exists, process)
    process.send_signal(signal.SIGTERM)
    out = finish(process)
    assert (
        "stopped by SIGTERM after step" in out
        and "the same command goes on" in out
        and not (tmp_path / "run" / "final").exists()
    )
    assert "resumed after step" in finish(start(recipe, tmp_path / "run"))
    assert_same(result(tmp_path / "run"), whole(1))


def test_a_run_in_use_is_refused_and_a_killed_rank_ends_all_and_is_named(recipe, tmp_path):
    process = start(recipe, tmp_path / "run", "training.max_steps=4000", processes=2)
    wait_for(lambda: any((tmp_path / "run" / "checkpoints").glob("step-*")), process)
    said = finish(
        start(recipe, tmp_path / "run", "training.max_steps=4000"), code=2
    )  # two runs in one directory
    assert (
        said.startswith("error: run.dir: ")
        and "is in use by another run (process " in said
        and said.count("\n") == 1
    )
    workers = [
        int(pid)
        for pid in os.listdir("/proc")
        if pid.isdigit() and _is_worker(int(pid), process.pid)
    ]
    (victim,) = [
        pid
        for pid in workers
        if b"\0RANK=1\0" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes() + b"\0"
    ]
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - began < 60
    assert "rank 1 went away; all stop; start the same command again to go on" in out
    assert "resumed after step" in _first_lines(
        start(recipe, tmp_path / "run", "training.max_steps=4000", processes=2)
    )


def _is_worker(pid, parent):
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[1]) == parent and b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _first_lines(process):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "resumed after step" in line:
            break
    kill(process)
    return "".join(lines)


SHORT = ["training.max_steps=7"]


@pytest.fixture(scope="module")
def twin(recipe):
    """The result of a short run in this process that nothing happens to."""
    loop.train(load(Config, recipe, [f"run.dir={recipe.parent}/twin", *SHORT]))
    return result(recipe.parent / "twin")


@pytest.fixture
def interrupted(recipe, twin, tmp_path):
    """(config, run directory) of the short run, cut in its sixth step: checkpoints at 2 and 4; and what it should come to."""
    config = load(Config, recipe, [f"run.dir={tmp_path}/run", *SHORT])

    class Enough(Exception):
        pass

    real, calls = loop.optimizer_step, []

    def counted(*args):
        calls.append(0)
        if len(calls) > 5:
            raise Enough
        return real(*args)

    loop.optimizer_step = counted
    try:
        with pytest.raises(Enough):
            loop.train(config)
    finally:
        loop.optimizer_step = real
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step-000002",
        "step-000004",
    ]
    return config, tmp_path / "run", twin


def newest_shard(run):
    return next((run / "checkpoints" / "step-000004").glob("*.distcp"))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _replace(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("name", "breakage", "words"),
    [
        ("flipped bit", flip, "its bytes are not those that were written"),
        ("truncated", lambda path: os.truncate(path, path.stat().st_size // 2), "cut short"),
        ("missing", Path.unlink, "cannot be read (No such file or directory)"),
        (
            "manifest",
            lambda path: (path.parent / "manifest.json").write_text("{"),
            "manifest.json: missing or not as it was written",
        ),
        (
            "step in manifest",
            lambda path: _replace(path.parent / "manifest.json", '"step": 4', '"step": 3'),
            "manifest.json: missing or not as it was written",
        ),
        (
            "metadata",
            lambda path: flip(path.parent / ".metadata"),
            "its bytes are not those that were written",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_a_broken_checkpoint_is_named_and_the_last_good_one_used(
    name, breakage, words, interrupted, capsys
):
    config, run, want = interrupted
    breakage(newest_shard(run))
    loop.train(config)
    said = capsys.readouterr().err
    assert (
        words in said
        and "step-000004" in said
        and "passed over" in said
        and "resumed after step 2 of" in said
    )
    assert_same(result(run), want)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [
        "step-000006",
        "step-000007",
    ]  # the broken one made way


def test_what_a_killed_process_leaves_is_cleaned_and_changed_inputs_are_refused(
    interrupted, recipe
):
    config, run, want = interrupted
    data = recipe.with_name("train.jsonl")
    before = data.read_text()
    for rest in (
        run / ".config.toml.7.tmp",
        run / "checkpoints" / ".step-000003.part" / "x",
        run / ".final.7.tmp" / "x",
    ):
        rest.parent.mkdir(exist_ok=True)
        rest.write_text("half")
    try:
        data.write_text(before.replace("bees", "wasps"))
        with pytest.raises(
            InputError,
            match="began with another .*train.jsonl .its bytes changed since.; put the file back",
        ):
            loop.train(config)
    finally:
        data.write_text(before)
    loop.train(config)
    assert not [
        p for p in [*run.iterdir(), *(run / "checkpoints").iterdir()] if p.name.startswith(".")
    ]
    assert_same(result(run), want)


def test_parameters_that_are_not_finite_are_not_saved(interrupted):
    config, run, _ = interrupted
    model = loop.reference.starting_model(config, "cpu", trained=True)
    state = checkpoint.state_of(
        model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    )
    next(iter(state["model"].values())).view(-1)[3] = float("inf")
    with pytest.raises(
        InputError,
        match="the update of step 5 made parameters that are not finite .*not saved; the last good one is step-000004",
    ):
        checkpoint.Checkpoints(run, 1, loop.ALONE, print).save(6, state, {})
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-000002", "step-000004"]


def test_a_signal_before_the_first_step_ends_in_order(recipe, tmp_path, capsys):
    config, real = (
        load(
            Config,
            recipe,
            [f"run.dir={tmp_path}/run", "training.reference=cache", "lora.dropout=0", *SHORT],
        ),
        cache._write,
    )

    def interrupted_write(*args):
        real(*args)
        os.kill(os.getpid(), signal.SIGTERM)

    cache._write = interrupted_write
    try:
        assert loop.train(config) is None
    finally:
        cache._write = real
    assert (
        "stopped by SIGTERM before its next step; the same command goes on"
        in capsys.readouterr().out
    )
    loop.train(config)
    assert "made again" not in capsys.readouterr().err and (tmp_path / "run" / "final").is_dir()


def test_a_silent_rank_is_named_by_its_neighbour(recipe, tmp_path):
    process = start(recipe, tmp_path / "run", "training.max_steps=4000", processes=2)
    wait_for((tmp_path / "run" / "metrics.jsonl").exists, process, seconds=120)
    workers = [
        int(pid)
        for pid in os.listdir("/proc")
        if pid.isdigit() and _is_worker(int(pid), process.pid)
    ]
    (victim,) = [
        pid
        for pid in workers
        if b"\0RANK=1\0" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes() + b"\0"
    ]
    os.kill(victim, signal.SIGSTOP)
    for line in process.stdout:
        if "has given no sign of life" in line:
            break
    assert line.startswith(f"rank 1 (process {victim} on ")
    kill(process)  # torchrun alone: its processes end with it
    end = time.monotonic() + 60
    while any(
        Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
        for pid in workers
    ):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_no_whole_checkpoint_is_an_error_that_changes_nothing(interrupted):
    config, run, _ = interrupted
    for shard in (run / "checkpoints").glob("*/*.distcp"):
        flip(shard)
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(
        InputError, match="none of 2 checkpoints is whole: remove .* to start from step 0"
    ):
        loop.train(config)
    assert (run / "metrics.jsonl").read_bytes() == before and len(
        list((run / "checkpoints").iterdir())
    ) == 2


def test_a_write_that_fails_leaves_the_last_good_checkpoint(interrupted, monkeypatch):
    config, run, want = interrupted
    real = checkpoint.dcp.save

    def full(state, checkpoint_id):
        (checkpoint_id / "__0_0.distcp").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.dcp, "save", full)
    with pytest.raises(
        InputError,
        match="could not be written .*No space left on device.*; the last good one is step-000004; make room",
    ):
        loop.train(config)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    monkeypatch.setattr(checkpoint.dcp, "save", real)
    loop.train(config)
    assert_same(result(run), want)


def test_a_checkpoint_written_in_the_background_is_the_same(interrupted, tmp_path):
    config, run, _ = interrupted
    model = loop.reference.starting_model(config, "cpu", trained=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    state, said = checkpoint.state_of(model, optimizer), []
    checkpoint.Checkpoints(run, 2, loop.ALONE, said.append).resume(state)
    made = checkpoint.Checkpoints(tmp_path / "other", 1, loop.ALONE, said.append)
    for step in (7, 8):
        made.save(step, state, {"first": {}}, background=True)
    made.finish()
    assert made.steps() == [8] and not said
    other = loop.reference.starting_model(config, "cpu", trained=True)
    again = checkpoint.state_of(
        other, torch.optim.AdamW([p for p in other.parameters() if p.requires_grad])
    )
    assert made.resume(again)["step"] == 8
    assert all(torch.equal(again[k][n], v) for k in ("model",) for n, v in state[k].items())
    assert all(
        torch.equal(again["optimizer"][n][m], v)
        for n, moments in state["optimizer"].items()
        for m, v in moments.items()
    )
    assert max(float(p.abs().max()) for n, p in again["model"].items() if "lora_B" in n) > 0


def test_the_reference_cache_is_resumed_checked_and_equal(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cache, "GROUP", 5)
    for kind in ("adapter-off", "model", "cache"):
        loop.train(
            load(
                Config,
                recipe,
                [
                    f"run.dir={tmp_path}/{kind}",
                    f"training.reference={kind}",
                    "lora.dropout=0",
                    *SHORT,
                ],
            )
        )
    assert "reference cache: 327 hidden rows x 48 float32" in capsys.readouterr().err
    want, same, cached = (result(tmp_path / kind) for kind in ("adapter-off", "model", "cache"))
    assert_same(same, want)
    assert all((cached[0][n] - want[0][n]).norm() <= 1e-5 * want[0][n].norm() for n in want[0])
    assert all(
        a["kl"] == pytest.approx(b["kl"], abs=1e-5)
        and a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        for a, b in zip(cached[1], want[1])
    )
    made = sorted((tmp_path / "cache" / "cache").glob("*/part-*"))
    assert len(made) == 3

    shared = [
        f"training.cache_dir={tmp_path}/cache/cache",
        "training.reference=cache",
        "lora.dropout=0",
        *SHORT,
    ]
    os.truncate(made[0], 100)
    stamps = [path.stat().st_mtime_ns for path in made]
    loop.train(load(Config, recipe, [f"run.dir={tmp_path}/second", *shared]))
    assert "2 of 3 parts are there" in capsys.readouterr().err
    assert [path.stat().st_mtime_ns == stamp for path, stamp in zip(made, stamps)] == [
        False,
        True,
        True,
    ]
    assert_same(result(tmp_path / "second"), cached)

    flip(made[1])
    with pytest.raises(
        InputError,
        match="part-000001.safetensors: .*corrupt and was removed; start the same command again",
    ):
        loop.train(load(Config, recipe, [f"run.dir={tmp_path}/third", *shared]))
    loop.train(load(Config, recipe, [f"run.dir={tmp_path}/third", *shared]))
    assert_same(result(tmp_path / "third"), cached)

    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(
        InputError, match="the reference cache needs .* MiB more, .* are free; make room"
    ):
        loop.train(load(Config, recipe, [f"run.dir={tmp_path}/fourth", "training.reference=cache"]))


def test_the_cache_runs_no_reference_and_depends_on_weights_and_data(
    recipe, tmp_path, tiny, monkeypatch
):
    config = load(
        Config,
        recipe,
        ["training.reference=cache", "lora.dropout=0", f"run.dir={tmp_path}/run", *SHORT],
    )
    loop.train(config)
    (first,) = (tmp_path / "run" / "cache").iterdir()
    forwards = []
    real = cache.reference_rows
    monkeypatch.setattr(cache, "reference_rows", lambda *args: forwards.append(args) or real(*args))
    (tmp_path / "run" / "final").rename(tmp_path / "gone")
    loop.train(config)
    assert len(forwards) == 1  # the comparison of one batch before training
    examples = [type("E", (), {"key": "a"})]
    keys = {
        cache.cache_key(weights, dtype, data)
        for weights in ([["f", "1"]], [["f", "2"]])
        for dtype in (torch.float32, torch.bfloat16)
        for data in (examples, examples * 2)
    }
    assert len(keys) == 8 and first.name not in keys
