"""The same run on 1, 2 and 4 processes: curves, weights, exports; and the pieces that make it so."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from ecliptica import config
from ecliptica.data.loader import micro_batches
from ecliptica.recipe import Config
from ecliptica.schema import Encoded
from ecliptica.training import loop
from model.lora import load_adapter
from model.weights import load_model
from tests.conftest import ROOT, write_jsonl, write_tiny
from tests.model.test_llama import logits

CASES = {
    "lora": ("model.path={p}/untied",),
    "full": ("model.path={p}/untied", "lora.rank=0"),
    "full-tied-cache": (
        "model.path={p}/tied",
        "lora.rank=0",
        "training.reference=cache",
        "training.activation_checkpointing=full",
    ),
    "lora-bfloat16": (
        "model.path={p}/tied",
        "model.dtype=bfloat16",
        "training.activation_checkpointing=selective",
        "training.max_steps=2",
    ),
}
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


@pytest.fixture(scope="module")
def runs(tmp_path_factory, smollm2, preferences):
    """Every case on 1, 2 and 4 processes, split differently each time; and the runs of 4 cut after step 4, ended by 2."""
    path = tmp_path_factory.mktemp("ranks")
    for name, tied in (("untied", False), ("tied", True)):
        write_tiny(path / name, smollm2, tie_word_embeddings=tied)
    data, held_out = (
        write_jsonl(path / "train.jsonl", preferences),
        write_jsonl(path / "eval.jsonl", preferences[:5]),
    )
    (path / "r.toml").write_text(
        f'[model]\ndtype = "float32"\n[data]\ntrain = "{data}"\neval = "{held_out}"\n[lora]\nrank = 4\n[samples]\nmax_new_tokens = 3\n'
        f"[training]\nmax_steps = 5\nbatch_preferences = 5\nlr = 1e-3\neval_every = 4\nsample_every = 4\ncheckpoint_every = 2\n"
    )
    (path / "several.py").write_text(SEVERAL)

    def line(case, run, *more):
        return " ".join(
            [
                f"{path}/r.toml",
                *(text.format(p=path) for text in CASES[case]),
                f"run.dir={path}/{run}",
                *more,
            ]
        )

    def launch(processes, lines):
        (path / "lines").write_text("\n".join(lines))
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={processes}",
            f"{path}/several.py",
            f"{path}/lines",
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stderr

    four = [
        line(case, f"{case}-4", "training.micro_preferences=2", "training.replicas=2")
        for case in CASES
    ]
    launch(4, four)
    for case in ("lora", "full"):
        shutil.copytree(path / f"{case}-4", path / f"{case}-4-whole")
        for cut in ("final", "checkpoints/step-000005"):
            shutil.rmtree(path / f"{case}-4" / cut)
    said = launch(
        2, [line(case, f"{case}-2", "training.micro_preferences=1") for case in CASES] + four[:2]
    )
    assert said.count("resumed after step 4 of 5") == 2
    for case in CASES:
        recipe, *overrides = line(case, f"{case}-1").split()
        loop.train(config.load(Config, recipe, overrides))
    return path


def weights(run):
    return {
        n: t.double()
        for path in sorted((run / "final").glob("*.safetensors"))
        for n, t in load_file(path).items()
    }


def rows(run, name):
    return [json.loads(text) for text in (run / f"{name}.jsonl").read_text().splitlines()]


def distance(found, want, together=False):
    """The largest relative distance of a tensor; together: of all of them as one vector."""
    assert found.keys() == want.keys()
    if together:
        found, want = (
            {"": torch.cat([x.flatten() for _, x in sorted(tensors.items())])}
            for tensors in (found, want)
        )
    return max(float((found[n] - want[n]).norm() / want[n].norm()) for n in want)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("processes", [2, 4])
def test_the_same_curves_and_weights_on_1_2_and_4_processes(case, processes, runs):
    one, many = runs / f"{case}-1", runs / f"{case}-{processes}"
    if processes == 4 and case in ("lora", "full"):
        many = runs / f"{case}-4-whole"
    half = "bfloat16" in case
    assert distance(weights(many), weights(one), together=half) < (
        5e-2 if half else 1e-5
    )  # AdamW turns rounding of a small gradient into a whole step
    for name in ("metrics", "eval"):
        for a, b in zip(rows(many, name), rows(one, name), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-2 if half else 1e-5)
            assert a["kl"] == pytest.approx(
                b["kl"], rel=2e-2 if half else 1e-5, abs=1e-3 if half else 1e-5
            )
            assert name == "eval" or a["grad_norm"] == pytest.approx(
                b["grad_norm"], rel=2e-2 if half else 1e-4
            )
    assert len(rows(many, "samples")) == 4
    assert half or rows(many, "samples") == rows(one, "samples")


@pytest.mark.parametrize("case", ["lora", "full"])
def test_two_processes_end_what_four_began(case, runs):
    assert distance(weights(runs / f"{case}-4"), weights(runs / f"{case}-4-whole")) < 1e-5


@pytest.mark.peer
def test_peers_load_what_four_processes_export(runs):
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    ids = list(range(100, 140))
    base = LlamaForCausalLM.from_pretrained(runs / "untied", dtype=torch.float32)
    lora, full = runs / "lora-4-whole" / "final", runs / "full-4-whole" / "final"
    ours = load_adapter(load_model(runs / "untied"), lora), load_model(full)
    peers = (
        PeftModel.from_pretrained(base, lora),
        LlamaForCausalLM.from_pretrained(full, dtype=torch.float32),
    )
    for mine, peer in zip(ours, peers):
        with torch.no_grad():
            assert (
                peer.eval()(torch.tensor([ids])).logits[0] - logits(mine, ids)
            ).abs().max() < 1e-4


def test_every_example_is_in_one_rank_s_share_and_every_rank_has_as_many_batches():
    examples = [Encoded(str(n), (1,) * (n + 1), ((2,), (3,))) for n in range(13)]
    for count in range(1, 14):
        for world in (1, 2, 3, 4, 8):
            for micro in (1, 2, 5):
                shares = [
                    micro_batches(examples[:count], micro, rank, world) for rank in range(world)
                ]
                assert sorted(
                    int(name) for share in shares for batch in share for name in batch.ids
                ) == list(range(count))
                assert (
                    len({len(share) for share in shares}) == 1
                    and max(len(batch.keys) for share in shares for batch in share) <= micro
                )


def test_what_one_rank_finds_wrong_all_say_in_the_lowest_rank_s_words(monkeypatch):
    ranks = distributed.Ranks(1, 3)
    monkeypatch.setattr(
        distributed.Ranks, "gather", lambda self, value: [None, value, "rank 2's words"]
    )
    for found, words in (
        (None, "rank 2's words"),
        (FileNotFoundError(2, "No such file", "x.json"), "x.json: No such file"),
    ):

        def act():
            if found:
                raise found

        with pytest.raises(distributed.InputError, match=words) as caught:
            ranks.together(act)
        assert caught.value.elsewhere
