"""What suites compute of a real (tiny) model against dense float64 mathematics, one sequence alone:
JSD, perplexity, KL, preferences by PMI."""

import math

import pytest
import torch

from ecliptica.evaluation import divergences, pmi, suites, systems
from ecliptica.evaluation import run as run_suite
from ecliptica.evaluation.questions import Question
from ecliptica.evaluation.scoring import context_ids, response_ids
from ecliptica.evaluation.suites.capability import PROMPT
from ecliptica.isd.bank import load_instructions
from ecliptica.isd.sets import SETS, load_policies, load_safety
from model.attention import packed_attention
from model.errors import InputError
from tests.conftest import write_jsonl
from tests.evaluation.conftest import BASE, TRAINED, values

TEXTS = ("Rain falls.", "A long road leads home over hills.", "Bread.")


@pytest.fixture(scope="module")
def system(tiny):
    return systems.load(tiny, template="chatml")


@pytest.fixture(scope="module")
def trained(tiny, adapter):
    return systems.load(tiny, adapter=adapter, template="chatml")


@torch.no_grad()
def distributions(system, instruction, prompt, response):
    """(float64 log-probs over the vocabulary at each response position [R, V], the response's
    ids), the sequence alone: no packing."""
    context = context_ids(system, prompt, instruction)
    ids = response_ids(system, response)
    tokens_T = torch.tensor([*context, *ids])
    one_T = torch.zeros_like(tokens_T)
    positions_T = torch.arange(len(tokens_T))
    with system.switched():
        hidden_TD = system.model.forward_hidden(
            tokens_T, positions_T, packed_attention(one_T, one_T)
        )
    rows_RD = hidden_TD[len(context) - 1 : -1].double()
    logits_RV = rows_RD @ system.model.head_weight_VD.double().T
    return logits_RV.log_softmax(-1), torch.tensor(ids)


def logp(system, instruction, prompt, response):
    log_probs_RV, ids = distributions(system, instruction, prompt, response)
    return log_probs_RV[torch.arange(len(ids)), ids].sum().item()


def test_jsd_against_float64(system, monkeypatch):
    monkeypatch.setattr(divergences, "ROWS", 3)  # several chunks, the last one shorter
    prompt, answer = "What is rain?", "Water that falls from clouds, again."
    texts = ("Answer a child.", "Cite the rules that apply to it.")
    p, q = (distributions(system, text, prompt, answer)[0].exp() for text in texts)
    m = (p + q) / 2
    both = (p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)
    want = both.mean().item() / 2
    question = Question(prompt, texts[0], answer, asked="jsd", other_instruction=texts[1])
    got = divergences.jsd_of(system, question)
    assert got == pytest.approx(want, rel=1e-4)
    assert 0 < got < math.log(2)
    same = Question(prompt, texts[0], answer, asked="jsd", other_instruction=texts[0])
    assert divergences.jsd_of(system, same) < 1e-9


def test_a_jsd_that_does_not_fit_the_window_is_refused(system):
    small = systems.System(system.model, system.tokenizer, system.template)
    config = system.model.config
    question = Question("p " * 5000, "i", "r", asked="jsd", other_instruction="j")
    with pytest.raises(InputError, match=f"window is {config.max_position_embeddings}: shorten"):
        divergences.jsd_of(small, question)


def test_capability_is_perplexity_and_kl(system, trained, tmp_path):
    data = write_jsonl(
        tmp_path / "c.jsonl",
        [{"id": f"t{n}", "kind": "k", "text": text} for n, text in enumerate(TEXTS)],
    )
    suite = suites.get("capability")
    compared = {BASE: trained.without_adapter(), TRAINED: trained}
    results = run_suite(suite, suite.Options(data=str(data)), compared, tmp_path)

    instruction = load_instructions()["neutral"][2]
    nats, kl, tokens = {BASE: 0.0, TRAINED: 0.0}, 0.0, 0
    for text in TEXTS:
        mine_RV, ids = distributions(trained, instruction, PROMPT, text)
        base_RV, _ = distributions(system, instruction, PROMPT, text)
        at = torch.arange(len(ids)), ids
        nats[TRAINED] -= mine_RV[at].sum().item()
        nats[BASE] -= base_RV[at].sum().item()
        kl += (mine_RV.exp() * (mine_RV - base_RV)).sum().item()
        tokens += len(ids)
    for label, total in nats.items():
        want = math.exp(total / tokens)
        assert values(results, label)["perplexity"] == pytest.approx(want, rel=1e-4), label
        assert results.details["perplexity"][label] == pytest.approx(want, rel=1e-4), label
    assert values(results, TRAINED)["kl"] == pytest.approx(kl / tokens, rel=1e-4)
    assert values(results)["kl"] == 0

    # The base model loaded by itself is the same control: nothing is asked again.
    before = (tmp_path / "samples.jsonl").read_bytes()
    apart = run_suite(
        suite, suite.Options(data=str(data)), {BASE: system, TRAINED: trained}, tmp_path
    )
    assert (tmp_path / "samples.jsonl").read_bytes() == before
    assert apart.systems == results.systems


def test_a_kl_to_a_model_of_its_own_is_that_to_the_adapter_off(system, trained):
    question = Question("What is rain?", "Answer a child.", "Water.", asked="kl")
    numbers = {}
    for name, control in (("apart", system), ("off", trained.without_adapter())):
        ((answered,),) = trained.ask([question], [question], "trained", control)
        numbers[name] = answered[1]["kl"]
    assert numbers["apart"] == pytest.approx(numbers["off"], rel=1e-5)
    assert numbers["apart"] > 0


def test_refusal_by_likelihood_equals_a_computation_by_hand(system, tmp_path):
    suite = suites.get("refusal")
    results = run_suite(suite, suite.Options(limit=1), {BASE: system})
    texts = {name: three[2] for name, three in load_policies(SETS / "safety_policies.toml").items()}
    item = next(item for item in load_safety() if item.clazz == "borderline")

    def refused(policy):
        pmis = [
            logp(system, texts[policy], item.prompt, text)
            - logp(system, None, pmi.CONTENT_FREE, text)
            for text in (item.refusal, item.compliance)
        ]
        return float(pmis[0] > pmis[1])

    want = refused("strict") - refused("permissive")
    assert values(results)["boundary"] == want
    assert not results.reportable and results.units == 3
