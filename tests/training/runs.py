"""What tests of training share: reading what a run wrote, processes of their own, a learner."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from ecliptica import objectives
from ecliptica.data.loader import load_examples
from ecliptica.data.templates import get_template
from ecliptica.policy import adapter_off_reference, model_reference
from ecliptica.training import reference
from ecliptica.training.step import Learner

ROOT = Path(__file__).parent.parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
STARTED = []  # processes that `start` started and nothing has ended
MEASURED = ("second", "memory")  # in the names of what a clock or the system says


def rows(path):
    """The records of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(run):
    """{name: tensor} of a finished run's export."""
    tensors = {}
    for path in sorted((run / "final").glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def result(run):
    """(weights, metrics without what is measured) of a finished run; every step is there once."""
    metrics = rows(run / "metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(len(metrics)))
    numbers = [
        {name: value for name, value in row.items() if not any(word in name for word in MEASURED)}
        for row in metrics
    ]
    return weights(run), numbers


def assert_same(got, want):
    """Two results are the same, bit for bit."""
    for step, (one, other) in enumerate(zip(got[1], want[1], strict=True)):
        assert one == other, f"metrics of step {step}"
    assert got[0].keys() == want[0].keys()
    different = [name for name in want[0] if not torch.equal(got[0][name], want[0][name])]
    assert not different, f"other bits in {different}"


def learner_of(config, lr=0.1):
    """A learner with plain gradient descent: a step is proportional to its gradient."""
    policy = reference.starting_model(config, "cpu", trained=True).train()
    if config.lora.rank:
        frozen = adapter_off_reference(policy)
    else:
        frozen = model_reference(reference.starting_model(config, "cpu"))
    return Learner(
        policy=policy,
        reference=frozen,
        objective=objectives.get(config.objective),
        settings=config.objective,
        optimizer=torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=lr),
        clip_norm=1.0,
    )


def examples_of(config, tokenizer):
    """The encoded training data of a config, two responses each."""
    template = get_template("chatml", tokenizer)
    return load_examples(config.data.train, config.data, tokenizer, template, 2)[0]


# Processes of their own


def start(recipe, run, *overrides, processes=1):
    """A training process (or torchrun with several), in a session of its own so that all of it can
    be killed."""
    launcher = [sys.executable]
    if processes > 1:
        launcher = [*TORCHRUN, f"--nproc-per-node={processes}"]
    process = subprocess.Popen(
        [*launcher, "train.py", str(recipe), f"run.dir={run}", *overrides],
        cwd=ROOT,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    STARTED.append(process)
    return process


def end_started():
    """Kill what a test that failed left running."""
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            kill(process)


def finish(process, code=0):
    """What it printed; it has to end with `code`."""
    out, _ = process.communicate(timeout=200)
    assert process.returncode == code, out
    return out


def wait_for(condition, process, seconds=60):
    """Until condition() holds; the process may not end before."""
    end = time.monotonic() + seconds
    while not condition():
        ended = process.poll() is not None
        assert not ended, process.communicate()[0]
        assert time.monotonic() < end, "too late"
        time.sleep(0.001)


def lines_until(process, words):
    """What it prints, up to the line with these words."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


def kill(process):
    """kill -9 of the process and, with torchrun, of torchrun, whose processes end with it."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def workers_of(process):
    """{rank: process id} of torchrun's processes."""
    workers = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if _parent(pid) == process.pid and b"train.py" in _proc(pid, "cmdline"):
            environment = dict(
                entry.partition(b"=")[::2] for entry in _proc(pid, "environ").split(b"\0")
            )
            workers[int(environment[b"RANK"])] = int(pid)
    return workers


def _parent(pid):
    fields = _proc(pid, "stat").rpartition(b")")[2].split()
    return int(fields[1]) if fields else None


def _proc(pid, name):
    """What /proc says of a process; nothing of one that is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
