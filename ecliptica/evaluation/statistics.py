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
    return dict(zip(("value", "low", "high"), (None if np.isnan(v) else v for v in interval(values_P, drawn))))


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


def ratio(above_P, below_P, drawn):
    """mean(above) / mean(below) with its percentile interval, both resampled together. None where the denominator's mean is 0."""
    above_P, below_P = np.asarray(above_P, dtype=np.float64), np.asarray(below_P, dtype=np.float64)
    below = below_P[drawn].mean(1)
    if not below_P.mean() or not below.any():
        return {"value": None, "low": None, "high": None}
    found = above_P[drawn].mean(1)[below != 0] / below[below != 0]
    low, high = np.quantile(found, [0.025, 0.975])
    return {"value": float(above_P.mean() / below_P.mean()), "low": float(low), "high": float(high)}
