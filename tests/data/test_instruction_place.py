"""The instruction in the system turn: rendering to the letter, and where there is no such turn."""

import json

import pytest
import torch

from ecliptica.data.templates import TEMPLATES, as_text, placed, render_context
from ecliptica.evaluation import systems
from ecliptica.training import loop
from model.errors import InputError
from tests.conftest import write_jsonl

WANT = {
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "chatml": (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    "alpaca": "Be kind.\n\n### Instruction:\nHi?\n\n### Response:\n",
}


@pytest.mark.parametrize("name", WANT)
def test_the_system_turn_to_the_letter(name):
    template = placed(TEMPLATES[name], "system")
    assert as_text(render_context(template, "Hi?", "Be kind.")) == WANT[name]
    plain = as_text(render_context(TEMPLATES[name], "Hi?"))
    assert as_text(render_context(template, "Hi?")) == plain, "without an instruction: no turn"


def test_it_stands_before_earlier_turns():
    template = placed(TEMPLATES["chatml"], "system")
    text = as_text(render_context(template, "Hi?", "Be kind.", [("Ho?", "Yes.")]))
    assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHo?")
    assert text.count("Be kind.") == 1


def test_a_template_without_a_system_turn_is_refused():
    with pytest.raises(InputError, match="template paper: it has no system turn .*llama3, chatml"):
        placed(TEMPLATES["paper"], "system")
    with pytest.raises(InputError, match="expected one of user, system, got 'tool'"):
        placed(TEMPLATES["chatml"], "tool")


def test_what_was_trained_with_is_what_is_evaluated_with(recipe, tiny):
    """The export says the place; a system takes it unless it is told another."""
    final = loop.train(recipe("data.instruction_in=system", "training.max_steps=1"))
    record = json.loads((final / "ecliptica.json").read_text())
    assert record["instruction_in"] == "system"
    assert record["template_text"].startswith("<|im_start|>system\n{instruction}<|im_end|>")
    as_trained = systems.load(tiny, "chatml", final)
    assert as_trained.template.instruction_in == "system"
    other = systems.load(tiny, "chatml", final, instruction_in="user")
    assert other.template.instruction_in == "user"
    assert other.digest != as_trained.digest
    assert torch.equal(other.model.head_weight_VD, as_trained.model.head_weight_VD)


@pytest.fixture
def recipe(tmp_path, tiny, preferences):
    from ecliptica import config
    from ecliptica.recipe import Config

    data = write_jsonl(tmp_path / "train.jsonl", preferences)
    settings = (f"model.path={tiny}", f"data.train={data}", f"run.dir={tmp_path}/run")
    return lambda *more: config.load(Config, None, [*settings, "model.dtype=float32", *more])
