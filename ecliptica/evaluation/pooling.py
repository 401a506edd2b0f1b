"""A table of several trainings: every seed of an arm pooled, Holm over the whole table, what a gain
cost in KL, one arm against another, and the smallest difference that could have been seen.

Results of an arm are those of its seeds, each with the control first and the trained system second.
Values are means over seeds and units; intervals resample seeds first and units within each of them
(statistics.seeded_draws).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from ecliptica.evaluation import statistics
from ecliptica.evaluation.measured import Change, Interval
from ecliptica.evaluation.metrics import HOW
from ecliptica.evaluation.results import Results

KL = ("kl_nats", "kl_tokens")  # columns of `parts`: nats and tokens of a unit's responses
POWER = 0.8
NONE = Interval(None, None, None)
Arms = Mapping[str, Sequence[Results]]


@dataclass(frozen=True)
class Pooled:
    """One metric of one arm over its seeds."""

    value: Interval
    change: Change | None  # to the control; p_holm over the table. None: it is the control
    gain_per_nat: Interval  # change over KL in nats a token; no value where no KL is known
    seeds: tuple[float | None, ...]  # every seed's own value


def trained(results: Results) -> str:
    """The label of the trained system."""
    return list(results.systems)[1]


def table(arms: Arms, metrics: Sequence[str]) -> dict[str, dict[str, Pooled]]:
    """{arm: {metric: pooled}}; p is Holm-adjusted over all arms and metrics of it."""
    whole = {arm: Results.pooled(seeds) for arm, seeds in arms.items()}
    places = [(arm, name) for arm in whole for name in metrics if name in whole[arm].metrics]
    raw = [whole[arm].difference[trained(whole[arm])][name].p for arm, name in places]
    adjusted = dict(zip(places, statistics.holm(raw), strict=True))
    pooled = {}
    for arm, name in places:
        results = whole[arm]
        label = trained(results)
        change = replace(results.difference[label][name], p_holm=adjusted[arm, name])
        pooled.setdefault(arm, {})[name] = Pooled(
            value=results.systems[label][name],
            change=change,
            gain_per_nat=gain_per_nat(arms[arm], name),
            seeds=tuple(one.systems[label][name].value for one in arms[arm]),
        )
    return pooled


# Columns, seed after seed


def draws_of(seeds: Sequence[Results]) -> np.ndarray:
    """The draws of an arm: seeds, then units within each; of one seed its units."""
    units = seeds[0].units
    if len(seeds) == 1:
        return statistics.draws(units)
    return statistics.seeded_draws(len(seeds), units)


def made_of(results: Results, name: str):
    """(how, names of columns) of a metric: of a plain one its own mean."""
    if name in results.derived:
        made = results.derived[name]
        return HOW[made.how], made.of
    return (lambda mean: mean), (name,)


def column(seeds: Sequence[Results], label: str | int, name: str) -> np.ndarray:
    """The values of all units of the first seed, then of the second, ... None is NaN. label: of a
    system, or its number in the table."""
    values = []
    for results in seeds:
        own = list(results.per_unit)[label] if isinstance(label, int) else label
        by_name = results.per_unit[own]
        values += by_name[name] if name in by_name else results.parts[own][name]
    return np.array(values, dtype=np.float64)


def columns(seeds: Sequence[Results], number: int, name: str) -> list[np.ndarray]:
    return [column(seeds, number, of) for of in made_of(seeds[0], name)[1]]


# KL


def has_kl(seeds: Sequence[Results]) -> bool:
    """Whether every seed says how far it went from the control."""
    return all(set(KL) <= results.parts.get(trained(results), {}).keys() for results in seeds)


def kl(seeds: Sequence[Results]) -> Interval:
    """Exact KL[trained || control], nats a token of the reference responses: all nats over all
    tokens."""
    if not has_kl(seeds):
        return NONE
    pair = [column(seeds, 1, name) for name in KL]
    return Interval(**statistics.combined(np.divide, pair, draws_of(seeds)))


def gain_per_nat(seeds: Sequence[Results], name: str) -> Interval:
    """(value of the trained - value of the control) / KL in nats a token, anew in each draw."""
    if not has_kl(seeds):
        return NONE
    how = made_of(seeds[0], name)[0]
    mine, own = columns(seeds, 1, name), columns(seeds, 0, name)
    count = len(mine)

    def ratio(*means):
        gain = how(*means[:count]) - how(*means[count : 2 * count])
        return gain / (means[-2] / means[-1])

    spent = [column(seeds, 1, part) for part in KL]
    return Interval(**statistics.combined(ratio, [*mine, *own, *spent], draws_of(seeds)))


# One arm against another


def against(first: Sequence[Results], second: Sequence[Results], name: str) -> Change:
    """The first arm minus the second, paired by seed and unit; their seeds are in the same order.
    p_holm is p: whoever makes a table adjusts it (`adjusted`)."""
    how = made_of(first[0], name)[0]
    mine, theirs = columns(first, 1, name), columns(second, 1, name)
    drawn, count = draws_of(first), len(mine)

    def difference(*means):
        return how(*means[:count]) - how(*means[count:])

    numbers = statistics.combined(difference, [*mine, *theirs], drawn)
    if len(first) > 1:
        p = statistics.bootstrap_p(difference, [*mine, *theirs], drawn)
    elif name in first[0].derived:
        p = statistics.swap_test(how, mine, theirs)
    else:
        p = statistics.sign_flip(mine[0] - theirs[0])
    return Change(**numbers, p=p, p_holm=p)


def adjusted(changes: Mapping[str, Change]) -> dict[str, Change]:
    """The same changes with p Holm-adjusted over all of them."""
    p = statistics.holm([change.p for change in changes.values()])
    pairs = zip(changes.items(), p, strict=True)
    return {name: replace(change, p_holm=value) for (name, change), value in pairs}


# What could be seen


def smallest_difference(unit_spread: float, units: int, seed_spread: float, seeds: int) -> float:
    """The smallest true difference that is found with a power of 80 % at 5 %, two-sided:
    (z_.975 + z_.8) sqrt(unit_spread^2 / units + seed_spread^2 / seeds).

    The spreads are standard deviations of a unit's difference and of a seed's mean difference;
    units are the same in every seed, so more seeds do not make their part smaller.
    """
    normal = NormalDist()
    quantiles = normal.inv_cdf((1 + statistics.LEVEL) / 2) + normal.inv_cdf(POWER)
    return quantiles * math.sqrt(unit_spread**2 / units + seed_spread**2 / seeds)


def spreads(seeds: Sequence[Results], name: str) -> tuple[float, float]:
    """(of units, of seeds): standard deviations of the difference to the control, of the unit's
    mean over seeds and of the seed's mean over units. 0 of a single one."""
    mine, own = columns(seeds, 1, name), columns(seeds, 0, name)
    differences_NP = (mine[0] - own[0]).reshape(len(seeds), -1)
    with np.errstate(all="ignore"):
        unit_P = np.nanmean(differences_NP, axis=0)
        seed_N = np.nanmean(differences_NP, axis=1)
    unit_P, seed_N = unit_P[~np.isnan(unit_P)], seed_N[~np.isnan(seed_N)]
    of_units = float(unit_P.std(ddof=1)) if len(unit_P) > 1 else 0.0
    of_seeds = float(seed_N.std(ddof=1)) if len(seed_N) > 1 else 0.0
    return of_units, of_seeds
