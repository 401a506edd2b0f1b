"""A reward model from its data to its numbers: loss, export, scale, what scores with it."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

import eval as evaluation
from ecliptica import rewards
from ecliptica.data.templates import get_template
from ecliptica.rewards.contract import Scene
from ecliptica.rewards.model import Config
from ecliptica.training import loop
from model import cli
from model.errors import InputError
from model.lora import add_lora, load_adapter, save_adapter
from model.tokenizer import load_tokenizer
from model.weights import load_model
from tests.conftest import write_jsonl, write_tiny
from tests.training.runs import rows

REWARD = ("objective.name=reward", "data.template=chatml", "training.lr=3e-3")


@pytest.fixture
def trained(recipe):
    return loop.train(recipe(*REWARD, "training.checkpoint_every=2"))


def evaluated(model, adapter, data, out, template="chatml"):
    """The exit code of eval.py reward."""
    flags = ["--model", str(model), "--template", template, "--data", str(data), "--out", str(out)]
    if adapter:
        flags += ["--adapter", str(adapter)]
    return cli.run(lambda argv=None: evaluation.main(["reward", *flags]))


def test_a_run_exports_rewards_of_mean_0_and_variance_1(trained, tiny, tmp_path, preferences):
    metrics = rows(trained.parent / "metrics.jsonl")
    first = metrics[0]
    assert first["loss"] == pytest.approx(first["preference"]) and 0 < first["loss"] < 3
    assert 0 <= first["accuracy"] <= 1 and first["margin"] == first["rewards/margins"]
    assert metrics[-1]["loss"] < first["loss"]

    # The constants are those of what the export scores.
    head = load_file(trained / "scalar_head.safetensors")
    record = json.loads((trained / "ecliptica.json").read_text())
    assert record["reward"] == {"mean": float(head["mean"]), "std": float(head["std"])}
    assert len(record["base_sha256"]) == 64
    data = write_jsonl(tmp_path / "given.jsonl", preferences)
    assert evaluated(tiny, trained, data, tmp_path / "out.jsonl") in (0, None)
    got = rows(tmp_path / "out.jsonl")
    assert [line["id"] for line in got] == [line["id"] for line in preferences]
    numbers = [reward for line in got for reward in line["rewards"]]
    mean = math.fsum(numbers) / len(numbers)
    assert abs(mean) < 1e-5
    assert math.fsum((n - mean) ** 2 for n in numbers) / len(numbers) == pytest.approx(1, abs=1e-4)

    # Held-out accuracy is counted by hand.
    accuracy = json.loads((tmp_path / "out.jsonl.accuracy.json").read_text())
    right = [line["rewards"][0] > line["rewards"][1] for line in got]
    assert accuracy["value"] == pytest.approx(sum(right) / len(right))
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]

    # As a reward of sampled text, beside a policy, it gives the same numbers.
    tokenizer = load_tokenizer(tiny)
    model = add_lora(load_model(tiny), 2, 4, ("q_proj",))
    scene = Scene(model, str(tiny), tokenizer, get_template("chatml", tokenizer))
    answers = []
    for line in preferences:
        for key in ("chosen", "rejected"):
            answers.append((line["instruction"], line["prompt"], line[key], True))
    got = rewards.scorer(Config(path=str(trained)), scene)(answers)
    assert max(abs(a - b) for a, b in zip(got, numbers)) < 1e-4
    assert model.active.name == "policy"


def test_a_resumed_run_is_the_same(recipe, tmp_path, trained):
    import shutil

    want = load_file(trained / "scalar_head.safetensors")
    shutil.rmtree(trained)
    shutil.rmtree(trained.parent / "checkpoints" / "step-000005")
    again = loop.train(recipe(*REWARD, "training.checkpoint_every=2"))
    got = load_file(again / "scalar_head.safetensors")
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_a_whole_model_is_trained_to_be_a_reward(recipe, tmp_path, preferences):
    final = loop.train(recipe(*REWARD, "lora.rank=0", "training.max_steps=2"))
    data = write_jsonl(tmp_path / "given.jsonl", preferences[:3])
    assert evaluated(final, None, data, tmp_path / "out.jsonl") in (0, None)
    assert all(len(line["rewards"]) == 2 for line in rows(tmp_path / "out.jsonl"))


@pytest.mark.peer
def test_peft_opens_a_reward_s_adapter(trained, tiny):
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    base = LlamaForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    peer = PeftModel.from_pretrained(base, trained)
    ours = load_adapter(load_model(tiny), trained)
    theirs = dict(peer.named_parameters())
    q_proj = "layers.0.self_attn.q_proj"
    got = ours.get_parameter(f"model.{q_proj}.lora_B")
    assert torch.equal(got, theirs[f"base_model.model.model.{q_proj}.lora_B.default.weight"])


def test_what_is_no_reward_model_of_this_base_is_refused(
    trained, tiny, tmp_path, smollm2, preferences, capsys
):
    data = write_jsonl(tmp_path / "given.jsonl", preferences[:1])
    other = write_tiny(tmp_path / "other", smollm2, seed=5)
    policy = tmp_path / "policy"
    policy.mkdir()
    save_adapter(add_lora(load_model(tiny), 2, 4, ("q_proj",)), policy, tiny)
    headless = tmp_path / "headless"
    headless.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "ecliptica.json"):
        (headless / name).write_bytes((trained / name).read_bytes())
    cases = [
        (other, trained, "was trained on another base"),
        (tiny, trained.parent, "no adapter_config.json in it"),
        (tiny, policy, "no ecliptica.json in it"),
        (tiny, headless, "no scalar_head.safetensors in it"),
    ]
    for model, adapter, message in cases:
        assert evaluated(model, adapter, data, tmp_path / "out.jsonl") == 2, message
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error and "Traceback" not in error, error
    with pytest.raises(InputError, match="reward.path: not set"):
        Config().check()
