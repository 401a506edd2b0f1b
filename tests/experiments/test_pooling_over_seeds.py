"""Pooling over seeds against float64 code of its own: plain loops over the same draws."""

import math
import random
from dataclasses import replace

import pytest

from ecliptica.evaluation import pooling, statistics
from ecliptica.evaluation.measured import Column, Interval, Made
from ecliptica.evaluation.results import Results

UNITS, SEEDS = 7, 3


def a_result(base, trained, nats, tokens):
    """Results of one seed with a plain metric `a` and, in `parts`, what a KL is made of."""
    none = {"a": Interval(None, None, None), "kl": Interval(None, None, None)}
    bare = Results(
        suite="made",
        reportable=True,
        units=len(base),
        unit="prompts",
        headline="a",
        metrics={"a": Column("a", None), "kl": Column("kl", None)},
        systems={"prompting-only": none, "trained": none},
        difference={},
        per_unit={"prompting-only": {"a": base}, "trained": {"a": trained}},
        bootstrap={},
        config={},
        versions={},
        parts={
            "prompting-only": {"kl_nats": [0.0] * len(base), "kl_tokens": tokens},
            "trained": {"kl_nats": nats, "kl_tokens": tokens},
        },
        derived={"kl": Made(("kl_nats", "kl_tokens"), "ratio")},
    )
    whole = Results.pooled([bare])
    return replace(bare, systems=whole.systems, difference=whole.difference)


@pytest.fixture(scope="module")
def seeds():
    draw = random.Random(3)
    base = [draw.random() for _ in range(UNITS)]
    tokens = [float(draw.randrange(20, 60)) for _ in range(UNITS)]
    made = []
    for shift in (0.1, 0.3, 0.2):
        trained = [value + shift + 0.1 * draw.gauss(0, 1) for value in base]
        nats = [draw.uniform(1, 4) for _ in range(UNITS)]
        made.append(a_result(base, trained, nats, tokens))
    return made


def in_draws(number):
    """[number(list of (seed, unit))] of every hierarchical draw, sorted."""
    drawn = statistics.seeded_draws(SEEDS, UNITS)
    return sorted(number([divmod(int(at), UNITS) for at in row]) for row in drawn)


def quantile(values, share):
    """With linear interpolation, as numpy has it."""
    at = share * (len(values) - 1)
    low = math.floor(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (at - low) * (values[high] - values[low])


def assert_interval(cell, value, values):
    assert cell.value == pytest.approx(value, abs=1e-12)
    assert cell.low == pytest.approx(quantile(values, 0.025), abs=1e-12)
    assert cell.high == pytest.approx(quantile(values, 0.975), abs=1e-12)


def everywhere():
    return [(seed, unit) for seed in range(SEEDS) for unit in range(UNITS)]


def test_values_changes_and_gain_per_nat_resample_seeds_then_units(seeds):
    def mean(label, places):
        return math.fsum(seeds[s].per_unit[label]["a"][u] for s, u in places) / len(places)

    def part(name, places):
        return math.fsum(seeds[s].parts["trained"][name][u] for s, u in places)

    def value(places):
        return mean("trained", places)

    def change(places):
        return mean("trained", places) - mean("prompting-only", places)

    def spent(places):
        return part("kl_nats", places) / part("kl_tokens", places)

    def gain(places):
        return change(places) / spent(places)

    own = pooling.table({"arm": seeds}, ["a"])["arm"]["a"]
    assert_interval(own.value, value(everywhere()), in_draws(value))
    assert_interval(own.change, change(everywhere()), in_draws(change))
    assert_interval(own.gain_per_nat, gain(everywhere()), in_draws(gain))
    assert_interval(pooling.kl(seeds), spent(everywhere()), in_draws(spent))
    each = [mean("trained", [(s, u) for u in range(UNITS)]) for s in range(SEEDS)]
    assert own.seeds == pytest.approx(each, abs=1e-12)


def test_holm_is_over_all_arms_and_metrics(seeds):
    weak = [
        a_result(
            one.per_unit["prompting-only"]["a"],
            [v + 0.02 * (-1) ** n for n, v in enumerate(one.per_unit["prompting-only"]["a"])],
            one.parts["trained"]["kl_nats"],
            one.parts["trained"]["kl_tokens"],
        )
        for one in seeds
    ]
    table = pooling.table({"strong": seeds, "weak": weak}, ["a", "kl"])
    cells = [by_name[name].change for by_name in table.values() for name in by_name]
    assert len(cells) == 4
    ordered = sorted(cells, key=lambda cell: cell.p)
    worst = 0.0
    for rank, cell in enumerate(ordered):
        worst = max(worst, min(1.0, (4 - rank) * cell.p))
        assert cell.p_holm == pytest.approx(worst, abs=1e-12)
    assert table["strong"]["a"].change.p < table["weak"]["a"].change.p


def test_arm_against_arm_is_paired_by_seed_and_unit(seeds):
    # An arm that is the other plus a constant: no spread at all.
    plus = [
        replace(
            one,
            per_unit=one.per_unit
            | {"trained": {"a": [value + 0.25 for value in one.per_unit["trained"]["a"]]}},
        )
        for one in seeds
    ]
    change = pooling.against(plus, seeds, "a")
    assert change.value == pytest.approx(0.25, abs=1e-12)
    assert change.low == pytest.approx(0.25, abs=1e-12)
    assert change.high == pytest.approx(0.25, abs=1e-12)
    assert change.p == pytest.approx(2 / (statistics.DRAWS + 1))
    pair = pooling.adjusted({"x": change, "y": replace(change, p=0.9)})
    assert pair["x"].p_holm == pytest.approx(2 * change.p) and pair["y"].p_holm == 0.9


def test_a_result_without_kl_has_no_gain_per_nat(seeds):
    bare = [replace(one, parts={"prompting-only": {}, "trained": {}}, derived={}) for one in seeds]
    bare = [replace(one, metrics={"a": one.metrics["a"]}) for one in bare]
    assert pooling.table({"arm": bare}, ["a"])["arm"]["a"].gain_per_nat.value is None
    assert pooling.kl(bare).value is None


def test_the_smallest_difference_is_found_with_the_power_that_it_says(seeds):
    """Simulated: a true difference of that size, tested at 5 %, is found in four of five tables."""
    of_units, of_seeds, units, count = 0.4, 0.1, 20, 3
    true = pooling.smallest_difference(of_units, units, of_seeds, count)
    error = math.sqrt(of_units**2 / units + of_seeds**2 / count)
    assert true == pytest.approx((1.959964 + 0.841621) * error, rel=1e-6)
    draw = random.Random(0)
    found = 0
    for _ in range(4000):
        seen = true + draw.gauss(0, of_units) / units**0.5 + draw.gauss(0, of_seeds) / count**0.5
        found += abs(seen) > 1.959964 * error
    assert found / 4000 == pytest.approx(0.8, abs=0.03)


def test_spreads_are_those_of_unit_means_and_of_seed_means(seeds):
    differences = [
        [t - b for t, b in zip(one.per_unit["trained"]["a"], one.per_unit["prompting-only"]["a"])]
        for one in seeds
    ]
    unit_means = [math.fsum(column) / SEEDS for column in zip(*differences)]
    seed_means = [math.fsum(row) / UNITS for row in differences]

    def deviation(values):
        mean = math.fsum(values) / len(values)
        return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))

    want = (deviation(unit_means), deviation(seed_means))
    assert pooling.spreads(seeds, "a") == pytest.approx(want, abs=1e-12)
    assert pooling.spreads(seeds[:1], "a")[1] == 0.0
