"""Ablations that run: what they write, killed and resumed, with a cell that fails, refused, and
gone on with where only the small files are."""

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from ecliptica import ablate
from ecliptica.evaluation.results import Results
from ecliptica.experiments import ablation, command, measuring, runner, work
from ecliptica.experiments.store import Store
from model.errors import InputError
from tests.conftest import write_jsonl
from tests.evaluation.conftest import small_bank

ROOT = Path(__file__).parent.parent.parent
# Cells that train nothing: contrastive decoding is one wherever evaluation has it.
UNTRAINED = ["prompting-only", *["contrastive-decoding"] * measuring.has_contrast()]
CELLS = [*UNTRAINED, "sft,seed=0", "beta=0.1,seed=0", "beta=0.05,seed=0"]


class Here:
    """A cell in this process: what the launcher of processes does, without their start."""

    def __init__(self, plan, place):
        with open(plan.with_suffix(".log"), "w") as log:
            with redirect_stdout(log), redirect_stderr(log):
                self.code = work.run([str(plan)])

    def ended(self):
        return self.code

    def stop(self):
        pass


@pytest.fixture(scope="module")
def small(tmp_path_factory, tiny, preferences):
    """small(text) -> path of an ablation on the tiny model."""
    tmp_path = tmp_path_factory.mktemp("small")
    data = write_jsonl(tmp_path / "train.jsonl", preferences)
    bank = small_bank(tmp_path)
    (tmp_path / "recipe.toml").write_text(
        f"""
        [model]
        path = "{tiny}"
        dtype = "float32"
        [data]
        train = "{data}"
        template = "chatml"
        [lora]
        rank = 4
        [training]
        max_steps = 2
        batch_preferences = 4
        micro_preferences = 4
        lr = 1e-2
        checkpoint_every = 1
        """
    )

    def write(text):
        path = tmp_path / "small.toml"
        path.write_text(
            f'recipe = "{tmp_path}/recipe.toml"\n{text}\n[[suites]]\nname = "switch"\n'
            f'bank = "{bank[1]}"\ninstructions = "{bank[3]}"\n'
            'metrics = "column_accuracy,switch"\ncontrols = ""\n'
        )
        return path

    return write


SWEEP = (
    'start = "sft"\n[axes]\n"objective.beta" = [0.05, 0.1]\n'
    '[[starts]]\nname = "sft"\nset = { "objective.name" = "sft" }\n'
)


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """(path of the ablation SWEEP, its directory when all is done): not to be changed."""
    written = small(SWEEP)
    path = written.rename(written.with_name("sweep.toml"))
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run(path, out)
    return path, out


def run(path, out, *overrides, **how):
    """Whether all is done; cells in this process."""
    spec = ablation.read(path)
    return command.run(spec, out, overrides, runner.How(launch=Here, **how))


def rows(out):
    with open(out / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def by_cell(out):
    return list(dict.fromkeys(row["cell"] for row in rows(out)))


def test_a_sweep_from_one_start_is_a_table_and_a_page(whole):
    path, out = whole
    assert by_cell(out) == CELLS
    numbers = {
        (row["cell"], row["metric"]): float(row["value"]) for row in rows(out) if row["value"]
    }
    assert numbers["beta=0.05,seed=0", "kl"] > 0
    # The row is what the cell's own results say.
    own = Results.read(out / "cells" / "beta=0.05,seed=0" / "results" / "switch" / "results.json")
    assert numbers["beta=0.05,seed=0", "switch"] == pytest.approx(
        own.systems["trained"]["switch"].value, rel=1e-5
    )
    kl = own.details["kl"]["per_token"]
    assert numbers["beta=0.05,seed=0", "kl"] == pytest.approx(kl, rel=1e-5)

    text = (out / "ABLATION.md").read_text()
    assert "| beta=0.05 | 1 |" in text and "The arm beta=0.1 is the recipe itself." in text
    assert text.count("python train.py ") == 3
    assert "<h1>Ablation sweep</h1>" in (out / "report.html").read_text()
    assert (out / "switch-front.png").exists()

    # The base was asked once: what the ledger has of it, it has once.
    lines = [line for line in Store(out).out.joinpath("ledger/samples.jsonl").open()]
    asked = [line for line in lines if '"system": "prompting-only"' in line]
    assert len(asked) == len(set(asked)) > 0

    # Again: nothing to do, and the same bytes.
    before = (out / "results.csv").read_bytes()
    assert run(path, out) and (out / "results.csv").read_bytes() == before

    # A changed recipe under the same cells; nothing is lost.
    with pytest.raises(InputError, match=r"training.lr was 0.01, now 0.5"):
        run(path, out, "training.lr=0.5")
    assert (out / "results.csv").read_bytes() == before


def test_a_fresh_copy_of_the_small_files_goes_on(whole, tmp_path):
    path, out = whole
    want = (out / "results.csv").read_bytes()

    # Of a clone that has the rows of two cells and no run at all, nor the start's weights.
    clone = tmp_path / "clone"
    clone.mkdir()
    kept = [line for line in want.decode().splitlines(True) if "beta=0.05" not in line]
    (clone / "results.csv").write_text("".join(kept))
    records = (out / "cells.jsonl").read_text().splitlines(True)
    (clone / "cells.jsonl").write_text("".join(r for r in records if "beta=0.05,seed" not in r))
    shutil.copytree(out / "units", clone / "units")
    assert run(path, clone)
    assert (clone / "results.csv").read_bytes() == want
    trained = {directory.name for directory in (clone / "cells").iterdir()}
    assert trained == {"sft,seed=0", "beta=0.05,seed=0"}


def test_a_cell_that_fails_is_a_row_and_the_others_go_on(small, tmp_path):
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"prompt": "x"}])
    arms = (
        f'[[arms]]\nname = "bad"\nset = {{ "data.train" = "{bad}" }}\n'
        '[[arms]]\nname = "good"\nset = { "objective.beta" = 0.2 }\n'
    )
    out = tmp_path / "out"
    assert not run(small(arms), out)
    failed = [row for row in rows(out) if row["metric"] == "failed"]
    assert [row["cell"] for row in failed] == ["bad,seed=0"]
    assert failed[0]["note"].startswith("error: ") and "bad.jsonl:1" in failed[0]["note"]
    assert "good,seed=0" in by_cell(out)
    assert "**FAILED: 1 cells, see Failures.**" in (out / "ABLATION.md").read_text()

    # Mended, the row of the failure gives way.
    write_jsonl(bad, [{"instruction": "i", "prompt": "p", "chosen": "c", "rejected": "r"}] * 4)
    assert run(small(arms), out)
    assert not [row for row in rows(out) if row["metric"] == "failed"]


def test_if_no_run_works_the_first_failure_is_the_last(small, tmp_path):
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"prompt": "x"}])
    out = tmp_path / "out"
    text = f'[set]\n"data.train" = "{bad}"\n[axes]\n"objective.beta" = [0.1, 0.2, 0.3]\n'
    assert not run(small(text), out)
    assert by_cell(out) == [*UNTRAINED, "beta=0.1,seed=0"]


def test_a_full_disk_stops_all_in_one_line_and_loses_nothing(small, tmp_path):
    path, other = small('[axes]\n"objective.beta" = [0.1]\n'), tmp_path / "full"
    assert run(path, other)
    want = (other / "results.csv").read_bytes()

    # Of two cells one is not done, and its results go to a device that is always full.
    place = other / "cells" / "beta=0.1,seed=0" / "results" / "switch"
    Store(other).table.write_text("".join(want.decode().splitlines(True)[:3]))
    (place / "results.json").unlink()
    (place / "results.json").symlink_to("/dev/full")
    with pytest.raises(InputError) as error:
        run(path, other)
    said = str(error.value)
    assert "No space left on device" in said and "start the same command again" in said
    assert "\n" not in said and not Store(other).failures()
    (place / "results.json").unlink()
    assert run(path, other)
    assert (other / "results.csv").read_bytes() == want


def test_shards_take_parts_that_are_all_of_it(small, tmp_path):
    path = small('[axes]\n"objective.beta" = [0.05, 0.1, 0.2]\n')
    grid = command.grid_of(ablation.read(path), tmp_path / "out", tmp_path / "recipes", [])
    store = Store(tmp_path / "out")
    parts = []
    for number in (1, 2):
        shard = runner.Shard(number, 2)
        parts.append([c.name for c in runner.Runner(grid, store, runner.How(shard=shard)).wanted()])
    shared = set(UNTRAINED)
    assert set(parts[0]) & set(parts[1]) == shared
    assert set(parts[0]) | set(parts[1]) == {cell.name for cell in grid.cells}


def test_the_command_line(small, tmp_path, capsys):
    path = small('[axes]\n"objective.beta" = [0.05]\n')
    assert ablate.run([str(path), "--out", str(tmp_path / "out"), "--plan"]) == 0
    said = capsys.readouterr().out
    assert (
        "beta=0.05,seed=0" in said and "smallest detectable difference of column_accuracy" in said
    )
    assert not (tmp_path / "out").exists()
    assert ablate.run([str(path)]) == 2
    assert "--out: not given" in capsys.readouterr().err
    assert ablate.run([str(path), "--out", "x", "--shard", "3/2"]) == 2
    assert "--shard 3/2: expected I/N" in capsys.readouterr().err
    assert ablate.run(["lamda", "--out", "x"]) == 2
    assert "did you mean lambda?" in capsys.readouterr().err
    assert ablate.run([str(path), "--out", str(tmp_path / "o"), "--slurm"]) == 2
    assert "pip install submitit" in capsys.readouterr().err


# Real processes


def started(path, out):
    return subprocess.Popen(
        [sys.executable, "-m", "ecliptica.ablate", str(path), "--out", str(out), "--jobs", "2"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_kill_9_at_any_point_and_the_table_is_the_same_bytes(whole, tmp_path, request):
    path, first = whole
    want = (first / "results.csv").read_bytes()
    draw = random.Random(1)
    out = tmp_path / "killed"
    for _ in range(request.config.getoption("--kills")):
        process = started(path, out)
        time.sleep(draw.uniform(1, 12))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = started(path, out)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert (out / "results.csv").read_bytes() == want
