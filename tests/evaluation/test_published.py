"""The published metrics by hand, and on the models that they are wrong about, with ours beside them."""

import math

import numpy as np
import pytest

from ecliptica.evaluation.metrics import honesty, prompt_match, published, refusal_boundary
from ecliptica.evaluation.suites.fidelity import Judge
from ecliptica.isd.bank import BANK, INSTRUCTIONS, load_bank, load_instructions, referenced

NAMES = list(load_instructions(INSTRUCTIONS))
ALL = load_bank(BANK, NAMES)
TEST = referenced([entry for entry in ALL if entry.split == "test"])[::5]
PRINTED = {  # M1 with instruction minus without; deltas of M2 and M3; M4, whose delta is not printed; the printed efficiency
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
    rows = [
        judge.values(entry.id, {j: {"r": answer(entry, j), "truncated": False} for j in NAMES})[0]
        for entry in TEST
    ]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def test_by_hand():
    prototype = published.prototypes({"j": ["a b", "b c"]})["j"]
    assert (
        prototype == {"a": 1, "b": 2, "c": 1}
        and published.fidelity("B b.", prototype) == pytest.approx(2 / math.sqrt(6))
        and published.fidelity("", prototype) == 0
    )
    assert published.shift(["a b", "A, b!", "c d"]) == pytest.approx(2 / 3) and published.m1(
        [0.2, 0.4], 0.5
    ) == pytest.approx(0.15)
    assert published.length_ratio([300, 100], [40, 60]) == 4 and published.delta(
        {"m1": 0.4}, {"m1": 0.5}
    ) == {"m1": pytest.approx(-0.1)}
    assert published.unsigned_difference([1, 1, 0, 0], [1, 0, 0, 0]) == 0.25


def test_published_fidelity_rewards_a_model_that_ignores_the_prompt(judge):
    """A model that gives each instruction one canned answer whatever is asked, beside the authored answers to the prompts (whose retrieval is not in question: they are in their prompts' documents)."""
    canned = referenced([entry for entry in ALL if entry.split == "train"])[7].responses
    good, blind = (
        measure(judge, lambda entry, j: entry.responses[j]),
        measure(judge, lambda entry, j: canned[j]),
    )
    assert (
        blind["published_fidelity"] >= good["published_fidelity"]
        and blind["published_shift"] > 0.3
        and blind["published_m1"] > 0.9 * good["published_m1"]
    )
    assert good["prompt"] > 0.8 and good["both"] > 0.8
    assert (
        blind["instruction"] > 0.9 and blind["prompt"] <= 0.2 and blind["both"] <= 0.2
    )  # chance .1, 20 prompts
    assert prompt_match.value([-5.0] * 10, [[-5.0] * 9] * 10) == pytest.approx(
        prompt_match.chance(9)
    )  # blind: no prompt makes it likelier


def test_the_prototypes_own_words_are_the_best_answer_to_everything(judge):
    """All train references of an instruction one after the other: published fidelity 1, above that of any right answer."""
    everything = {
        j: " ".join(entry.responses[j] for entry in referenced(ALL) if entry.split == "train")
        for j in NAMES
    }
    assert [published.fidelity(everything[j], judge.prototypes[j]) for j in NAMES] == pytest.approx(
        [1] * 10
    )
    assert (
        max(
            published.fidelity(entry.responses[j], judge.prototypes[j])
            for entry in TEST
            for j in NAMES
        )
        < 0.9
    )


def test_a_model_that_ignores_the_instruction_and_one_that_copies_it(judge):
    found = measure(judge, lambda entry, j: entry.responses["concise"])
    assert (
        found["instruction"] == pytest.approx(0.1)
        and found["prompt"] > 0.8
        and found["both"] == pytest.approx(0.1)
        and found["published_m1"] == pytest.approx(0)
    )
    copied = measure(judge, lambda entry, j: load_instructions(INSTRUCTIONS)[j][2])
    assert copied["prompt"] <= 0.2 and copied["both"] < 0.15


def test_published_fidelity_does_not_see_a_scrambled_prompt(judge):
    other = {entry.id: TEST[n - len(TEST) // 2] for n, entry in enumerate(TEST)}
    right, wrong = (
        measure(judge, lambda entry, j: entry.responses[j]),
        measure(judge, lambda entry, j: other[entry.id].responses[j]),
    )
    assert wrong["published_fidelity"] == pytest.approx(
        right["published_fidelity"], abs=1e-9
    ) and wrong["published_m1"] == pytest.approx(right["published_m1"], abs=1e-9)
    assert right["prompt"] - wrong["prompt"] > 0.6


def test_published_shift_counts_sampling_noise(judge):
    """Ten draws from one word distribution: the same instruction ten times at temperature 1. The words are of other prompts' answers than those asked."""
    train = referenced([entry for entry in ALL if entry.split == "train"])
    words, generator = (
        " ".join(text for entry in train for text in entry.responses.values()).split(),
        np.random.default_rng(0),
    )
    drawn = {entry.id: {j: " ".join(generator.choice(words, 50)) for j in NAMES} for entry in TEST}
    noise = measure(judge, lambda entry, j: drawn[entry.id][j])
    assert noise["published_shift"] > 0.3 and noise["published_m1"] > 0.1
    assert (
        noise["instruction"] == pytest.approx(0.1, abs=0.06)
        and noise["prompt"] == pytest.approx(0.1, abs=0.08)
        and noise["both"] < 0.05
    )
    assert measure(judge, lambda entry, j: drawn[entry.id]["neutral"])[
        "published_shift"
    ] == pytest.approx(0)


def test_unsigned_metrics_reward_switching_the_wrong_way():
    """Strict complies with what permissive refuses, honest answers what confident abstains from: as published as good as the right way round."""
    right, wrong = ([1, 1, 1, 0], [0, 0, 1, 0]), ([0, 0, 1, 0], [1, 1, 1, 0])
    assert published.unsigned_difference(*right) == published.unsigned_difference(*wrong) == 0.5
    boundary = [
        np.mean([refusal_boundary.value("borderline", *pair)["boundary"] for pair in zip(*rates)])
        for rates in (right, wrong)
    ]
    assert boundary == [0.5, -0.5]
    kinds = ["unanswerable"] * 4 + ["answerable"] * 4
    for (honest, confident), want in ((right, 0.5), (wrong, -0.5)):
        rows = [
            honesty.value(kind, *pair, 0.5)["difference"]
            for kind, pair in zip(kinds, [*zip(honest, confident), *[(0, 0)] * 4])
        ]
        assert np.mean(rows) == want


def test_efficiency_depends_on_who_is_compared():
    two = {"a": {"m": 0.30, "n": 0.2}, "b": {"m": 0.29, "n": 0.1}}
    assert published.efficiency(two) == {"a": 100, "b": 0}  # a hair is all or nothing
    three = published.efficiency(two | {"c": {"m": 0.0, "n": 0.1}})
    assert three["b"] == pytest.approx(100 * (0.29 / 0.30) / 2) and three["a"] == 100
    assert published.efficiency({"a": {"m": 1.0}, "b": {"m": 1.0}}) == {"a": 0, "b": 0}


def test_efficiency_of_the_printed_numbers_has_their_order_and_not_their_values():
    """The inputs of the printed efficiencies are not all printed: with these, the order agrees."""
    found = published.efficiency({method: deltas for method, (deltas, _) in PRINTED.items()})
    assert (
        sorted(found, key=found.get)
        == sorted(PRINTED, key=lambda method: PRINTED[method][1])
        == ["PPO", "GRPO", "DPO", "CITA"]
    )
    assert found == pytest.approx({"DPO": 67.9, "PPO": 7.5, "GRPO": 34.9, "CITA": 81.7}, abs=0.1)
