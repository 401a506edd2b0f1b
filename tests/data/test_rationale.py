"""The reason of a rejection: in the contrastive template, and as a term of its own."""

import pytest
import torch

from ecliptica import config as settings
from ecliptica.data.loader import load_examples, micro_batches
from ecliptica.data.packing import pack
from ecliptica.data.templates import TEMPLATES, as_text, get_template, render_context
from ecliptica.objectives.contract import Step
from ecliptica.policy import adapter_off_reference, score
from ecliptica.recipe import Config
from ecliptica.schema import Encoded
from model.errors import InputError
from tests.conftest import write_jsonl
from tests.training.runs import learner_of

REASON = "It is rude to a guest."


@pytest.fixture
def load(tmp_path, tiny, tokenizer, preferences):
    """(learner, examples) of a recipe on four preferences, the first two with a reason."""

    def of(*overrides, reasons=2):
        lines = [dict(preference) for preference in preferences[:4]]
        for line in lines[:reasons]:
            line["rationale"] = REASON
        path = write_jsonl(tmp_path / "x.jsonl", lines)
        keys = (f"model.path={tiny}", "model.dtype=float32", f"data.train={path}", *overrides)
        recipe = settings.load(Config, None, keys)
        learner = learner_of(recipe)
        needs = learner.objective.needs(recipe.objective)
        template = get_template("chatml", tokenizer)
        examples = load_examples(
            recipe.data.train, recipe.data, tokenizer, template, 2, needs=needs
        )[0]
        return learner, examples

    return of


def test_the_contrastive_template_says_why():
    text = as_text(
        render_context(TEMPLATES["chatml"], "Hi?", "Be kind.", rejected="Go.", rationale=REASON)
    )
    want = f"(Bad):\nGo.\n\n### Reason for the Rejection:\n{REASON}\n\n### What's expected instead?"
    assert want in text
    plain = as_text(render_context(TEMPLATES["chatml"], "Hi?", "Be kind.", rationale=REASON))
    assert REASON not in plain, "without a rejected response there is nothing to give a reason for"


@pytest.mark.parametrize("name", ["cita", "unified"])
def test_the_term_is_the_reason_s_log_prob_in_a_turn_of_its_own(name, load, tokenizer):
    _, plain = load(f"objective.name={name}")
    learner, examples = load(f"objective.name={name}", "objective.rationale_weight=0.3")
    assert [bool(example.rationale) for example in examples] == [True, True, False, False]
    lead = tokenizer.decode(examples[0].rationale[0])
    assert "What is wrong with that answer?" in lead

    # The reason by itself, behind everything that leads to it.
    alone = []
    for example in examples[:2]:
        before, text = example.rationale
        alone.append(Encoded("", (*example.context, *before), (text,), (1.0,)))
    want = -score(learner.policy, pack(alone)).logp_S.sum().item()

    step = Step(0, 2)
    got = learner.terms(pack(examples), step)
    without = learner.terms(pack(plain), step)
    assert got.metrics["rationale"].item() == pytest.approx(want, rel=1e-5)
    assert got.loss.item() == pytest.approx(without.loss.item() + 0.3 * want, rel=1e-5)
    for metric in ("preference", "logps/chosen", "logps/rejected"):
        assert got.metrics[metric].item() == pytest.approx(without.metrics[metric].item(), rel=1e-5)
    got.loss.backward()
    assert all(p.grad is not None for p in learner.policy.parameters() if p.requires_grad)


def test_the_kl_is_of_the_responses_alone(load):
    learner, examples = load("objective.rationale_weight=0.3")
    for name, parameter in learner.policy.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    got = learner.terms(pack(examples), Step(0, 2)).metrics["kl"].item()
    bare = [Encoded("", example.context, example.responses) for example in examples]
    reference = adapter_off_reference(learner.policy)
    want = score(learner.policy, pack(bare), reference).kl_S.sum().item()
    assert want > 0.1
    assert got == pytest.approx(want, rel=1e-4)


def test_a_step_is_the_same_from_batches_of_any_size(load):
    """One batch with a reason in it, one without."""
    learner, examples = load("objective.rationale_weight=0.3")
    whole = learner.terms(micro_batches(examples, 4)[0], Step(0, 2))
    parts = [learner.terms(batch, Step(0, 2)) for batch in micro_batches(examples, 2)]
    assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item(), rel=1e-5)
    assert all("rationale" in part.metrics for part in parts)


def test_data_without_a_reason_are_refused(load):
    with pytest.raises(InputError, match="no line has a 'rationale'.*objective.rationale_weight"):
        load("objective.rationale_weight=0.3", reasons=0)
