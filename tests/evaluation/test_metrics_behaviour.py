"""Metrics of paraphrase, underspecification, override and scale by hand, and the statistics of what is derived from several means."""

import itertools

import numpy as np
import pytest

from ecliptica.evaluation import statistics
from ecliptica.evaluation.metrics import (
    candidates,
    contract_kept,
    distribution_shift,
    paraphrase,
    underspecified,
)

RNG = np.random.default_rng(0)


def test_paraphrase():
    assert paraphrase.value([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]]) == 0.5
    assert (
        paraphrase.value(np.full((3, 4), 0.25)) == 0.25
    )  # sees no instruction: a tie under every wording
    assert (
        paraphrase.value(np.tile([1, 0, 0, 0], (3, 1))) == 0.25
    )  # takes the same instruction for every response
    guesses = (
        RNG.random((2000, 3, 4)) < 0.25
    )  # guesses anew under each wording: lower than the chance level given
    assert np.mean([paraphrase.value(shares) for shares in guesses.astype(float)]) == pytest.approx(
        1 / 64, abs=0.006
    )
    assert paraphrase.worst(0.5, 0.2, 0.9) == 0.2 and list(
        paraphrase.worst(np.array([1, 2]), np.array([2, 1]))
    ) == [1, 1]


def test_distance_has_no_direction_and_does_not_cancel():
    unsaid, tokens = np.array([-10.0, -20.0]), np.array([2, 4])
    assert underspecified.distance([unsaid, unsaid], unsaid, tokens) == 0
    assert (
        underspecified.distance([unsaid + [2, -4]], unsaid, tokens)
        == underspecified.distance([unsaid + [-2, 4]], unsaid, tokens)
        == 1
    )


def test_contract_kept():
    assert (
        contract_kept.value(0.5, 0.5) == contract_kept.NULL == 1
        and contract_kept.value(0.1, 1.0) == 0.1
    )


def test_candidates():
    groups = [None, None, "red", "red", "blue"]
    assert candidates.shares(np.zeros((5, 2)), groups) == pytest.approx(
        {"own": 0.2, "another of the first": 0.2, "red": 0.4, "blue": 0.2}
    )  # ignores instructions
    assert candidates.shares(np.eye(5, 2), groups) == {
        "own": 1,
        "another of the first": 0,
        "red": 0,
        "blue": 0,
    }
    assert candidates.shares(np.eye(5, 2)[[1, 0, 2, 3, 4]], groups)["another of the first"] == 1
    assert candidates.shares(np.array([[0, 0], [0, 9], [5, 0], [0, 0], [0, 0]]), groups) == {
        "own": 0.5,
        "another of the first": 0,
        "red": 0.5,
        "blue": 0,
    }


def test_share_of_the_greatest_divergence():
    assert distribution_shift.share(np.log(2)) == 1


def test_combined_of_one_column_is_the_interval_and_of_two_their_ratio():
    x, y, drawn = RNG.uniform(1, 2, 40), RNG.uniform(3, 4, 40), statistics.draws(40)
    assert statistics.combined(lambda a: a, [x], drawn) == pytest.approx(
        statistics.summary(x, drawn)
    )
    found = statistics.combined(np.divide, [x, y], drawn)
    by_hand = np.quantile([x[d].mean() / y[d].mean() for d in drawn], [0.025, 0.975])
    assert found["value"] == pytest.approx(x.mean() / y.mean()) and [
        found["low"],
        found["high"],
    ] == pytest.approx(by_hand)
    assert found["value"] != pytest.approx(
        (x / y).mean(), abs=1e-6
    )  # a ratio of means, no mean of ratios
    assert statistics.combined(np.divide, [x, 0 * y], drawn) == {
        "value": None,
        "low": None,
        "high": None,
    }
    holes = np.where(np.arange(40) % 2, np.nan, x)  # units of another class have no value
    assert statistics.combined(np.subtract, [holes, y], drawn)["value"] == pytest.approx(
        np.nanmean(holes) - y.mean()
    )


def test_swap_test_is_the_exact_test():
    mine, control = RNG.uniform(1, 2, (2, 7)), RNG.uniform(1, 2, (2, 7))
    mine[0] += 0.5

    def difference(swap):
        a, b = np.where(swap, control, mine).mean(1), np.where(swap, mine, control).mean(1)
        return a[0] / a[1] - b[0] / b[1]

    observed = abs(difference(np.zeros(7, bool)))
    exact = np.mean(
        [
            abs(difference(np.array(swap))) >= observed - 1e-12
            for swap in itertools.product((False, True), repeat=7)
        ]
    )
    assert statistics.swap_test(np.divide, mine, control) == pytest.approx(exact, abs=0.02)
    assert statistics.swap_test(lambda a: a, mine[:1], control[:1]) == pytest.approx(
        statistics.sign_flip(mine[0] - control[0]), abs=0.02
    )
    assert (
        statistics.swap_test(np.divide, mine, mine)
        == 1
        == statistics.swap_test(np.divide, [mine[0], 0 * mine[1]], control)
    )
