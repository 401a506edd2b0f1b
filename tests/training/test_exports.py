"""An export stands by itself: relative to the base model, whatever the run started from."""

import json

import pytest
from safetensors.torch import load_file

import eval as evaluate
from ecliptica.evaluation import systems
from ecliptica.recipe import LoraConfig
from ecliptica.training import loop
from model.errors import InputError
from model.lora import add_lora, load_adapter, lora_parameters, merge_lora
from model.weights import load_model, save_model
from tests.conftest import write_jsonl
from tests.training.runs import rows


def test_a_run_that_goes_on_from_an_adapter_exports_both_in_one(
    recipe, tmp_path, tiny, monkeypatch
):
    """The second run's reference is base + first adapter: KL is 0 at its first step.

    Its export is relative to the base, and means the same from any directory.
    """
    monkeypatch.chdir(tmp_path)
    first = loop.train(recipe("run.dir=first"))
    final = loop.train(recipe(f"model.adapter={first}", "run.dir=second"))
    assert rows(tmp_path / "second" / "metrics.jsonl")[0]["kl"] < 1e-4
    record = json.loads((final / "ecliptica.json").read_text())
    assert record["started_from"] == str(tmp_path / first)
    assert "base_adapter" not in record

    # The second factors, which follow the first in the export, on top of base and first merged.
    joint = load_file(final / "adapter_model.safetensors")
    model = merge_lora(load_adapter(load_model(tiny), first))
    add_lora(model, 4, 4, LoraConfig().targets)  # at scale 1: theirs is in the factors
    for name, parameter in lora_parameters(model):
        factor = joint[f"base_model.model.{name}.weight"]
        parameter.data.copy_(factor[4:] if name.endswith("lora_A") else factor[:, 4:])
    merged = tmp_path / "merged"
    merged.mkdir()
    save_model(merge_lora(model), merged, tiny, dtype=model.dtype)

    # Scored from another directory, the export is that model.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    data = write_jsonl(tmp_path / "in.jsonl", [{"prompt": "Hi?", "responses": ["Hello."]}])

    def logps(*options):
        common = ("--template", "chatml", "--data", str(data), "--out", "out.jsonl")
        evaluate.main(["score", *map(str, options), *common])
        return rows(elsewhere / "out.jsonl")[0]["logps"]

    want = logps("--model", merged)
    base = logps("--model", tiny)
    got = logps("--model", tiny, "--adapter", tmp_path / final)
    assert got == pytest.approx(want, abs=1e-3)
    assert got != pytest.approx(base, abs=1e-1)


def test_an_old_export_that_names_its_base_adapter_still_loads(recipe, tmp_path, tiny, monkeypatch):
    """Such a record holds a path relative to the directory of the day."""
    monkeypatch.chdir(tmp_path)
    first = loop.train(recipe("run.dir=runs/first"))
    second = loop.train(recipe("run.dir=runs/second", "training.seed=1"))
    record = json.loads((second / "ecliptica.json").read_text())
    old = record | {"base_adapter": "runs/first/final"}
    (second / "ecliptica.json").write_text(json.dumps(old))
    both = load_adapter(merge_lora(load_adapter(load_model(tiny), first)), second)

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    system = systems.load(str(tiny), adapter=str(tmp_path / second), template="chatml")
    want = dict(both.named_parameters())
    different = [
        name for name, ours in system.model.named_parameters() if not ours.equal(want[name])
    ]
    assert not different
    with pytest.raises(InputError, match="relative to another one, .*runs/first/final"):
        loop.train(recipe(f"model.adapter={tmp_path / second}", f"run.dir={tmp_path}/third"))
