"""Statistics by hand, by exact enumeration, and against a second computation."""

import itertools

import numpy as np
import pytest

from ecliptica.evaluation import statistics

RNG = np.random.default_rng(0)
NOTHING = {"value": None, "low": None, "high": None}


def test_interval_is_the_bootstrap_of_the_mean():
    x = np.random.default_rng(3).normal(2, 1, 200)
    value, low, high = statistics.interval(x, statistics.draws(200))
    half = 1.96 * x.std() / 200**0.5
    assert value == x.mean()
    assert (low, high) == pytest.approx((value - half, value + half), abs=0.02)
    assert (value, low, high) == statistics.interval(x, statistics.draws(200)), "not repeatable"


def test_interval_where_units_have_no_value():
    x = np.array([1.0, np.nan, 3.0, np.nan, 2.0, 4.0])
    value, low, high = statistics.interval(x, statistics.draws(6))
    assert value == 2.5
    assert 1 <= low < value < high <= 4
    # Means 1, none at all, 3.
    drawn = np.array([[0, 1, 1, 1, 1, 1], [1, 3, 1, 3, 1, 3], [2, 2, 1, 1, 1, 1]])
    assert statistics.interval(x, drawn, level=1.0) == (2.5, 1.0, 3.0)
    assert statistics.summary([np.nan] * 3, statistics.draws(3)) == NOTHING


@pytest.mark.parametrize(
    "d",
    [RNG.normal(0.5, 1, 8), RNG.normal(0, 1, 8), np.array([0.1, 0.2, 0, 0.3, -0.1, 0.2, 0.4, 0.1])],
    ids=["shifted", "centred", "with a tie"],
)
def test_sign_flip_is_the_exact_test_of_eight_units(d):
    patterns = itertools.product((-1, 1), repeat=8)
    exact = np.mean([abs(np.dot(signs, d)) >= abs(d.sum()) - 1e-12 for signs in patterns])
    assert statistics.sign_flip(d) == pytest.approx(exact, abs=0.02)
    assert statistics.sign_flip(-d) == pytest.approx(exact, abs=0.02)


def test_sign_flip_at_the_ends():
    assert statistics.sign_flip(np.ones(8)) == pytest.approx(2 / 256, abs=0.004)
    assert statistics.sign_flip([0.0] * 8) == 1
    assert statistics.sign_flip([np.nan] * 8) == 1
    assert statistics.sign_flip([1, np.nan] * 8) == statistics.sign_flip([1] * 8)


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.5, 0.9]) == [1, 1]
    assert statistics.holm([0.03]) == [0.03]
    assert statistics.holm([]) == []


def test_ratio_of_means_on_the_same_draws():
    x = np.random.default_rng(0).uniform(1, 2, 50)
    drawn = statistics.draws(50)
    assert statistics.ratio(3 * x, x, drawn) == pytest.approx({"value": 3, "low": 3, "high": 3})
    assert statistics.ratio(x, 0 * x, drawn) == NOTHING


def test_combined_of_one_column_is_the_interval_and_of_two_their_ratio():
    x, y, drawn = RNG.uniform(1, 2, 40), RNG.uniform(3, 4, 40), statistics.draws(40)
    one = statistics.combined(lambda mean: mean, [x], drawn)
    assert one == pytest.approx(statistics.summary(x, drawn))

    ratio = statistics.combined(np.divide, [x, y], drawn)
    by_hand = np.quantile([x[d].mean() / y[d].mean() for d in drawn], [0.025, 0.975])
    assert ratio["value"] == pytest.approx(x.mean() / y.mean())
    assert [ratio["low"], ratio["high"]] == pytest.approx(by_hand)
    assert ratio["value"] != pytest.approx((x / y).mean(), abs=1e-6), "a mean of ratios"


def test_combined_with_units_that_have_no_value():
    x, y, drawn = RNG.uniform(1, 2, 40), RNG.uniform(3, 4, 40), statistics.draws(40)
    assert statistics.combined(np.divide, [x, 0 * y], drawn) == NOTHING
    holes = np.where(np.arange(40) % 2, np.nan, x)
    difference = statistics.combined(np.subtract, [holes, y], drawn)
    assert difference["value"] == pytest.approx(np.nanmean(holes) - y.mean())


def test_swap_test_is_the_exact_test():
    mine, control = RNG.uniform(1, 2, (2, 7)), RNG.uniform(1, 2, (2, 7))
    mine[0] += 0.5

    def difference(swap):
        a, b = np.where(swap, control, mine).mean(1), np.where(swap, mine, control).mean(1)
        return a[0] / a[1] - b[0] / b[1]

    observed = abs(difference(np.zeros(7, bool)))
    swaps = itertools.product((False, True), repeat=7)
    exact = np.mean([abs(difference(np.array(swap))) >= observed - 1e-12 for swap in swaps])
    assert statistics.swap_test(np.divide, mine, control) == pytest.approx(exact, abs=0.02)

    of_one = statistics.swap_test(lambda mean: mean, mine[:1], control[:1])
    assert of_one == pytest.approx(statistics.sign_flip(mine[0] - control[0]), abs=0.02)
    assert statistics.swap_test(np.divide, mine, mine) == 1
    assert statistics.swap_test(np.divide, control, [mine[0], 0 * mine[1]]) == 1


def test_hierarchical_draws_resample_seeds_then_units_within_them():
    drawn = statistics.seeded_draws(3, 5)
    assert drawn.shape == (statistics.DRAWS, 15)
    seeds = drawn.reshape(-1, 3, 5) // 5
    assert (seeds == seeds[:, :, :1]).all(), "the units of one drawn seed are of several seeds"
    for counts in (np.bincount(seeds[:, :, 0].ravel()), np.bincount(drawn.ravel() % 5)):
        assert counts / counts.sum() == pytest.approx(1 / len(counts), abs=0.02)
    assert len({tuple(row) for row in drawn % 5}) > 1900, "the same units in every draw"


def test_hierarchical_interval_holds_the_spread_between_seeds():
    """Seeds that differ by far more than their units do: the standard error of the mean is that of
    the seeds' means, sd / sqrt(N) (as the bootstrap has it, without Bessel's correction)."""
    generator = np.random.default_rng(4)
    means = generator.normal(0, 1, 30)
    values = (means[:, None] + generator.normal(0, 0.01, (30, 8))).ravel()
    _, low, high = statistics.interval(values, statistics.seeded_draws(30, 8))
    assert (high - low) / 2 == pytest.approx(1.96 * means.std() / 30**0.5, rel=0.05)
    _, low, high = statistics.interval(values, statistics.draws(240))
    assert (high - low) / 2 < 0.5 * 1.96 * means.std() / 30**0.5, "units are not independent here"


def test_bootstrap_p_agrees_with_the_normal_one():
    x = np.random.default_rng(5).normal(0.2, 1, 100)
    z = abs(x.mean()) / (x.std() / 10)
    normal = np.mean(np.abs(np.random.default_rng(6).normal(size=200_000)) >= z)
    drawn = statistics.draws(100, count=20_000)
    assert statistics.bootstrap_p(lambda mean: mean, [x], drawn) == pytest.approx(normal, abs=0.02)
    assert statistics.bootstrap_p(lambda mean: mean, [np.zeros(5)], statistics.draws(5)) == 1
    assert statistics.bootstrap_p(lambda mean: mean, [np.ones(5)], statistics.draws(5)) < 0.002
