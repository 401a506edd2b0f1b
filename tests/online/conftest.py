"""A tiny model that ends some of its responses, a reward to learn from, a small recipe."""

import importlib
import json
import sys

import pytest
from safetensors.torch import load_file, save_file

from ecliptica import config, rewards
from ecliptica.recipe import Config
from tests.conftest import write_jsonl, write_tiny

END = 2  # chatml's end of turn in SmolLM2's tokenizer
REWARD = '''
"""The share of vowels: every response of a random model has some."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    name: str = "vowels"


def score(answers, config):
    return [sum(c in "aeiou" for c in text) / max(1, len(text)) for _, _, text, _ in answers]
'''
RECIPE = """
[model]
path = "{model}"
dtype = "float32"
[data]
template = "chatml"
max_tokens = 128
[objective]
name = "{name}"
[rollout]
prompts = "{prompts}"
prompts_per_step = 4
responses = 3
max_new_tokens = 10
epochs = 2
minibatches = 2
[reward]
name = "vowels"
[lora]
rank = 4
[training]
max_steps = 4
micro_preferences = 4
lr = 1e-2
warmup = 0
checkpoint_every = 1
sample_every = 2
[run]
dir = "{run}"
"""


@pytest.fixture(scope="session")
def ender(tmp_path_factory, smollm2):
    """The tiny model with an end of turn that comes now and then."""
    path = write_tiny(tmp_path_factory.mktemp("ender") / "model", smollm2, seed=6)
    tensors = load_file(path / "model.safetensors")
    tensors["lm_head.weight"][END] *= 9
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture(scope="session")
def asked(tmp_path_factory, preferences):
    """A file of prompts, some under an instruction."""
    lines = []
    for number, record in enumerate(preferences):
        line = {"id": record["id"], "prompt": record["prompt"]}
        if number % 2:
            line["instruction"] = record["instruction"]
        lines.append(line)
    return write_jsonl(tmp_path_factory.mktemp("asked") / "prompts.jsonl", lines)


@pytest.fixture(scope="module")
def vowels(tmp_path_factory):
    """A directory of rewards with one more."""
    path = tmp_path_factory.mktemp("vowels")
    (path / "vowels.py").write_text(REWARD)
    rewards.__path__.append(str(path))
    importlib.invalidate_caches()
    yield path
    rewards.__path__.remove(str(path))
    sys.modules.pop("ecliptica.rewards.vowels", None)


@pytest.fixture
def online(tmp_path, ender, asked, vowels):
    """load(name, *overrides) -> Config of a small run on rollouts."""

    def load(name, *overrides):
        path = tmp_path / f"small_{name}.toml"
        run = tmp_path / "run"
        path.write_text(RECIPE.format(model=ender, name=name, prompts=asked, run=run))
        return config.load(Config, path, overrides)

    return load


def logged(run):
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
