"""Every objective of the folder that learns from data trains, whichever there are, and so do the
options that change what is computed. Those that learn from rollouts: tests/online."""

import json

import pytest

from ecliptica import objectives
from ecliptica.training import loop
from tests.training.runs import rows, weights

# All twelve preferences in every step, so that the loss of two steps is of the same data: without
# an update it would be the same number.
SAME_DATA = (
    "training.max_steps=3",
    "training.batch_preferences=12",
    "training.micro_preferences=12",
    "training.warmup=0",
)
OBJECTIVES = [
    (f"objective.name={name}",)
    for name, kind in objectives.configs().items()
    if not objectives.learns_from_rollouts(kind())
]
OPTIONS = [
    ("objective.name=dpo", "objective.reference_free=true"),
    ("objective.name=sft", "data.contrastive=true"),
    ("objective.kl=printed", "objective.logp=mean"),
    ("objective.kl=logratio", "data.use_instruction=false"),
    ("objective.kl_weight_start=0", "objective.ablation=true"),
    ("training.reference=model", "data.template=alpaca"),
]
ABLATIONS = ("printed", "logratio", "ablation=true")


@pytest.mark.parametrize("overrides", OBJECTIVES + OPTIONS, ids=" ".join)
def test_it_trains(overrides, recipe, tmp_path):
    final = loop.train(recipe(*SAME_DATA, *overrides))
    steps = rows(tmp_path / "run" / "metrics.jsonl")
    losses = [row["loss"] for row in steps]
    assert losses[1] < losses[0], "the first update did not lower the loss on the same data"
    assert all(row["grad_norm"] > 0 for row in steps), "no gradient"
    moved = {name: t for name, t in weights(tmp_path / "run").items() if "lora_" in name}
    still = [name for name, t in moved.items() if not t.any()]
    assert moved and not still, f"LoRA's B starts at 0 and did not move: {still}"

    # What is no ordinary run of the method says so in every line and in the export.
    ablation = any(word in " ".join(overrides) for word in ABLATIONS)
    assert steps[-1].get("ablation", False) == ablation
    assert json.loads((final / "ecliptica.json").read_text())["ablation"] == ablation


def test_whatever_an_objective_measures_is_logged(recipe, tmp_path):
    """rrhf has a term of its own."""
    loop.train(recipe("objective.name=rrhf", "training.max_steps=1", "training.eval_every=1"))
    for name in ("metrics", "eval"):
        (row,) = rows(tmp_path / "run" / f"{name}.jsonl")
        assert row["loss"] == pytest.approx(row["rank"] + row["sft"], rel=1e-5), name
