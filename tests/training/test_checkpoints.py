"""Checkpoints that are cut, altered or cannot be written: the last good one is used and named."""

import os
from pathlib import Path

import pytest
import torch

from ecliptica.config import load
from ecliptica.recipe import Config
from ecliptica.running import checkpoints
from ecliptica.running.ranks import ALONE
from ecliptica.training import loop, reference
from model.errors import InputError
from tests.conftest import write_jsonl
from tests.training.runs import assert_same, result


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny, preferences):
    """load(run directory) -> Config of seven steps, dropout on, a checkpoint after every second."""
    path = tmp_path_factory.mktemp("checkpoints") / "small.toml"
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
        max_steps = 7
        batch_preferences = 5
        lr = 1e-3
        checkpoint_every = 2
        """
    )
    return lambda run: load(Config, path, [f"run.dir={run}"])


@pytest.fixture(scope="module")
def twin(recipe, tmp_path_factory):
    """The result of the run that nothing happens to."""
    run = tmp_path_factory.mktemp("twin") / "run"
    loop.train(recipe(run))
    return result(run)


@pytest.fixture
def interrupted(recipe, tmp_path, monkeypatch):
    """(config, run directory) of the run, cut in its sixth step: checkpoints at 2 and 4."""
    config = recipe(tmp_path / "run")
    real, calls = loop.optimizer_step, []

    class Enough(Exception):
        pass

    def counted(*args):
        calls.append(0)
        if len(calls) > 5:
            raise Enough
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "optimizer_step", counted)
        with pytest.raises(Enough):
            loop.train(config)
    assert steps_of(tmp_path / "run") == ["step-000002", "step-000004"]
    return config, tmp_path / "run"


def steps_of(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def policy_and_state(config):
    """The starting policy, and the state of it that a checkpoint holds."""
    policy = reference.starting_model(config, "cpu", trained=True)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad])
    return policy, checkpoints.state_of(policy, optimizer)


def shard_of(checkpoint):
    return next(checkpoint.glob("*.distcp"))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def other_step(path):
    text = path.read_text()
    assert '"step": 4' in text
    path.write_text(text.replace('"step": 4', '"step": 3'))


ALTERED = "its bytes are not those that were written"
NOT_AS_WRITTEN = "manifest.json: missing or not as it was written"
BREAKAGES = {  # what: (what is done to a checkpoint, what is said of it)
    "a flipped bit": (lambda c: flip(shard_of(c)), ALTERED),
    "a shard cut short": (lambda c: cut(shard_of(c)), "cut short"),
    "a shard missing": (lambda c: shard_of(c).unlink(), "cannot be read (No such file"),
    "a manifest cut short": (lambda c: cut(c / "manifest.json"), NOT_AS_WRITTEN),
    "a manifest of another step": (lambda c: other_step(c / "manifest.json"), NOT_AS_WRITTEN),
    "flipped metadata": (lambda c: flip(c / ".metadata"), ALTERED),
    "a renamed directory": (
        lambda c: c.rename(c.with_name("step-000005")),
        "step-000005: is of step 4, whatever its name says",
    ),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_checkpoint_is_named_and_passed_over(name, interrupted):
    config, run = interrupted
    breakage, words = BREAKAGES[name]
    breakage(run / "checkpoints" / "step-000004")
    _, state = policy_and_state(config)
    lines = []
    manifest = checkpoints.Checkpoints(run, 2, ALONE, lines.append).resume(state)
    assert manifest["step"] == 2, "not the last good one"
    (line,) = lines
    assert words in line and line.endswith(": passed over")


def test_a_run_goes_on_from_the_last_good_one_to_the_same_bits(interrupted, twin, capsys):
    config, run = interrupted
    flip(shard_of(run / "checkpoints" / "step-000004"))
    loop.train(config)
    said = capsys.readouterr().err
    assert "passed over" in said and "resumed after step 2 of 7" in said
    assert_same(result(run), twin)
    assert steps_of(run) == ["step-000006", "step-000007"], "the broken one has to make way"


def test_no_whole_checkpoint_is_an_error_that_changes_nothing(interrupted):
    config, run = interrupted
    for checkpoint in (run / "checkpoints").iterdir():
        flip(shard_of(checkpoint))
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match="none of 2 checkpoints is whole: remove .* from step 0"):
        loop.train(config)
    assert (run / "metrics.jsonl").read_bytes() == before and len(steps_of(run)) == 2


def test_what_a_killed_process_leaves_is_cleaned_and_changed_inputs_are_refused(interrupted, twin):
    config, run = interrupted
    remnants = (
        run / ".config.toml.7.tmp",
        run / "checkpoints" / ".step-000003.part" / "x",
        run / ".final.7.tmp" / "x",
    )
    for remnant in remnants:
        remnant.parent.mkdir(exist_ok=True)
        remnant.write_text("half")
    data = Path(config.data.train)
    before = data.read_text()
    try:
        data.write_text(before.replace("bees", "wasps"))
        words = "began with another .*train.jsonl .its bytes changed since.; put the file back"
        with pytest.raises(InputError, match=words):
            loop.train(config)
    finally:
        data.write_text(before)
    loop.train(config)
    places = [*run.iterdir(), *(run / "checkpoints").iterdir()]
    assert not [path for path in places if path.name.startswith(".")]
    assert_same(result(run), twin)


def test_a_write_that_fails_leaves_the_last_good_checkpoint(interrupted, monkeypatch):
    config, run = interrupted

    def full(state, checkpoint_id):
        (checkpoint_id / "__0_0.distcp").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.dcp, "save", full)
    words = (
        "could not be written .*No space left on device.*; the last good one is step-000004; "
        "make room"
    )
    with pytest.raises(InputError, match=words):
        loop.train(config)
    assert steps_of(run) == ["step-000002", "step-000004"]


def test_parameters_that_are_not_finite_are_not_saved(interrupted):
    config, run = interrupted
    _, state = policy_and_state(config)
    next(iter(state["model"].values())).view(-1)[3] = float("inf")
    words = (
        "the update of step 5 made parameters that are not finite .*not saved; "
        "the last good one is step-000004"
    )
    with pytest.raises(InputError, match=words):
        checkpoints.Checkpoints(run, 1, ALONE, print).save(6, state, {})
    assert steps_of(run) == ["step-000002", "step-000004"]


def test_a_checkpoint_written_in_the_background_is_the_same(interrupted, tmp_path):
    config, run = interrupted
    _, state = policy_and_state(config)
    lines = []
    checkpoints.Checkpoints(run, 2, ALONE, lines.append).resume(state)
    written = checkpoints.Checkpoints(tmp_path / "other", 1, ALONE, lines.append)
    for step in (7, 8):
        written.save(step, state, {"first": {}}, background=True)
    written.finish()
    assert written.steps() == [8] and not lines

    _, again = policy_and_state(config)
    assert written.resume(again)["step"] == 8
    for name, tensor in state["model"].items():
        assert torch.equal(again["model"][name], tensor), name
        for moment, values in state["optimizer"][name].items():
            assert torch.equal(again["optimizer"][name][moment], values), f"{moment} of {name}"
    moved = [t.abs().max() for name, t in again["model"].items() if "lora_B" in name]
    assert max(moved) > 0, "this state is the start's"
