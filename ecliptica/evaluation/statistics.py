"""Intervals and tests that respect the design: prompts are resampled, all cells of a prompt together, the same draws for every system."""

import numpy as np

DRAWS = 2000


def draws(units, seed=0, count=DRAWS):
    """Bootstrap draws, int [count, units]: the same for every system and metric compared."""
    return np.random.default_rng(seed).integers(0, units, size=(count, units))


def interval(values_P, drawn, level=0.95):
    """(mean over prompts, low, high): percentile bootstrap of the mean of per-prompt values. A NaN is a prompt that has no value; a
    draw of nothing but such prompts is left out. Three NaNs where no prompt has a value."""
    values_P = np.asarray(values_P, dtype=np.float64)
    there_P = ~np.isnan(values_P)
    if not there_P.any():
        return (float("nan"),) * 3
    count = there_P[drawn].sum(1)
    sums = np.where(there_P, values_P, 0.0)[drawn].sum(1)
    means = sums[count > 0] / count[count > 0]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(values_P[there_P].mean()), float(low), float(high)


def summary(values_P, drawn):
    """interval as JSON: None where there is no value at all."""
    return dict(
        zip(
            ("value", "low", "high"),
            (None if np.isnan(v) else v for v in interval(values_P, drawn)),
        )
    )


def sign_flip(differences_P, seed=0, count=10000):
    """Two-sided p of a zero mean paired difference: the share of random sign patterns that reach it (the observed one counted in)."""
    d = np.asarray(differences_P, dtype=np.float64)
    d = d[~np.isnan(d)]
    if not len(d) or not d.any():
        return 1.0
    signs = np.random.default_rng(seed).integers(0, 2, size=(count, len(d)), dtype=np.int8) * 2 - 1
    reached = np.abs(signs @ d) >= abs(d.sum()) * (1 - 1e-12)
    return float((reached.sum() + 1) / (count + 1))


def holm(p):
    """Holm's step-down adjustment: family-wise error over all of `p` (a list), in its order."""
    adjusted, worst = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        worst = max(worst, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = worst
    return adjusted


def combined(how, columns_MP, drawn):
    """how(mean of column 1, mean of column 2, ...), such as a ratio of means, with its 95 % percentile interval: the columns are resampled together.
    Draws where it is not finite are left out; None where the value itself is not."""
    columns_MP = np.asarray(columns_MP, dtype=np.float64)
    with np.errstate(all="ignore"):
        value, found = (
            how(*_means(columns_MP, index))
            for index in (np.arange(columns_MP.shape[1])[None], drawn)
        )
    if not np.isfinite(value[0]) or not np.isfinite(found).any():
        return {"value": None, "low": None, "high": None}
    low, high = np.quantile(found[np.isfinite(found)], [0.025, 0.975])
    return {"value": float(value[0]), "low": float(low), "high": float(high)}


def ratio(above_P, below_P, drawn):
    """mean(above) / mean(below) with its interval; None where the denominator's mean is 0."""
    return combined(np.divide, [above_P, below_P], drawn)


def swap_test(how, mine_MP, control_MP, seed=0, count=10000):
    """Two-sided p of how(means) being the same for both systems: they are swapped at random within units. For one column it is `sign_flip`.
    A pattern that leaves `how` undefined counts as having reached the difference; 1 where the difference itself is undefined."""
    pair = np.asarray([mine_MP, control_MP], dtype=np.float64)
    swap_CP = np.random.default_rng(seed).integers(
        0, 2, size=(count, pair.shape[-1]), dtype=np.int8
    )
    swap_CP[0] = 0  # the observed one
    with np.errstate(all="ignore"):
        sides = [
            how(
                *(
                    _mean_of(np.where(swap_CP == side, mine, control))
                    for mine, control in zip(*pair)
                )
            )
            for side in (0, 1)
        ]
        d = np.abs(sides[0] - sides[1])
    if not np.isfinite(d[0]) or not d[0]:
        return 1.0
    return float((1 + (~(d[1:] < d[0] * (1 - 1e-12))).sum()) / count)


def _means(columns_MP, drawn):
    return [_mean_of(column_P[drawn]) for column_P in columns_MP]


def _mean_of(values_CP):
    """Mean over the last axis of what is there; NaN where nothing is."""
    there = ~np.isnan(values_CP)
    return np.where(there, values_CP, 0.0).sum(-1) / there.sum(-1)
