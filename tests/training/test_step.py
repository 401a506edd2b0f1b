"""One optimizer step: every split is the same step, nothing that is wrong gets into it, and
held-out numbers are the model's own."""

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

import eval as evaluate
from ecliptica.arithmetic import seed_of
from ecliptica.data.loader import micro_batches
from ecliptica.objectives import kl
from ecliptica.objectives.contract import Needs, Step, Terms
from ecliptica.policy import model_reference
from ecliptica.recipe import TrainingConfig
from ecliptica.training import loop, schedules, setup
from ecliptica.training.step import baseline, optimizer_step
from model.errors import InputError
from model.weights import load_model
from tests.conftest import write_jsonl, write_tiny
from tests.training.runs import examples_of, learner_of, rows

STEPS = 2
COUNT = 5  # preferences of a step
MICRO = (5, 1, 3)  # the last: a micro-batch of two beside one of three


@dataclass(frozen=True)
class CentredConfig:
    """The settings of an objective that is not in the folder."""

    name: str = "centred"
    kl: str = "exact"


def centred_baseline(step):
    """The mean log-prob of the chosen responses of the whole step."""
    total, count = 0.0, 0
    for batch in step.batches:
        sequences = step.rows(batch).sequences()
        assert not sequences.logp_S.requires_grad
        if batch.ids:
            total += float(sequences.logp_S[sequences.chosen_P].sum())
            count += len(batch.ids)
    total, count = step.sums([total, count])
    return total / count


def centred_loss(rows, config, step):
    """The variance of the chosen responses' log-probs, a thousandth of it."""
    sequences = rows.sequences()
    away_P = sequences.logp_S[sequences.chosen_P] - step.baseline
    return Terms(1e-3 * away_P.square().sum(), {"away": away_P.detach().abs().sum()})


CENTRED = SimpleNamespace(
    Config=CentredConfig,
    RESPONSES=2,
    needs=lambda config: Needs(),
    baseline=centred_baseline,
    loss=centred_loss,
)


def assert_every_split_is_the_same(config, tokenizer, prepare=lambda learner: learner):
    """Two steps of the same preferences, split into micro-batches in three ways."""
    examples = examples_of(config, tokenizer)
    updates = []
    for micro in MICRO:
        learner = prepare(learner_of(config))
        for number in range(STEPS):  # the second step has a KL that is not 0
            batches = micro_batches(examples[COUNT * number : COUNT * (number + 1)], micro)
            metrics = optimizer_step(learner, batches, Step(number, STEPS))
        trained = [p for group in learner.optimizer.param_groups for p in group["params"]]
        updates.append((metrics, [p.detach().clone() for p in trained]))
    (want, parameters), *others = updates
    for micro, (metrics, moved) in zip(MICRO[1:], others):
        for name in want:
            if "second" not in name:
                wanted = pytest.approx(want[name], rel=1e-4, abs=1e-6)
                assert metrics[name] == wanted, f"{name} in micro-batches of {micro}"
        for a, b in zip(moved, parameters):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    return want


def test_printed_kl_and_logratio_are_no_kl(recipe, tokenizer):
    """Errata 2 and 3: of the same policy they are other numbers than the exact KL, and can be
    negative."""
    config = recipe("objective.name=unified")
    learner = learner_of(config, lr=1.0)
    batches = micro_batches(examples_of(config, tokenizer)[:4], 4)
    for number in range(3):
        optimizer_step(learner, batches, Step(number, 3))
    rows = learner.rows(batches[0], grad=False)
    found = {
        mode: float(kl.total(rows, replace(learner.settings, kl=mode)))
        for mode in ("exact", "printed", "logratio")
    }
    assert found["exact"] > 0
    for mode in ("printed", "logratio"):
        assert found[mode] != pytest.approx(found["exact"], rel=0.1), mode
    assert rows.kl_R.min() > -1e-5, "a KL is never below 0"
    sequences = rows.sequences()
    assert (sequences.logp_S - sequences.ref_logp_S).min() < -0.1


@pytest.mark.parametrize("rank", [4, 0])
def test_the_same_step_for_every_split_into_micro_batches(rank, recipe, tokenizer):
    metrics = assert_every_split_is_the_same(recipe(f"lora.rank={rank}"), tokenizer)
    assert metrics["kl"] > 0


def test_a_baseline_is_of_the_whole_step_however_it_is_split(recipe, tokenizer):
    def with_centred(learner):
        return replace(learner, objective=CENTRED, settings=CentredConfig())

    metrics = assert_every_split_is_the_same(recipe(), tokenizer, with_centred)
    assert metrics["away"] > 0


def test_a_baseline_counts_each_preference_once_over_ranks_and_no_filler(recipe, tokenizer):
    """Three preferences on four ranks: the sums of the ranks are those of one."""
    config = recipe()
    learner = replace(learner_of(config), objective=CENTRED, settings=CentredConfig())
    examples = examples_of(config, tokenizer)[:3]
    seen = []

    def of_rank(rank, world):
        def note(numbers):
            seen.append(list(numbers))
            return seen[-1]

        ranks = SimpleNamespace(reduce=note)
        return baseline(learner, micro_batches(examples, 1, rank, world), Step(0, 1), ranks)

    want = of_rank(0, 1)
    seen.clear()
    for rank in range(3):
        of_rank(rank, 4)
    batches = micro_batches(examples, 1, 3, 4)
    assert [batch.ids for batch in batches] == [()]
    total, count = (sum(column) for column in zip(*seen))
    assert count == 3 and total / count == pytest.approx(want, rel=1e-5)


def test_step_zero_check_fails_loudly_when_the_reference_is_another_model(
    recipe, tmp_path, smollm2, monkeypatch
):
    other = load_model(write_tiny(tmp_path / "other", smollm2, seed=9))
    monkeypatch.setattr(setup.reference, "build", lambda *_: model_reference(other))
    with pytest.raises(RuntimeError, match="step 0: KL to the reference is"):
        loop.train(recipe())


def test_step_zero_check_knows_the_loss_that_an_objective_starts_from(recipe, monkeypatch):
    from ecliptica.objectives import dpo

    monkeypatch.setattr(dpo, "loss_at_start", lambda config: 0.5)
    with pytest.raises(RuntimeError, match="step 0: the loss of dpo is 0.69.*, not 0.5"):
        loop.train(recipe("objective.name=dpo"))


def test_not_finite_stops_before_the_update_and_names_the_preferences(
    recipe, tmp_path, monkeypatch
):
    real = loop.optimizer_step

    def poisoned(learner, *rest):
        learner.optimizer.param_groups[0]["params"][0].data.fill_(float("nan"))
        return real(learner, *rest)

    monkeypatch.setattr(loop, "optimizer_step", poisoned)
    words = r"step 0: loss nan.*stopped before the update; preferences: p\d+"
    with pytest.raises(InputError, match=words):
        loop.train(recipe())
    assert not (tmp_path / "run" / "final").exists()


def test_held_out_numbers_are_those_of_eval_score_whatever_the_dropout(
    recipe, tmp_path, tiny, preferences
):
    final = loop.train(
        recipe("training.eval_every=1", "lora.dropout=0.5", "training.schedule=constant")
    )
    asked = [
        {"instruction": p["instruction"], "prompt": p["prompt"], "responses": [p["chosen"]]}
        for p in preferences
    ]
    data, out = write_jsonl(tmp_path / "asked.jsonl", asked), tmp_path / "scored.jsonl"
    options = ["--template", "chatml", "--data", str(data), "--out", str(out)]
    evaluate.main(["score", "--model", str(tiny), "--adapter", str(final), *options])
    scored = [row["logps"][0] for row in rows(out)]
    held_out = rows(tmp_path / "run" / "eval.jsonl")[-1]
    assert held_out["logps/chosen"] == pytest.approx(sum(scored) / len(scored), abs=1e-3)
    assert held_out["logps/chosen"] != pytest.approx(
        rows(tmp_path / "run" / "eval.jsonl")[0]["logps/chosen"], abs=0.1
    )


def test_schedules():
    warm = TrainingConfig(lr=1.0, warmup=0.2)
    rates = [schedules.Schedule(warm, 10).at(step).learning_rate for step in (0, 1, 2, 6, 9)]
    cosine = 0.5 * (1 + math.cos(math.pi * 7 / 8))
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.5, cosine])
    constant = TrainingConfig(lr=1.0, warmup=0.0, schedule="constant")
    assert schedules.learning_rate(9, 10, constant) == 1.0


def test_seeds_are_their_own_and_stay_within_64_bits():
    drawn = {seed_of(s, n, r) for s in (0, 1, 7) for n in range(50) for r in range(8)}
    assert len(drawn) == 3 * 50 * 8
    assert seed_of(7, 3, 1) == (7 * 1_000_003 + 3) * 65_536 + 1
    for number in range(3):
        torch.Generator().manual_seed(seed_of(2**63 - 1, number, 5))
