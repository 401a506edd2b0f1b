"""Intervals that respect the design: prompts are resampled, all cells of a prompt together, the same draws for every system."""

import numpy as np

DRAWS = 2000


def draws(prompts, seed=0, count=DRAWS):
    """Bootstrap draws, int [count, prompts]: the same for every system and metric compared."""
    return np.random.default_rng(seed).integers(0, prompts, size=(count, prompts))


def interval(values_P, drawn, level=0.95):
    """(mean over prompts, low, high): percentile bootstrap of the mean of per-prompt values, NaN entries left out."""
    values_P = np.asarray(values_P, dtype=np.float64)
    means = np.nanmean(values_P[drawn], axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(np.nanmean(values_P)), float(low), float(high)


def summary(values_P, drawn):
    value, low, high = interval(values_P, drawn)
    return {"value": value, "low": low, "high": high}
