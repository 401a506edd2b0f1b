"""kto in a step: its z0 and gradient by another road, and the same however the step is split."""

import pytest
import torch

from ecliptica.data.loader import load_examples, micro_batches
from ecliptica.data.templates import get_template
from ecliptica.objectives.contract import Step
from ecliptica.policy import adapter_off_reference, score
from ecliptica.running.ranks import ALONE
from ecliptica.training.step import baseline, optimizer_step
from model.lora import lora_layers
from tests.conftest import write_jsonl
from tests.training.runs import learner_of

SUBJECTS = ("rain", "bread", "chess", "bees", "maps", "soup")
BETA = 0.02


@pytest.fixture(scope="module")
def setting(tmp_path_factory, tiny, tokenizer):
    """A learner whose adapter has moved, a fresh one each call, and six labelled examples."""
    from ecliptica import config
    from ecliptica.recipe import Config

    place = tmp_path_factory.mktemp("kto")
    lines = [
        {"prompt": f"What of {s}?", "response": f"{s} " * (n + 2), "label": n % 3 == 0}
        for n, s in enumerate(SUBJECTS)
    ]
    data = write_jsonl(place / "x.jsonl", lines)
    table = {
        "model": {"path": str(tiny), "dtype": "float32"},
        "data": {"train": str(data), "format": "unpaired"},
        "objective": {"name": "kto", "beta": BETA, "desirable_weight": 1.5},
        "lora": {"rank": 4},
    }
    recipe = config.from_table(Config, table, "test")

    def fresh():
        learner = learner_of(recipe)
        for layer in lora_layers(learner.policy).values():
            generator = torch.Generator().manual_seed(3)
            layer.lora_B.data.normal_(std=0.3, generator=generator)
        return learner

    needs = fresh().objective.needs(recipe.objective)
    template = get_template("chatml", tokenizer)
    path = recipe.data.train
    return fresh, load_examples(path, recipe.data, tokenizer, template, 1, needs=needs)[0]


def ratio(learner, context, response):
    """log pi - log pi_0 of one response, a batch of its own."""
    from ecliptica.data.packing import pack
    from ecliptica.schema import Encoded

    batch = pack([Encoded("", context, (response,), (1.0,))])
    s = score(learner.policy, batch, adapter_off_reference(learner.policy))
    return s.logp_S[0] - s.ref_logp_S[0]


def gradients(learner, batches):
    """Of the whole step, as plain gradient descent shows it; and the step's metrics."""
    trained = dict(learner.policy.named_parameters())
    before = {name: p.detach().clone() for name, p in trained.items() if p.requires_grad}
    learner.optimizer.param_groups[0]["lr"] = 1.0
    metrics = optimizer_step(learner, batches, Step(0, 2))
    return {name: before[name] - trained[name].detach() for name in before}, metrics


def test_z0_and_gradient_equal_the_formula_one_pair_at_a_time(setting):
    fresh, examples = setting
    learner = fresh()
    rolled = [examples[-1], *examples[:-1]]
    with torch.no_grad():
        pairs = [
            ratio(learner, example.context, other.responses[0]).double()
            for example, other in zip(examples, rolled)
        ]
    z0 = max(0.0, float(sum(pairs)) / len(pairs))
    assert z0 > 0.1, "the adapter has moved, and z0 is not clamped"

    loss = 0
    for example in examples:
        own = ratio(learner, example.context, example.responses[0])
        if example.scores[0] > 0:
            loss = loss + 1.5 * (1 - torch.sigmoid(BETA * (own - z0)))
        else:
            loss = loss + 1 - torch.sigmoid(BETA * (z0 - own))
    (loss / len(examples)).backward()
    trained = learner.policy.named_parameters()
    want = {name: p.grad for name, p in trained if p.requires_grad}

    got, metrics = gradients(fresh(), micro_batches(examples, 6))
    assert metrics["z0"] == pytest.approx(z0, rel=1e-5)
    assert metrics["loss"] == pytest.approx(loss.item() / len(examples), rel=1e-5)
    clip = max(1.0, metrics["grad_norm"])
    for name, wanted in want.items():
        error = (got[name] * clip - wanted).norm() / wanted.norm()
        assert error < 1e-3, f"gradient of {name}: relative error {error:.1e}"


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_the_same_step_from_batches_of_any_size(setting, micro):
    fresh, examples = setting
    want, whole = gradients(fresh(), micro_batches(examples, 6))
    got, metrics = gradients(fresh(), micro_batches(examples, micro))
    for name in ("loss", "z0", "kl", "grad_norm", "logps/chosen", "rewards/margins"):
        assert metrics[name] == pytest.approx(whole[name], rel=1e-4), name
    for name in want:
        error = (got[name] - want[name]).norm() / want[name].norm()
        assert error < 1e-3, f"gradient of {name}: relative error {error:.1e}"


def test_a_filler_runs_and_counts_for_nothing(setting):
    """Ranks one to eight of eight: two of them have fillers alone."""
    fresh, examples = setting
    learner = fresh()
    shares = [micro_batches(examples, 6, rank, 8) for rank in range(8)]
    assert sum(not batch.ids for share in shares for batch in share) == 2
    together = [batch for share in shares for batch in share]
    one = baseline(learner, micro_batches(examples, 6), Step(0, 2), ALONE)
    all_ranks = baseline(learner, together, Step(0, 2), ALONE)
    assert all_ranks.kl == pytest.approx(one.kl, rel=1e-5)
    assert (all_ranks.examples, all_ranks.good) == (one.examples, one.good) == (6.0, 2.0)
