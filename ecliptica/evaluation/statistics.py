"""Intervals and tests that respect the design: prompts are resampled, all questions of a prompt
together, the same draws for every system; of several seeds, seeds first and prompts within them.

P units (prompts), M columns, C draws or sign patterns, N seeds.
"""

from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

DRAWS = 2000
PATTERNS = 10_000
LEVEL = 0.95
POWER = 0.8
NONE = {"value": None, "low": None, "high": None}


def draws(units: int, seed: int = 0, count: int = DRAWS) -> np.ndarray:
    """Bootstrap draws, int [count, units]: the same for every system and metric compared."""
    return np.random.default_rng(seed).integers(0, units, size=(count, units))


def seeded_draws(seeds: int, units: int, seed: int = 0, count: int = DRAWS) -> np.ndarray:
    """Hierarchical draws over seeds * units values, seed after seed: in each draw as many seeds,
    with replacement, and of each of these as many units, with replacement. [count, seeds*units].
    """
    generator = np.random.default_rng(seed)
    seed_CN = generator.integers(0, seeds, size=(count, seeds))
    unit_CNP = generator.integers(0, units, size=(count, seeds, units))
    return (seed_CN[:, :, None] * units + unit_CNP).reshape(count, seeds * units)


def interval(
    values_P: Sequence[float], drawn: np.ndarray, level: float = LEVEL
) -> tuple[float, float, float]:
    """(mean over prompts, low, high): percentile bootstrap of the mean of per-prompt values.

    A NaN is a prompt that has no value; a draw of nothing but such prompts is left out. Three NaNs
    where no prompt has a value.
    """
    values_P = np.asarray(values_P, dtype=np.float64)
    there_P = ~np.isnan(values_P)
    if not there_P.any():
        return (float("nan"),) * 3
    count_C = there_P[drawn].sum(1)
    sum_C = np.where(there_P, values_P, 0.0)[drawn].sum(1)
    usable_C = count_C > 0
    means = sum_C[usable_C] / count_C[usable_C]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(values_P[there_P].mean()), float(low), float(high)


def summary(values_P: Sequence[float], drawn: np.ndarray) -> dict[str, float | None]:
    """`interval` by name: None where there is no value at all."""
    value, low, high = interval(values_P, drawn)
    if np.isnan(value):
        return dict(NONE)
    return {"value": value, "low": low, "high": high}


def sign_flip(differences_P: Sequence[float], seed: int = 0, count: int = PATTERNS) -> float:
    """Two-sided p of a zero mean paired difference: the share of random sign patterns that reach
    it (the observed one counted in)."""
    d = np.asarray(differences_P, dtype=np.float64)
    d = d[~np.isnan(d)]
    if not len(d) or not d.any():
        return 1.0
    flips = np.random.default_rng(seed).integers(0, 2, size=(count, len(d)), dtype=np.int8)
    signs = flips * 2 - 1
    reached = np.abs(signs @ d) >= abs(d.sum()) * (1 - 1e-12)
    return float((reached.sum() + 1) / (count + 1))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: family-wise error over all of `p`, in its order."""
    adjusted = [0.0] * len(p)
    worst = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        worst = max(worst, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = worst
    return adjusted


# Numbers that are made of several means


def combined(
    how: Callable, columns_MP: Sequence[Sequence[float]], drawn: np.ndarray
) -> dict[str, float | None]:
    """how(mean of column 1, mean of column 2, ...), such as a ratio of means, with its 95 %
    percentile interval: the columns are resampled together.

    Draws where it is not finite are left out; None where the value itself is not.
    """
    columns_MP = np.asarray(columns_MP, dtype=np.float64)
    observed = np.arange(columns_MP.shape[1])[None]
    with np.errstate(all="ignore"):
        value = how(*_means(columns_MP, observed))[0]
        values_C = how(*_means(columns_MP, drawn))
    finite = values_C[np.isfinite(values_C)]
    if not np.isfinite(value) or not len(finite):
        return dict(NONE)
    low, high = np.quantile(finite, [0.025, 0.975])
    return {"value": float(value), "low": float(low), "high": float(high)}


def change(
    how: Callable,
    mine_MP: Sequence[Sequence[float]],
    control_MP: Sequence[Sequence[float]],
    drawn: np.ndarray,
) -> dict[str, float | None]:
    """how(means of mine) - how(means of the control's), on the same draws."""
    count = len(mine_MP)

    def difference(*means):
        return how(*means[:count]) - how(*means[count:])

    return combined(difference, [*mine_MP, *control_MP], drawn)


def ratio(above_P: Sequence[float], below_P: Sequence[float], drawn: np.ndarray) -> dict:
    """mean(above) / mean(below) with its interval; None where the denominator's mean is 0."""
    return combined(np.divide, [above_P, below_P], drawn)


def swap_test(
    how: Callable,
    mine_MP: Sequence[Sequence[float]],
    control_MP: Sequence[Sequence[float]],
    seed: int = 0,
    count: int = PATTERNS,
) -> float:
    """Two-sided p of how(means) being the same for both systems: they are swapped at random within
    units. For one column it is `sign_flip`.

    A pattern that leaves `how` undefined counts as having reached the difference; 1 where the
    difference itself is undefined.
    """
    mine_MP = np.asarray(mine_MP, dtype=np.float64)
    control_MP = np.asarray(control_MP, dtype=np.float64)
    generator = np.random.default_rng(seed)
    swap_CP = generator.integers(0, 2, size=(count, mine_MP.shape[-1]), dtype=np.int8)
    swap_CP[0] = 0  # the observed one

    def side(which: int):
        """how of the means of what stands on one side in every pattern."""
        columns = zip(mine_MP, control_MP)
        return how(*(_mean_of(np.where(swap_CP == which, mine, own)) for mine, own in columns))

    with np.errstate(all="ignore"):
        difference_C = np.abs(side(0) - side(1))
    observed = difference_C[0]
    if not np.isfinite(observed) or not observed:
        return 1.0
    reached = ~(difference_C[1:] < observed * (1 - 1e-12))
    return float((1 + reached.sum()) / count)


def bootstrap_p(how: Callable, columns_MP: Sequence[Sequence[float]], drawn: np.ndarray) -> float:
    """Two-sided p of how(means) being 0, from the draws that make its interval: twice the smaller
    share of draws on either side of 0, those at 0 on both. 1 where it is undefined."""
    with np.errstate(all="ignore"):
        values_C = how(*_means(np.asarray(columns_MP, dtype=np.float64), drawn))
    values_C = values_C[np.isfinite(values_C)]
    if not len(values_C):
        return 1.0
    smaller = min((values_C <= 0).sum(), (values_C >= 0).sum())
    return float(min(1.0, 2 * (smaller + 1) / (len(values_C) + 1)))


# What could have been seen


def detectable(
    how: Callable, columns_MP: Sequence[Sequence[float]], drawn: np.ndarray, units: int
) -> float | None:
    """The smallest true value of how(means) that a two-sided test at 5 % tells from 0 with a power
    of 80 %: (t_.975 + t_.8) standard errors, t of units - 1 degrees of freedom.

    The standard error is that of the draws, times sqrt(n / (n - 1)): a bootstrap's is of the
    observed spread. None for fewer than two units, or where the draws leave nothing to compare.
    """
    with np.errstate(all="ignore"):
        values_C = how(*_means(np.asarray(columns_MP, dtype=np.float64), drawn))
    values_C = values_C[np.isfinite(values_C)]
    if units < 2 or not len(values_C):
        return None
    error = float(values_C.std()) * (units / (units - 1)) ** 0.5
    quantiles = t_quantile((1 + LEVEL) / 2, units - 1) + t_quantile(POWER, units - 1)
    return quantiles * error


def t_quantile(probability: float, degrees: int) -> float:
    """Of Student's t: exact for 1 and 2 degrees of freedom, else the expansion about the normal
    quantile in powers of 1 / degrees (within 0.5 % for the probabilities used here)."""
    if degrees == 1:
        return float(np.tan(np.pi * (probability - 0.5)))
    if degrees == 2:
        alpha = 4 * probability * (1 - probability)
        return float(2 * (probability - 0.5) * np.sqrt(2 / alpha))
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))


def _means(columns_MP: np.ndarray, drawn: np.ndarray) -> list[np.ndarray]:
    return [_mean_of(column_P[drawn]) for column_P in columns_MP]


def _mean_of(values_CP: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is there; NaN where nothing is."""
    there_CP = ~np.isnan(values_CP)
    return np.where(there_CP, values_CP, 0.0).sum(-1) / there_CP.sum(-1)
