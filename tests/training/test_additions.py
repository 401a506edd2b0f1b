"""A stranger adds an objective, a data format and a recipe, each by one new file, and trains."""

import importlib
import sys

import pytest

from ecliptica import config, objectives
from ecliptica.data import formats
from ecliptica.recipe import Config
from ecliptica.training import loop
from model.errors import InputError
from tests.training.runs import examples_of, learner_of, rows

SLIC = '''
"""SLiC on means: max(0, gamma - beta (mean logp+ - mean logp-))."""

from dataclasses import dataclass

from ecliptica.config import positive
from ecliptica.objectives.contract import Needs, Terms


@dataclass(frozen=True)
class Config:
    name: str = "slic"
    beta: float = positive(2.0, "inverse temperature of the margin")
    gamma: float = positive(1.0, "the margin that is asked for")


RESPONSES = 2


def needs(config):
    return Needs()


def loss(rows, config, step):
    s = rows.sequences()
    mean_S = s.logp_S / s.tokens_S
    margin_P = config.beta * (mean_S[s.chosen_P] - mean_S[s.rejected_P])
    loss_P = (config.gamma - margin_P).clamp(min=0)
    metrics = {"slic/margin": margin_P.detach().sum()}
    return Terms(loss_P.sum(), metrics, {"slic/gamma": config.gamma})
'''
ARROW = '''
"""{"ask": "INSTRUCTION -> PROMPT", "good": ..., "bad": ...}"""

from ecliptica.fields import text
from ecliptica.schema import Preference


def read(record, where):
    instruction, _, prompt = text(record, "ask", where).partition(" -> ")
    responses = (text(record, "good", where), text(record, "bad", where))
    return Preference(id=where, prompt=prompt, responses=responses, instruction=instruction)
'''
RECIPE = """
[model]
path = "{tiny}"
dtype = "float32"
[data]
format = "arrow"
train = "{data}"
[objective]
name = "slic"
gamma = 20.0
[lora]
rank = 4
[training]
max_steps = 2
batch_preferences = 2
warmup = 0
lr = 1e-2
[run]
dir = "{run}"
"""
LINES = """
{"ask": "Be kind. -> Hi?", "good": "Hello, and welcome.", "bad": "Go."}
{"ask": "Be brief. -> What is rain?", "good": "Water.", "bad": "A long story, which begins so."}
"""


@pytest.fixture
def additions(tmp_path):
    """A directory of a stranger's on the path of both packages."""
    (tmp_path / "objectives").mkdir()
    (tmp_path / "formats").mkdir()
    (tmp_path / "objectives" / "slic.py").write_text(SLIC)
    (tmp_path / "formats" / "arrow.py").write_text(ARROW)
    before = set(sys.modules)
    objectives.__path__.append(str(tmp_path / "objectives"))
    formats.__path__.append(str(tmp_path / "formats"))
    importlib.invalidate_caches()
    yield tmp_path
    objectives.__path__.remove(str(tmp_path / "objectives"))
    formats.__path__.remove(str(tmp_path / "formats"))
    for name in set(sys.modules) - before:
        if name.endswith((".slic", ".arrow")):
            del sys.modules[name]


def test_each_is_one_new_file(additions, tiny, tokenizer):
    (additions / "lines.jsonl").write_text(LINES)
    recipe = additions / "mine.toml"
    recipe.write_text(
        RECIPE.format(tiny=tiny, data=additions / "lines.jsonl", run=additions / "run")
    )
    loaded = config.load(Config, recipe)
    loop.train(loaded)

    # Its first loss is what its formula says of the model's own log-probs.
    first, second = rows(additions / "run" / "metrics.jsonl")
    from ecliptica.data.packing import pack

    batch = pack(examples_of(loaded, tokenizer))
    sequences = learner_of(loaded).rows(batch, grad=False).sequences()
    mean_PK = (sequences.logp_S / sequences.tokens_S).double().view(2, 2)
    margin_P = 2 * (mean_PK[:, 0] - mean_PK[:, 1])
    want = (20 - margin_P).clamp(min=0).mean().item()
    assert first["loss"] == pytest.approx(want, rel=1e-5)
    assert first["slic/margin"] == pytest.approx(margin_P.mean().item(), rel=1e-5)
    assert first["slic/gamma"] == 20.0
    assert second["loss"] < first["loss"]

    # Its keys have rules, as those of the shipped ones, and are listed with them.
    with pytest.raises(InputError, match="objective.gamma: expected > 0, got -1"):
        config.load(Config, recipe, ["objective.gamma=-1"])
    with pytest.raises(InputError, match="objective.name: expected one of .*slic"):
        config.load(Config, recipe, ["objective.name=sli"])
