"""Contrastive decoding of the instruction: log-probs and texts from two forwards of transformers in
float64, alpha 0 as plain prompting, and the control beside prompting only."""

import pytest
import torch

from ecliptica.evaluation import contrast, systems
from ecliptica.evaluation.answers import ends
from ecliptica.evaluation.questions import Question, Sampling
from ecliptica.evaluation.scoring import context_ids, response_ids
from model.errors import InputError
from model.generate import generate

CELLS = [
    (prompt, instruction, response)
    for prompt, instruction in (("Hi?", "Be kind."), ("What is rain?", "Be brief, and warm."))
    for response in ("Hello, and welcome.", "Water.")
]
QUESTIONS = [Question(*cell) for cell in CELLS]


@pytest.fixture(scope="module")
def system(tiny):
    return systems.load(tiny, "chatml")


def logps(system, alpha):
    lines = [line for part in contrast.log_probs(system, QUESTIONS, "", alpha) for line in part]
    by_question = dict(lines)
    return [by_question[question]["logp"] for question in QUESTIONS]


def test_alpha_0_is_plain_prompting(system):
    plain = {}
    for part in system.ask(QUESTIONS, QUESTIONS, "", system):
        plain |= dict(part)
    want = [plain[question]["logp"] for question in QUESTIONS]
    assert logps(system, 0.0) == pytest.approx(want, rel=1e-5)
    assert logps(system, 1.0) != pytest.approx(want, rel=1e-3)


@pytest.mark.peer
@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_scores_and_greedy_text_equal_transformers(system, tiny, alpha):
    from transformers import LlamaForCausalLM

    peer = LlamaForCausalLM.from_pretrained(tiny, dtype=torch.float64).eval()

    @torch.no_grad()
    def mixed(contexts, response):
        """Logits [T, V] of the response's tokens and of the one behind them."""
        first, second = (
            peer(torch.tensor([[*context, *response]])).logits[0, len(context) - 1 :]
            for context in contexts
        )
        return (1 + alpha) * first - alpha * second

    want = []
    for prompt, instruction, text in CELLS:
        contexts = contrast.contexts_of(system, prompt, instruction)
        ids = response_ids(system, text)
        logp_TV = mixed(contexts, ids)[:-1].log_softmax(-1)
        want.append(logp_TV.gather(1, torch.tensor(ids)[:, None]).sum().item())
    assert logps(system, alpha) == pytest.approx(want, rel=1e-5)

    # Two prompts in one batch, each the tokens that its own mixture likes best.
    pairs = [contrast.contexts_of(system, *CELLS[n][:2]) for n in (0, 2)]
    answers = contrast.generate(system, pairs, Sampling(6), [0, 1], alpha)
    for contexts, got in zip(pairs, answers, strict=True):
        ids = []
        for _ in range(6):
            token = mixed(contexts, ids)[-1].argmax().item()
            if token in ends(system):
                break
            ids.append(token)
        assert got == ids


def test_alpha_0_generates_the_plain_text(system):
    pairs = [contrast.contexts_of(system, *CELLS[n][:2]) for n in (0, 2)]
    got = contrast.generate(system, pairs, Sampling(6), [0, 1], 0.0)
    plain = [context_ids(system, *CELLS[n][:2]) for n in (0, 2)]
    assert got == generate(system.model, plain, 6, ends(system))


def test_it_stands_beside_prompting_only(tiny):
    options = systems.Compared(str(tiny), "chatml", contrast=0.5, system_turn=True)
    table = systems.compared(options)
    assert list(table) == ["prompting-only", "contrastive", "system turn"]
    assert len({system.digest for system in table.values()}) == 3
    assert table["contrastive"].digest != systems.replace(table["contrastive"], contrast=1.0).digest
    answers = {}
    for part in table["contrastive"].ask(QUESTIONS, QUESTIONS, "", table["prompting-only"]):
        answers |= dict(part)
    got = [answers[question]["logp"] for question in QUESTIONS]
    assert got == pytest.approx(logps(table["prompting-only"], 0.5))


def test_what_it_cannot_do_is_said(system):
    contrasted = systems.replace(system, contrast=1.0)
    kl = [Question(*CELLS[0], asked="kl")]
    with pytest.raises(InputError, match="contrastive has no kl here"):
        list(contrasted.ask(kl, kl, "", system))
    with pytest.raises(InputError, match="--template none has rendered text"):
        contrast.contexts_of(systems.replace(system, template=None), "Hi?", "Be kind.")
