"""The same run on 1, 2 and 4 processes: curves, weights, exports; and what makes it so."""

import os
import shutil
import subprocess

import pytest
import torch

from ecliptica import config
from ecliptica.data.loader import micro_batches
from ecliptica.recipe import Config
from ecliptica.running.ranks import Ranks
from ecliptica.schema import Encoded
from ecliptica.training import loop
from model.errors import InputError
from model.lora import load_adapter
from model.weights import load_model
from tests.conftest import write_jsonl, write_tiny
from tests.model.test_llama import logits
from tests.training.runs import ROOT, TORCHRUN, rows, weights

CASES = {
    "lora": ("model.path={p}/untied",),
    "full": ("model.path={p}/untied", "lora.rank=0"),
    "reward": (
        "model.path={p}/untied",
        "objective.name=reward",
        "training.max_steps=3",
    ),
    "reward-full": (
        "model.path={p}/tied",
        "objective.name=reward",
        "lora.rank=0",
        "training.max_steps=2",
    ),
    "full-tied-cache": (
        "model.path={p}/tied",
        "lora.rank=0",
        "training.reference=cache",
        "training.activation_checkpointing=full",
    ),
    # 24 labelled responses in steps of five: ranks and batches of unequal size.
    "kto": (
        "model.path={p}/untied",
        "objective.name=kto",
        "objective.beta=0.02",
        "training.lr=1e-2",
        "training.warmup=0",
    ),
    "lora-bfloat16": (
        "model.path={p}/tied",
        "model.dtype=bfloat16",
        "training.activation_checkpointing=selective",
        "training.max_steps=2",
    ),
}
CUT = ("lora", "full")  # their runs of 4 processes are cut after step 4, and ended by 2
RECIPE = """
[model]
dtype = "float32"
[data]
train = "{data}"
eval = "{held_out}"
[lora]
rank = 4
[samples]
max_new_tokens = 3
[training]
max_steps = 5
batch_preferences = 5
lr = 1e-3
eval_every = 4
sample_every = 4
checkpoint_every = 2
"""
# One torchrun for many runs: starting the processes takes longer than a run.
SEVERAL = """
import sys
from ecliptica.config import load
from ecliptica.recipe import Config
from ecliptica.running.ranks import joined
from ecliptica.training.loop import train
with joined() as ranks:
    for line in open(sys.argv[1]):
        recipe, *overrides = line.split()
        train(load(Config, recipe, overrides), ranks)
"""


def launch(path, processes, commands):
    """The runs of several command lines, one after another, in one torchrun; its stderr."""
    (path / "several.py").write_text(SEVERAL)
    (path / "lines").write_text("\n".join(" ".join(command) for command in commands))
    done = subprocess.run(
        [*TORCHRUN, f"--nproc-per-node={processes}", f"{path}/several.py", f"{path}/lines"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory, smollm2, preferences):
    """Every case on 1, 2 and 4 processes, split differently each time."""
    path = tmp_path_factory.mktemp("ranks")
    write_tiny(path / "untied", smollm2, tie_word_embeddings=False)
    write_tiny(path / "tied", smollm2, tie_word_embeddings=True)
    data = write_jsonl(path / "train.jsonl", preferences)
    held_out = write_jsonl(path / "eval.jsonl", preferences[:5])
    (path / "r.toml").write_text(RECIPE.format(data=data, held_out=held_out))

    def command(case, processes, *more):
        overrides = [text.format(p=path) for text in CASES[case]]
        return [f"{path}/r.toml", *overrides, f"run.dir={path}/{case}-{processes}", *more]

    # Four processes, as two replicas of two shards.
    hybrid = ("training.micro_preferences=2", "training.replicas=2")
    four = {case: command(case, 4, *hybrid) for case in CASES}
    launch(path, 4, four.values())
    for case in CUT:
        shutil.copytree(path / f"{case}-4", path / f"{case}-4-whole")
        for part in ("final", "checkpoints/step-000005"):
            shutil.rmtree(path / f"{case}-4" / part)

    # Two processes: runs of their own, and what four began.
    two = [command(case, 2, "training.micro_preferences=1") for case in CASES]
    said = launch(path, 2, [*two, *(four[case] for case in CUT)])
    assert said.count("resumed after step 4 of 5") == len(CUT)

    for case in CASES:
        recipe, *overrides = command(case, 1)
        loop.train(config.load(Config, recipe, overrides))
    return path


def distance(got, want, together=False):
    """The largest relative distance of a tensor; together: of all of them as one vector."""
    assert got.keys() == want.keys()
    if together:
        got, want = ({"": _one_vector(tensors)} for tensors in (got, want))
    # A reward's bias has no gradient, so it may be 0.
    return max(float((got[n] - want[n]).norm() / want[n].norm().clamp(min=1e-6)) for n in want)


def _one_vector(tensors):
    return torch.cat([tensor.flatten() for _, tensor in sorted(tensors.items())])


def of_run(run):
    return {name: tensor.double() for name, tensor in weights(run).items()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("processes", [2, 4])
def test_the_same_curves_and_weights_on_1_2_and_4_processes(case, processes, runs):
    one, many = runs / f"{case}-1", runs / f"{case}-{processes}"
    if processes == 4 and case in CUT:
        many = runs / f"{case}-4-whole"

    # In half precision AdamW turns rounding of a small gradient into a whole step.
    half = "bfloat16" in case
    near = 5e-2 if half else 1e-5
    assert distance(of_run(many), of_run(one), together=half) < near
    for name in ("metrics.jsonl", "eval.jsonl"):
        for got, want in zip(rows(many / name), rows(one / name), strict=True):
            where = f"{name}, step {want['step']}"
            loss = pytest.approx(want["loss"], rel=1e-2 if half else 1e-5)
            assert got["loss"] == loss, where
            if want.get("kl") is not None:
                close = {"rel": 2e-2, "abs": 1e-3} if half else {"rel": 1e-5, "abs": 1e-5}
                assert got["kl"] == pytest.approx(want["kl"], **close), where
            if case == "kto":
                z0 = pytest.approx(want["kl/mismatched"], rel=1e-4, abs=1e-5)
                assert got["kl/mismatched"] == z0, where
            if name == "metrics.jsonl":
                norm = pytest.approx(want["grad_norm"], rel=2e-2 if half else 1e-4)
                assert got["grad_norm"] == norm, where
    answers = rows(many / "samples.jsonl")
    assert len(answers) == 4
    assert half or answers == rows(one / "samples.jsonl")


@pytest.mark.parametrize("case", CUT)
def test_two_processes_end_what_four_began(case, runs):
    assert distance(of_run(runs / f"{case}-4"), of_run(runs / f"{case}-4-whole")) < 1e-5


@pytest.mark.peer
def test_peers_load_what_four_processes_export(runs):
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    ids = list(range(100, 140))
    base = LlamaForCausalLM.from_pretrained(runs / "untied", dtype=torch.float32)
    lora, full = runs / "lora-4-whole" / "final", runs / "full-4-whole" / "final"
    pairs = {
        "lora": (
            load_adapter(load_model(runs / "untied"), lora),
            PeftModel.from_pretrained(base, lora),
        ),
        "full": (
            load_model(full),
            LlamaForCausalLM.from_pretrained(full, dtype=torch.float32),
        ),
    }
    for name, (ours, peer) in pairs.items():
        with torch.no_grad():
            want = peer.eval()(torch.tensor([ids])).logits[0]
            assert (want - logits(ours, ids)).abs().max() < 1e-4, name


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_every_example_is_in_one_rank_s_share_and_every_rank_has_as_many_batches(world):
    examples = [Encoded(str(n), (1,) * (n + 1), ((2,), (3,))) for n in range(13)]
    for count in range(1, 14):
        for micro in (1, 2, 5):
            shares = [micro_batches(examples[:count], micro, rank, world) for rank in range(world)]
            batches = [batch for share in shares for batch in share]
            ids = sorted(int(name) for batch in batches for name in batch.ids)
            where = f"{count} examples, micro-batches of {micro}"
            assert ids == list(range(count)), where
            assert len({len(share) for share in shares}) == 1, where
            assert max(len(batch.keys) for batch in batches) <= micro, where


@pytest.mark.parametrize(
    "failure, words",
    [
        (None, "rank 2's words"),
        (FileNotFoundError(2, "No such file", "x.json"), "x.json: No such file"),
    ],
)
def test_what_one_rank_finds_wrong_all_say_in_the_lowest_rank_s_words(failure, words, monkeypatch):
    def of_three(self, value):
        return [None, value, "rank 2's words"]

    def act():
        if failure:
            raise failure

    monkeypatch.setattr(Ranks, "gather", of_three)
    with pytest.raises(InputError, match=words) as caught:
        Ranks(1, 3).together(act)
    assert caught.value.elsewhere, "rank 0 prints it"
