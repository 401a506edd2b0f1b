"""Whole runs on a tiny model: what they write, that they are repeatable, whose a directory is."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from ecliptica import config
from ecliptica.isd.bank import BANK
from ecliptica.recipe import Config
from ecliptica.running.run_directory import RunDirectory
from ecliptica.training import loop, setup
from model.errors import InputError
from model.lora import load_adapter
from model.weights import load_model
from tests.conftest import write_jsonl
from tests.training.runs import assert_same, result, rows

# A reader of metrics.jsonl counts on these with cita.
NUMBERS = {
    "step",
    "loss",
    "preference",
    "kl",
    "kl_weight",
    "logps/chosen",
    "logps/rejected",
    "logps/chosen_change",
    "logps/rejected_change",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "saturated",
    "grad_norm",
    "lr",
    "tokens_per_second",
    "preferences_per_second",
    "step_seconds",
    "data_seconds",
    "peak_memory_gib",
}


def test_a_cita_run_writes_what_it_promises(recipe, tmp_path, tiny):
    overrides = ("training.eval_every=2", "training.sample_every=4", "samples.max_new_tokens=4")
    final = loop.train(recipe(*overrides))
    run = tmp_path / "run"

    steps = rows(run / "metrics.jsonl")
    assert [row["step"] for row in steps] == list(range(5))
    for row in steps:
        unknown = {n for n in NUMBERS if row.get(n) is None or not math.isfinite(row[n])}
        assert not unknown, f"step {row['step']}"
        margin = row["rewards/chosen"] - row["rewards/rejected"]
        assert row["rewards/margins"] == pytest.approx(margin, abs=1e-4)
    assert steps[0]["kl"] == 0 and steps[-1]["kl"] > 0
    weights = [0.01, 0.0325, 0.055, 0.0775, 0.1]
    assert [row["kl_weight"] for row in steps] == pytest.approx(weights)
    assert steps[0]["rewards/chosen"] == pytest.approx(0.1 * steps[0]["logps/chosen"], rel=1e-5)
    assert steps[0]["sft"] is None and steps[0]["mfu"] is None  # columns without a number

    assert [row["step"] for row in rows(run / "eval.jsonl")] == [0, 2, 4]
    assert len(rows(run / "samples.jsonl")) == 2 * 2
    record = json.loads((final / "ecliptica.json").read_text())
    assert record["template"] == "chatml" and record["steps"] == 5
    assert record["base_model"] == str(tiny) and record["ablation"] is False
    assert config.load(Config, run / "config.toml") == recipe(*overrides)
    load_adapter(load_model(tiny), final)


def test_training_lowers_the_loss_and_is_repeatable_bit_for_bit(recipe, tmp_path):
    overrides = ("training.max_steps=12", "objective.kl_weight_end=0.01")
    loop.train(recipe(*overrides))
    loop.train(recipe(*overrides, f"run.dir={tmp_path}/again"))
    assert_same(result(tmp_path / "again"), result(tmp_path / "run"))
    loss = [row["preference"] for row in rows(tmp_path / "run" / "metrics.jsonl")]
    assert sum(loss[-3:]) < 0.6 * sum(loss[:3])


def test_full_fine_tuning_in_bfloat16_keeps_float32_masters_and_starts_at_kl_0(
    recipe, tmp_path, tiny
):
    final = loop.train(
        recipe("lora.rank=0", "model.dtype=bfloat16", "training.max_steps=2", "training.lr=1e-3")
    )
    assert rows(tmp_path / "run" / "metrics.jsonl")[0]["kl"] == 0
    stored = load_file(final / "model.safetensors")
    base = load_file(tiny / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16} and stored.keys() == base.keys()
    still = [name for name in stored if torch.equal(stored[name], base[name].bfloat16())]
    assert not still, f"not trained: {still}"
    assert (final / "tokenizer.json").exists()
    load_model(final)


@pytest.mark.parametrize("seed", [1764080000, 2**63 - 1])
def test_a_large_seed_trains(seed, recipe, tmp_path):
    loop.train(recipe(f"training.seed={seed}", "training.max_steps=1", "lora.dropout=0.1"))
    assert len(rows(tmp_path / "run" / "metrics.jsonl")) == 1


def test_a_run_directory_belongs_to_one_config(recipe, tmp_path, capsys):
    final = loop.train(recipe("training.max_steps=1"))
    with pytest.raises(InputError, match=r"another config \(training.max_steps was 1, now 2\)"):
        loop.train(recipe("training.max_steps=2"))
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert loop.train(recipe("training.max_steps=1")) == final
    assert "this run is complete" in capsys.readouterr().out
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_places_that_cannot_be_written_are_said_before_the_work(recipe, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="run.dir: .*file is a file; expected a directory"):
        loop.train(recipe(f"run.dir={tmp_path}/file"))
    with pytest.raises(InputError, match="training.cache_dir .*file: is a file; expected a dir"):
        loop.train(recipe(f"training.cache_dir={tmp_path}/file"))

    def nearly_full(path):
        return SimpleNamespace(free=1000)

    monkeypatch.setattr(setup.shutil, "disk_usage", nearly_full)
    with pytest.raises(InputError, match="a checkpoint needs 0.0 MiB, 0.0 MiB are free; make room"):
        loop.train(recipe())
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"lock"}, "the mended command has to find the directory free"


def test_control_characters_in_a_recipe_are_the_same_recipe_again(recipe, tmp_path):
    overrides = ('samples.prompts=["first\\r\\nsecond", "ring\\u0007\\u2028"]',)
    directory = RunDirectory(recipe(*overrides))
    directory.claim()
    (directory.path / "metrics.jsonl").write_text("{}\n")
    directory.release()
    again = RunDirectory(recipe(*overrides))
    again.claim()
    again.release()
    assert config.load(Config, tmp_path / "run" / "config.toml") == recipe(*overrides)


def test_a_start_that_made_nothing_leaves_the_directory_to_the_mended_one(
    tiny, preferences, tmp_path
):
    good, run = write_jsonl(tmp_path / "good.jsonl", preferences), tmp_path / "run"
    (tmp_path / "bad.jsonl").write_text("")

    def demo(data, *overrides):
        common = [f"model.path={tiny}", "model.dtype=float32", "data.format=cita"]
        common += ["training.max_steps=1", f"run.dir={run}", f"data.train={data}"]
        return config.load(Config, "demo", [*common, *overrides])

    with pytest.raises(InputError, match="no usable line"):
        loop.train(demo(tmp_path / "bad.jsonl"))
    assert [path.name for path in run.iterdir()] == ["lock"]
    loop.train(demo(good))
    with pytest.raises(InputError, match="holds a run of another config"):
        loop.train(demo(good, "training.lr=0.5"))


def test_a_bank_that_changed_under_its_run_is_refused(tiny, tmp_path):
    bank = tmp_path / "bank"
    bank.mkdir()
    for name in ("law", "food"):
        (bank / f"{name}.jsonl").write_bytes((BANK / f"{name}.jsonl").read_bytes())
    overrides = [f"model.path={tiny}", f"run.dir={tmp_path / 'run'}", f"data.train={bank}"]
    loaded = config.load(Config, "demo", overrides)
    run = RunDirectory(loaded)
    run.claim()
    (run.path / "metrics.jsonl").write_text("{}\n")
    run.release()
    with open(bank / "food.jsonl", "a") as file:
        file.write("\n")
    with pytest.raises(InputError, match="began with another .*food.jsonl"):
        RunDirectory(loaded).claim()
