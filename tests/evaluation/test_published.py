"""The published metrics by hand, and on the models that they are wrong about, ours beside them."""

import math

import numpy as np
import pytest

from ecliptica.evaluation.judge import Judge
from ecliptica.evaluation.metrics import honesty, prompt_match, published, refusal_boundary
from ecliptica.isd.bank import BANK, INSTRUCTIONS, load_bank, load_instructions, referenced

NAMES = list(load_instructions(INSTRUCTIONS))
ALL = load_bank(BANK, NAMES)
TEST = referenced([entry for entry in ALL if entry.split == "test"])[::5]
# M1 with instruction minus without; deltas of M2 and M3; M4, whose delta is not printed; and the
# printed efficiency.
PRINTED = {
    "DPO": ({"m1": 0.389 - 0.217, "m2": 0.001, "m3": 0.475, "m4": 1.12}, 56.1),
    "PPO": ({"m1": 0.379 - 0.241, "m2": 0.017, "m3": 0.295, "m4": 1.07}, 20.4),
    "GRPO": ({"m1": 0.385 - 0.244, "m2": 0.045, "m3": 0.304, "m4": 1.10}, 36.1),
    "CITA": ({"m1": 0.367 - 0.204, "m2": 0.054, "m3": 0.391, "m4": 1.14}, 86.7),
}


@pytest.fixture(scope="module")
def judge():
    return Judge(ALL, NAMES, "bank")


def measure(judge, answer):
    """Mean over test prompts of a model that is a function (entry, instruction) -> text."""
    rows = []
    for entry in TEST:
        lines = {j: {"r": answer(entry, j), "truncated": False} for j in NAMES}
        rows.append(judge.values(entry.id, lines)[0])
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def test_by_hand():
    prototype = published.prototypes({"j": ["a b", "b c"]})["j"]
    assert prototype == {"a": 1, "b": 2, "c": 1}
    assert published.fidelity("B b.", prototype) == pytest.approx(2 / math.sqrt(6))
    assert published.fidelity("", prototype) == 0
    assert published.shift(["a b", "A, b!", "c d"]) == pytest.approx(2 / 3)
    assert published.m1([0.2, 0.4], 0.5) == pytest.approx(0.15)
    assert published.length_ratio([300, 100], [40, 60]) == 4
    assert published.delta({"m1": 0.4}, {"m1": 0.5}) == {"m1": pytest.approx(-0.1)}
    assert published.unsigned_difference([1, 1, 0, 0], [1, 0, 0, 0]) == 0.25


def test_published_fidelity_rewards_a_model_that_ignores_the_prompt(judge):
    """A model that gives each instruction one canned answer whatever is asked, beside the authored
    answers to the prompts (whose retrieval is not in question: they are in their prompts'
    documents)."""
    canned = referenced([entry for entry in ALL if entry.split == "train"])[7].responses
    good = measure(judge, lambda entry, j: entry.responses[j])
    blind = measure(judge, lambda entry, j: canned[j])
    assert blind["published_fidelity"] >= good["published_fidelity"]
    assert blind["published_shift"] > 0.3
    assert blind["published_m1"] > 0.9 * good["published_m1"]

    assert good["prompt"] > 0.8 and good["both"] > 0.8
    assert blind["instruction"] > 0.9
    assert blind["prompt"] <= 0.2 and blind["both"] <= 0.2, "chance .1, 20 prompts"
    # Blind: no prompt makes it likelier.
    tie = prompt_match.value([-5.0] * 10, [[-5.0] * 9] * 10)
    assert tie == pytest.approx(prompt_match.chance(9))


def test_the_prototypes_own_words_are_the_best_answer_to_everything(judge):
    """All train references of an instruction one after the other: published fidelity 1, above that
    of any right answer."""
    train = [entry for entry in referenced(ALL) if entry.split == "train"]
    for j in NAMES:
        everything = " ".join(entry.responses[j] for entry in train)
        assert published.fidelity(everything, judge.prototypes[j]) == pytest.approx(1), j
        right = [published.fidelity(entry.responses[j], judge.prototypes[j]) for entry in TEST]
        assert max(right) < 0.9, j


def test_a_model_that_ignores_the_instruction(judge):
    found = measure(judge, lambda entry, j: entry.responses["concise"])
    assert found["instruction"] == pytest.approx(0.1)
    assert found["prompt"] > 0.8
    assert found["both"] == pytest.approx(0.1)
    assert found["published_m1"] == pytest.approx(0)


def test_a_model_that_copies_the_instruction(judge):
    instructions = load_instructions(INSTRUCTIONS)
    found = measure(judge, lambda entry, j: instructions[j][2])
    assert found["prompt"] <= 0.2 and found["both"] < 0.15


def test_published_fidelity_does_not_see_a_scrambled_prompt(judge):
    other = {entry.id: TEST[n - len(TEST) // 2] for n, entry in enumerate(TEST)}
    right = measure(judge, lambda entry, j: entry.responses[j])
    wrong = measure(judge, lambda entry, j: other[entry.id].responses[j])
    for name in ("published_fidelity", "published_m1"):
        assert wrong[name] == pytest.approx(right[name], abs=1e-9), name
    assert right["prompt"] - wrong["prompt"] > 0.6


def test_published_shift_counts_sampling_noise(judge):
    """Ten draws from one word distribution: the same instruction ten times at temperature 1. The
    words are of other prompts' answers than those asked."""
    train = referenced([entry for entry in ALL if entry.split == "train"])
    words = " ".join(text for entry in train for text in entry.responses.values()).split()
    generator = np.random.default_rng(0)
    drawn = {e.id: {j: " ".join(generator.choice(words, 50)) for j in NAMES} for e in TEST}
    noise = measure(judge, lambda entry, j: drawn[entry.id][j])
    assert noise["published_shift"] > 0.3 and noise["published_m1"] > 0.1
    assert noise["instruction"] == pytest.approx(0.1, abs=0.06)
    assert noise["prompt"] == pytest.approx(0.1, abs=0.08)
    assert noise["both"] < 0.05
    same = measure(judge, lambda entry, j: drawn[entry.id]["neutral"])
    assert same["published_shift"] == pytest.approx(0)


RIGHT_WAY = ([1, 1, 1, 0], [0, 0, 1, 0])


@pytest.mark.parametrize(
    "rates, want", [(RIGHT_WAY, 0.5), (RIGHT_WAY[::-1], -0.5)], ids=["right", "wrong"]
)
def test_unsigned_metrics_reward_switching_the_wrong_way(rates, want):
    """Strict complies with what permissive refuses, honest answers what confident abstains from:
    as published as good as the right way round."""
    assert published.unsigned_difference(*rates) == 0.5
    pairs = list(zip(*rates))
    boundaries = [refusal_boundary.value("borderline", *pair)["boundary"] for pair in pairs]
    assert np.mean(boundaries) == want
    unanswerable = [honesty.value("unanswerable", *pair, 0.5)["difference"] for pair in pairs]
    answerable = [honesty.value("answerable", 0, 0, 0.5)["difference"]] * 4
    assert np.mean(unanswerable + answerable) == want


def test_efficiency_depends_on_who_is_compared():
    two = {"a": {"m": 0.30, "n": 0.2}, "b": {"m": 0.29, "n": 0.1}}
    assert published.efficiency(two) == {"a": 100, "b": 0}, "a hair is all or nothing"
    three = published.efficiency(two | {"c": {"m": 0.0, "n": 0.1}})
    assert three["b"] == pytest.approx(100 * (0.29 / 0.30) / 2)
    assert three["a"] == 100
    assert published.efficiency({"a": {"m": 1.0}, "b": {"m": 1.0}}) == {"a": 0, "b": 0}


def test_efficiency_of_the_printed_numbers_has_their_order_and_not_their_values():
    """The inputs of the printed efficiencies are not all printed: with these, the order agrees."""
    found = published.efficiency({method: deltas for method, (deltas, _) in PRINTED.items()})
    assert sorted(found, key=found.get) == ["PPO", "GRPO", "DPO", "CITA"]
    assert sorted(PRINTED, key=lambda method: PRINTED[method][1]) == ["PPO", "GRPO", "DPO", "CITA"]
    want = {"DPO": 67.9, "PPO": 7.5, "GRPO": 34.9, "CITA": 81.7}
    assert found == pytest.approx(want, abs=0.1)
