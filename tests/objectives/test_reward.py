"""Bradley-Terry against float64 mathematics and trl; the rewards that read words alone."""

import math
from types import SimpleNamespace

import pytest
import torch

from ecliptica import rewards
from ecliptica.objectives import reward
from ecliptica.objectives.contract import Step
from ecliptica.rewards import classifier, format, length, refusal
from model.errors import InputError
from tests.objectives.random_rows import random_rows

STEP = Step(0, 1)


def terms_of(rows):
    return reward.loss(rows, reward.Config(), STEP)


def test_loss_and_gradient_are_the_formula():
    rows = random_rows([2] * 6)
    terms = terms_of(rows)
    (got,) = torch.autograd.grad(terms.loss, rows.rewards_S)
    r = rows.rewards_S.detach().tolist()
    margins = [r[2 * n] - r[2 * n + 1] for n in range(6)]
    want = sum(math.log1p(math.exp(-margin)) for margin in margins)
    assert float(terms.loss) == pytest.approx(want, rel=1e-12)
    for n, margin in enumerate(margins):
        slope = -1 / (1 + math.exp(margin))
        assert got[2 * n].item() == pytest.approx(slope, rel=1e-12)
        assert got[2 * n + 1].item() == pytest.approx(-slope, rel=1e-12)
    assert float(terms.metrics["margin"]) == pytest.approx(sum(margins))
    assert float(terms.metrics["accuracy"]) == sum(margin > 0 for margin in margins)


@pytest.mark.peer
def test_loss_is_trl_s():
    from collections import defaultdict

    from trl import RewardTrainer

    rows = random_rows([2] * 5, dtype=torch.float32)
    r_S = rows.rewards_S.detach()
    logits = torch.cat([r_S[0::2], r_S[1::2]])[:, None]
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(center_rewards_coefficient=None),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _tp_size=1,
        _total_train_tokens=0,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    inputs = {"attention_mask": torch.ones(10, 3)}
    theirs = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=logits), inputs)
    terms = terms_of(rows)
    assert float(terms.loss) / 5 == pytest.approx(float(theirs), abs=1e-6)
    metrics = trainer._metrics["train"]
    assert float(terms.metrics["margin"]) / 5 == pytest.approx(metrics["margin"][0], abs=1e-6)
    assert float(terms.metrics["accuracy"]) / 5 == pytest.approx(metrics["accuracy"][0])


def answers(*texts, ended=True, instruction=None):
    return [(instruction, "Why?", text, ended) for text in texts]


def test_rewards_of_words():
    words = rewards.scorer(length.Config(max_words=3))
    assert words(answers("one two three", "one two three four", "")) == [1.0, 0.0, 0.0]
    assert words(answers("one", ended=False)) == [0.0]

    declines = answers("I'm sorry, but no.", "I can\u2019t help with that.", "Rain. I can't.", "")
    assert rewards.scorer(refusal.Config())(declines) == [1.0, 1.0, 0.0, 0.0]
    assert rewards.scorer(refusal.Config(wanted="answer"))(declines) == [0.0, 0.0, 1.0, 0.0]

    texts = answers("- a\n- b", '{"a": [1]}', "3", "Is it?", "one\ntwo")
    table = {
        "list": [1.0, 0.0, 0.0, 0.0, 0.0],
        "json": [0.0, 1.0, 0.0, 0.0, 0.0],
        "question": [0.0, 0.0, 0.0, 1.0, 0.0],
        "line": [0.0, 1.0, 1.0, 1.0, 0.0],
    }
    for form, want in table.items():
        assert rewards.scorer(format.Config(form=form))(texts) == want, form


def test_the_classifier_s_reward_is_the_instruction_s_log_probability():
    from ecliptica.isd.bank import load_bank, load_instructions

    wordings = load_instructions()
    bank = [e for e in load_bank(instructions=wordings) if e.split == "test" and e.responses]
    names = [name for name in wordings if name in bank[0].responses][:3]
    text = bank[0].responses[names[0]]
    score = rewards.scorer(classifier.Config(floor=-1e9))
    every = [score(answers(text, instruction=wordings[name][0]))[0] for name in wordings]
    assert math.fsum(map(math.exp, every)) == pytest.approx(1)
    assert max(every) == every[list(wordings).index(names[0])]
    floor = rewards.scorer(classifier.Config())
    assert floor(answers("", instruction=wordings[names[0]][0])) == [-10.0]
    with pytest.raises(InputError, match="is none of the"):
        score(answers(text, instruction="Sing."))


def test_every_reward_has_its_config():
    assert {"model", "length", "refusal", "format", "classifier"} <= rewards.configs().keys()
    for name, kind in rewards.configs().items():
        assert kind().name == name
