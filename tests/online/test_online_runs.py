"""Runs on rollouts as processes: killed and resumed, on two ranks; and what is refused before."""

import json
import random

import pytest
import torch

from ecliptica import config
from ecliptica.recipe import Config
from ecliptica.training import loop
from model.errors import InputError
from tests.online.conftest import RECIPE
from tests.training.runs import assert_same, finish, kill, result, start, wait_for

LENGTH = "reward.name=length"  # a reward that a process of its own knows


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, ender, asked):
    """recipe(name) -> the path of a small recipe."""
    place = tmp_path_factory.mktemp("online")

    def of(name):
        path = place / f"{name}.toml"
        text = RECIPE.format(model=ender, name=name, prompts=asked, run=place / "unused")
        path.write_text(text.replace('"vowels"', '"length"'))
        return path

    return of


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_kill_9_and_resume_gives_the_same_bits(recipe, tmp_path, name):
    """Killed once, at a drawn moment after the first checkpoint: in a rollout or in its updates."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(start(recipe(name), whole))
    process = start(recipe(name), cut)
    journal = cut / "metrics.jsonl"
    # The line of a step is written before its checkpoint, and behind the one of the step before.
    lines = random.Random(name).randint(2, 3)
    wait_for(lambda: journal.exists() and journal.read_text().count("\n") >= lines, process)
    kill(process)
    assert not (cut / "final").exists()
    assert "resumed after step" in finish(start(recipe(name), cut))
    assert_same(result(cut), result(whole))


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_two_ranks_are_one(recipe, tmp_path, name):
    """The same responses, rewards and losses; the same weights to rounding."""
    one, two = tmp_path / "one", tmp_path / "two"
    few = ("training.max_steps=2", "objective.critic_warmup=0")[: 2 if name == "ppo" else 1]
    finish(start(recipe(name), one, *few))
    finish(start(recipe(name), two, *few, processes=2))
    got, want = result(two), result(one)
    for step, (mine, theirs) in enumerate(zip(got[1], want[1], strict=True)):
        for metric in ("reward", "length", "ended", "kl", "loss", "grad_norm", "ratio_mean"):
            assert mine[metric] == pytest.approx(theirs[metric], rel=1e-4, abs=1e-6), (step, metric)
    for tensor in want[0]:
        assert torch.allclose(got[0][tensor], want[0][tensor], atol=1e-4), tensor


@pytest.mark.parametrize(
    "name, override, message",
    [
        ("ppo", "rollout.top_p=0.9", "rollout.top_p: expected 1, got 0.9"),
        ("grpo", "rollout.responses=1", "rollout.responses: grpo compares .* at least 2, got 1"),
        ("grpo", "rollout.prompts=", "rollout.prompts: not set, and grpo learns from responses"),
        ("ppo", "lora.dropout=0.1", "lora.dropout: expected 0 with ppo, got 0.1"),
        ("ppo", "training.reference=cache", "training.reference: no cache holds the responses"),
        ("ppo", "rollout.minibatches=9", "rollout.minibatches: 9 of rollout.prompts_per_step=4"),
        ("grpo", "rollout.rows=2", "rollout.rows: 2 places do not hold the rollout.responses=3"),
        ("grpo", "objective.kl=k1", "objective.kl: k1 in the loss has a gradient"),
        ("ppo", "reward.name=model", "reward.path: not set, and reward.name is model"),
    ],
)
def test_a_bad_key_is_refused_in_one_line(recipe, name, override, message):
    with pytest.raises(InputError, match=message) as error:
        config.load(Config, recipe(name), [override])
    assert "\n" not in str(error.value)


def load(recipe, name, run, *overrides):
    return config.load(Config, recipe(name), [f"run.dir={run}", *overrides])


@pytest.mark.parametrize(
    "line, message",
    [
        (None, "no such file"),
        ({"instruction": "Be kind."}, r"prompts.jsonl:1: the field 'prompt' is missing"),
        ({"prompt": " "}, r"prompts.jsonl:1: 'prompt' is empty"),
        ({"prompt": "word " * 200}, "none of 1 prompts leaves room for rollout.max_new_tokens=10"),
    ],
)
def test_a_bad_prompts_file_is_named(recipe, tmp_path, line, message):
    path = tmp_path / "prompts.jsonl"
    if line:
        path.write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match=message):
        loop.train(load(recipe, "grpo", tmp_path / "run", f"rollout.prompts={path}"))


def test_ids_that_come_twice_are_refused(recipe, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": "a", "prompt": "One?"}\n{"id": "a", "prompt": "Two?"}\n')
    with pytest.raises(InputError, match="the id 'a' stands in records 1 and 2"):
        loop.train(load(recipe, "grpo", tmp_path / "run", f"rollout.prompts={path}"))


def test_a_critic_needs_an_adapter(recipe, tmp_path):
    with pytest.raises(InputError, match="lora.rank: ppo has its critic in an adapter"):
        loop.train(load(recipe, "ppo", tmp_path / "run", "lora.rank=0"))


def test_a_reward_file_of_another_base_is_refused(recipe, tmp_path, tiny, preferences):
    """A reward model that was trained on another base: one line, before anything is sampled."""
    from tests.conftest import write_jsonl

    data = write_jsonl(tmp_path / "train.jsonl", preferences)
    small = tmp_path / "reward.toml"
    small.write_text(
        f"""
        [model]
        path = "{tiny}"
        dtype = "float32"
        [data]
        train = "{data}"
        template = "chatml"
        [objective]
        name = "reward"
        [lora]
        rank = 4
        [training]
        max_steps = 1
        [run]
        dir = "{tmp_path}/reward"
        """
    )
    judge = loop.train(config.load(Config, small))
    asked = ("reward.name=model", f"reward.path={judge}")
    with pytest.raises(InputError) as error:
        loop.train(load(recipe, "ppo", tmp_path / "run", *asked))
    assert str(judge) in str(error.value) and "\n" not in str(error.value)

    # On its own base it judges, and every step has its numbers.
    own = (f"model.path={tiny}", "training.max_steps=1", "objective.critic_warmup=0")
    loop.train(load(recipe, "ppo", tmp_path / "run", *asked, *own))
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["reward_std"] > 0


def test_full_fine_tuning_has_a_second_model_as_its_reference(recipe, tmp_path):
    few = ("lora.rank=0", "training.max_steps=2", "training.lr=1e-3")
    loop.train(load(recipe, "grpo", tmp_path / "run", *few))
    first, second = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert first["kl"] == pytest.approx(0, abs=1e-6) and second["kl"] > 0
