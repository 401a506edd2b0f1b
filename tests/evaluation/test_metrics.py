"""The metrics of behaviour and of generations on synthetic models whose true value is known, and statistics of ratios."""

import math

import numpy as np
import pytest
import torch

from ecliptica.evaluation import statistics
from ecliptica.evaluation.metrics import generation_fidelity, honesty, length_contract, published, refusal_boundary
from ecliptica.evaluation.metrics.distribution_shift import token_jsd
from ecliptica.isd.bank import BANK, load_bank, load_instructions, referenced

CLASSES = ("harmful", "borderline", "benign")


def boundary(refuses):
    """Mean of each metric for a model given by refuses(class, policy) -> PMI of refusal minus compliance."""
    rows = [refusal_boundary.value(c, *(refusal_boundary.refused(refuses(c, p), 0.0) for p in ("strict", "permissive"))) for c in CLASSES * 20]
    return {name: float(np.nanmean([row[name] for row in rows])) for name in refusal_boundary.TITLES}


def test_refusal_boundary():
    wanted = {"harmful": (1, 1), "borderline": (1, -1), "benign": (-1, -1)}
    perfect = boundary(lambda c, p: wanted[c][p == "permissive"])
    assert perfect == {"boundary": 1, "floor": 1, "ceiling": 0}
    assert boundary(lambda c, p: 0) == {"boundary": 0, "floor": 0.5, "ceiling": 0.5}  # sees neither request nor policy
    assert boundary(lambda c, p: 1) == {"boundary": 0, "floor": 1, "ceiling": 1}  # refuses everything: no switch
    assert boundary(lambda c, p: wanted[c][p == "strict"])["boundary"] == -1  # the wrong way is negative, not rewarded


def differences(abstains):
    kinds = ["answerable"] * 30 + ["unanswerable"] * 10
    rows = [honesty.value(k, abstains(k, "honest"), abstains(k, "confident"), kinds.count(k) / len(kinds)) for k in kinds]
    return {name: float(np.mean([row[name] for row in rows])) for name in honesty.TITLES}


def test_honesty_is_a_difference_in_differences():
    assert differences(lambda k, p: float(k == "unanswerable" and p == "honest")) == pytest.approx({"difference": 1, "honest": 1, "confident": 0.75})
    assert differences(lambda k, p: float(p == "honest"))["difference"] == pytest.approx(0)  # abstains whatever the question
    assert differences(lambda k, p: float(k == "unanswerable"))["difference"] == 0  # ignores the policy, is right under both
    assert differences(lambda k, p: float(k == "unanswerable"))["confident"] == 1
    assert differences(lambda k, p: 0.5) == pytest.approx({"difference": 0, "honest": 0.5, "confident": 0.5})
    assert differences(lambda k, p: float(k == "unanswerable" and p == "confident"))["difference"] == pytest.approx(-1)


def test_length_contract():
    short, long = "word " * 20, "word " * 300
    assert length_contract.value(short, long, 0) == {"short": 1, "long": 1, "both": 1, "log_ratio": pytest.approx(math.log(301 / 21)), "cut": 0}
    assert length_contract.value(short, short, 0) == {"short": 1, "long": 0, "both": 0, "log_ratio": 0, "cut": 0}  # always short
    assert length_contract.value(long, short, 1)["log_ratio"] < 0 and length_contract.value(long, short, 1)["both"] == 0  # the wrong way is negative
    assert length_contract.value("", long, 0)["short"] == 0  # nothing is no short answer
    assert length_contract.value("word " * 50, "word " * 200, 2)["both"] == 1 and length_contract.value("word " * 51, "word " * 199, 2)["both"] == 0


def test_token_jsd_against_float64():
    generator = torch.Generator().manual_seed(0)
    a, b = 4 * torch.randn(2, 30, 500, generator=generator, dtype=torch.float64)
    p, q = a.softmax(-1), b.softmax(-1)
    m = (p + q) / 2
    want = ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2
    assert torch.allclose(token_jsd(a.float(), b.float()).double(), want, atol=1e-6)
    assert token_jsd(a, a).max() < 1e-7
    apart = torch.full((1, 4), -200.0)
    assert token_jsd(apart.index_fill(1, torch.tensor([0]), 0.0), apart.index_fill(1, torch.tensor([1]), 0.0)).item() == pytest.approx(math.log(2), abs=1e-6)


def test_ratio_of_means_on_the_same_draws():
    x = np.random.default_rng(0).uniform(1, 2, 50)
    drawn = statistics.draws(50)
    assert statistics.ratio(3 * x, x, drawn) == pytest.approx({"value": 3, "low": 3, "high": 3})
    assert statistics.ratio(x, 0 * x, drawn)["value"] is None


@pytest.fixture(scope="module")
def bank():
    return load_bank(BANK, load_instructions())


@pytest.fixture(scope="module")
def judged(bank):
    """values(answers of a model: answer(prompt entry, instruction)) over 12 test prompts, by the suite's own code."""
    from ecliptica.evaluation.suites import fidelity

    names = list(load_instructions())
    train = referenced([entry for entry in bank if entry.split == "train"], names)
    classifier = generation_fidelity.Classifier([t for e in train for t in e.responses.values()], [name for e in train for name in e.responses])
    retrieval = generation_fidelity.Retrieval({entry.id: entry.prompt for entry in bank})
    prototypes = published.prototypes({name: [e.responses[name] for e in train] for name in names})
    test = referenced([entry for entry in bank if entry.split == "test"], names)[::8]

    def values(answer):
        rows = [fidelity.values({name: answer(entry, name) for name in names}, entry, bank, classifier, retrieval, prototypes) for entry in test]
        return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}

    return values


def test_a_prompt_blind_model_is_at_chance_on_both_while_the_published_fidelity_rewards_it(bank, judged):
    """It gives each instruction one canned answer, whatever the prompt: the reference answers to a single train prompt, and the prototype's words."""
    names, donor = list(load_instructions()), next(entry for entry in bank if entry.split == "train" and entry.responses)
    canned = {name: " ".join(e.responses[name] for e in bank if e.split == "train" and e.responses) for name in names}
    right, blind, one = judged(lambda e, name: e.responses[name]), judged(lambda e, name: canned[name]), judged(lambda e, name: donor.responses[name])
    assert blind["published_fidelity"] == pytest.approx(1) and right["published_fidelity"] < 0.9 and blind["published_m1"] > 0
    assert blind["instruction"] == 1 and blind["prompt"] < 0.25 and blind["both"] < 0.25
    assert one["prompt"] <= 0.2 and right["both"] > 0.6 and right["prompt"] > 0.7


def test_a_model_that_ignores_the_instruction_is_at_chance_on_instruction(judged):
    found = judged(lambda e, name: e.responses["concise"])
    assert found["instruction"] == pytest.approx(0.1) and found["prompt"] > 0.6 and found["published_shift"] == pytest.approx(0, abs=1e-9)


def test_a_model_that_copies_the_instruction_or_says_nothing_answers_no_prompt(judged):
    wording = {name: texts[2] for name, texts in load_instructions().items()}
    copied = judged(lambda e, name: wording[name])
    assert copied["prompt"] < 0.2 and copied["both"] < 0.2
    silent = judged(lambda e, name: " ")
    assert silent["both"] == silent["instruction"] == silent["prompt"] == 0


def test_the_published_shift_counts_sampling_noise(judged):
    """Ten samples that differ at random and not by instruction: a shift as large as a real one, and recognised at chance."""
    generator = np.random.default_rng(0)
    pool = "the of a to in it and work people may often time where good plan day city way small thing".split()
    noise = judged(lambda e, name: " ".join(generator.choice(pool, 40)))
    assert noise["published_shift"] > 0.15 and noise["instruction"] == pytest.approx(0.1, abs=0.1)


def test_published_differences_reward_the_wrong_direction_and_efficiency_is_relative():
    assert published.unsigned_difference([0, 0], [1, 1]) == published.unsigned_difference([1, 1], [0, 0]) == 1
    two = {"a": {"m": 0.1, "n": 0.1}, "b": {"m": 0.2, "n": 0.05}}
    assert published.efficiency(two) == {"a": 50, "b": 50}
    assert published.efficiency(two | {"c": {"m": 0.9, "n": 0.0}})["b"] == pytest.approx(50 * (0.1 / 0.8 + 0.5))
    assert published.length_ratio([200, 400], [50, 50]) == 6


def test_classifier_against_bayes_by_hand():
    found = generation_fidelity.Classifier(["red fox", "blue whale"], ["r", "b"])
    assert found.share("red", "r") == 1 and found.share("blue", "r") == 0 and found.share("", "r") == 0
    counts, size = generation_fidelity.features("red fox"), len(found.vocabulary)
    want = sum(n * math.log((counts[f] + 1) / (counts.total() + size)) for f, n in generation_fidelity.features("red").items() if f in found.vocabulary)
    assert found.scores("red")[0] == pytest.approx(want)


def test_retrieval_ignores_common_words():
    found = generation_fidelity.Retrieval({"a": "the old bridge", "b": "the new school", "c": "the tall tower"})
    assert found.share("a bridge, the bridge", "a", ["b", "c"]) == 1 and found.share("the", "a", ["b", "c"]) == pytest.approx(1 / 3)
