"""--plan against independent numbers: the published parameter counts, bytes by hand, measured peaks, and a real sharding of the 70B shape."""

import json
import os
import subprocess
import sys

import pytest

from ecliptica.config import load
from ecliptica.recipe import Config
from ecliptica.training import plan
from model.errors import InputError
from tests.conftest import ROOT, write_jsonl, write_tiny

GIB = 2**30
PARAMETERS = {"8b": 8_030_261_248, "70b": 70_553_706_496}  # of Llama-3, as published
LORA = {
    "8b": 32 * 8 * (2 * 4096 + 4096 + 1024),
    "70b": 80 * 8 * (2 * 8192 + 8192 + 1024),
}  # rank 8 on q and v: A and B of both


def planned(size, *overrides):
    config = load(Config, f"llama3_{size}_cita", overrides)
    shape, _ = plan.model_shape(config)
    share, steps, _ = plan.data(config, shape)
    return plan.make(config, plan.device(config), shape, share, steps)


@pytest.mark.parametrize("size", PARAMETERS)
def test_what_is_kept_of_each_size(size):
    n, lora = PARAMETERS[size], LORA[size]
    found = planned(
        size,
        "plan.gpus=64",
        "training.activation_checkpointing=full",
        "training.micro_preferences=1",
    )
    assert found.items["parameters, 1/64"] == pytest.approx((2 * n + 4 * lora) / 64)
    assert found.items["optimizer (two float32 moments)"] == pytest.approx(8 * lora / 64)
    assert found.disk["checkpoint (x training.keep_checkpoints)"] == 12 * lora
    full = planned(
        size,
        "plan.gpus=64",
        "lora.rank=0",
        "training.reference=model",
        "training.micro_preferences=1",
        "training.activation_checkpointing=full",
    )
    kept = (
        full.items["parameters, 1/64"],
        full.items["optimizer (two float32 moments)"],
        full.items["gradients (float32)"],
        full.items["reference, a second model"],
    )
    assert kept == pytest.approx((4 * n / 64, 8 * n / 64, 4 * n / 64, 2 * n / 64))
    assert full.fits and full.total < 80 * GIB


def test_the_cache_on_disk_and_the_bytes_sent_by_hand():
    found = planned(
        "70b",
        "plan.gpus=64",
        "training.reference=cache",
        "training.max_steps=30",
        "training.epochs=3",
    )
    rows = 2 * 1024 - 1  # two responses of 1024 whose first tokens one row predicts
    assert found.disk["reference cache"] == 30 * 64 // 3 * rows * (8192 * 2 + 4)
    weights = 2 * PARAMETERS["70b"] + 4 * LORA["70b"]
    assert found.sent == pytest.approx(
        63 / 64 * (2 * weights + 4 * LORA["70b"])
    )  # gathered for forward and backward; gradients scattered
    hybrid = planned("70b", "plan.gpus=64", "training.replicas=8", "training.reference=cache")
    assert hybrid.sent == pytest.approx(
        7 / 8 * (2 * weights + 4 * LORA["70b"]) + 2 * 7 / 8 * 4 * LORA["70b"] / 8
    )
    assert hybrid.communication < found.communication


def test_what_does_not_fit_says_what_would():
    text = plan.report(
        load(Config, "llama3_8b_cita", ["plan.gpus=2", "plan.gpu=a100-40gb", "lora.rank=0"])
    )
    assert "DOES NOT FIT" in text and "what to change:" in text and "lora.rank=16" in text
    last = text.splitlines()[-1].split()
    assert last[0].startswith("plan.gpus=") and last[-1] == "fits"
    gpus = int(last[0].removeprefix("plan.gpus="))
    lean = (
        "plan.gpu=a100-40gb",
        "lora.rank=0",
        "training.activation_checkpointing=full",
        "training.micro_preferences=1",
    )
    assert (
        planned("8b", f"plan.gpus={gpus}", *lean).fits
        and not planned("8b", f"plan.gpus={gpus // 2}", *lean).fits
    )
    assert "leaves 448 of 512 GPUs without a preference" in plan.report(
        load(Config, "llama3_8b_cita", ["plan.gpus=512"])
    )


def test_bad_plans(tmp_path, tiny):
    for overrides, words in (
        (["plan.gpu=h101"], "plan.gpu: expected one of a100-40gb.*got 'h101'"),
        (["plan.shape=13b"], "no model there, and plan.shape is '13b'"),
        (
            ["plan.gpus=6", "training.replicas=4"],
            "training.replicas: 4 does not divide plan.gpus=6",
        ),
    ):
        with pytest.raises(InputError, match=words):
            plan.report(load(Config, "llama3_8b_cita", overrides))
    only = tmp_path / "only"  # config.json alone is enough to plan
    only.mkdir()
    (only / "config.json").write_text((tiny / "config.json").read_text())
    data = write_jsonl(
        tmp_path / "d.jsonl", [{"prompt": "a", "instruction": "b", "chosen": "c", "rejected": "d"}]
    )
    assert "data: none at hand" in plan.report(
        load(Config, "llama3_8b_cita", [f"model.path={only}", f"data.train={data}"])
    )


MEASURE = """
import json, sys
from ecliptica.config import load
from ecliptica.recipe import Config
from ecliptica.training import loop, plan
config = load(Config, sys.argv[1], sys.argv[2:])
shape, _ = plan.model_shape(config)
share, steps, _ = plan.data(config, shape)
found = plan.make(config, None, shape, share, steps).total
loop.train(config)
print(json.dumps([found / 2**30, max(json.loads(line)["peak_memory_gib"] for line in open(config.run.dir + "/metrics.jsonl"))]))
"""


@pytest.fixture(scope="module")
def middling(tmp_path_factory, smollm2):
    """Large enough for its tensors to outweigh the interpreter."""
    return write_tiny(
        tmp_path_factory.mktemp("middling") / "model",
        smollm2,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        head_dim=64,
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ("lora.rank=8",),
        ("lora.rank=0", "training.reference=model", "training.micro_preferences=2"),
        ("lora.rank=0", "training.reference=cache", "training.activation_checkpointing=full"),
    ],
    ids=" ".join,
)
def test_the_planned_peak_is_the_measured_one_within_10_percent(
    overrides, tmp_path, middling, preferences
):
    model = middling
    data = write_jsonl(tmp_path / "train.jsonl", preferences)
    (tmp_path / "r.toml").write_text(
        f'[model]\npath = "{model}"\ndtype = "float32"\n[data]\ntrain = "{data}"\n[training]\nmax_steps = 1\nbatch_preferences = 8\n'
        f'checkpoint_every = 0\n[run]\ndir = "{tmp_path}/run"\n[plan]\ngpu = "cpu"\ngpus = 1\n'
    )
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "r.toml"), *overrides],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
    )
    assert done.returncode == 0, done.stderr
    found, measured = json.loads(done.stdout.splitlines()[-1])
    print(f"planned {found:.2f} GiB, measured {measured:.2f}")
    assert found == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("options", [(), ("--full",), ("--replicas", "8")], ids=" ".join)
def test_the_70b_shape_is_built_and_sharded_on_the_meta_device(options):
    done = subprocess.run(
        [sys.executable, "benchmarks/shard_70b.py", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["parameters"] == PARAMETERS["70b"]
    assert found["kept"] == PARAMETERS["70b"] // (
        8 if "--replicas" in options else 64
    )  # every dimension is a multiple of 64
