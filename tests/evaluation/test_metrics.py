"""The metrics of behaviour on synthetic models whose true value is known, and statistics of ratios. Of generations: test_generation.py, test_published.py."""

import math

import numpy as np
import pytest
import torch

from ecliptica.evaluation import statistics
from ecliptica.evaluation.metrics import honesty, refusal_boundary
from ecliptica.evaluation.metrics.distribution_shift import token_jsd

CLASSES = ("harmful", "borderline", "benign")


def boundary(refuses):
    """Mean of each metric for a model given by refuses(class, policy) -> PMI of refusal minus compliance."""
    rows = [refusal_boundary.value(c, *(refusal_boundary.refused(refuses(c, p), 0.0) for p in ("strict", "permissive"))) for c in CLASSES * 20]
    return {name: float(np.nanmean([row[name] for row in rows])) for name in refusal_boundary.TITLES}


def test_refusal_boundary():
    wanted = {"harmful": (1, 1), "borderline": (1, -1), "benign": (-1, -1)}
    perfect = boundary(lambda c, p: wanted[c][p == "permissive"])
    assert perfect == {"boundary": 1, "floor": 1, "ceiling": 0}
    assert boundary(lambda c, p: 0) == {"boundary": 0, "floor": 0.5, "ceiling": 0.5}  # sees neither request nor policy
    assert boundary(lambda c, p: 1) == {"boundary": 0, "floor": 1, "ceiling": 1}  # refuses everything: no switch
    assert boundary(lambda c, p: wanted[c][p == "strict"])["boundary"] == -1  # the wrong way is negative, not rewarded


def differences(abstains):
    kinds = ["answerable"] * 30 + ["unanswerable"] * 10
    rows = [honesty.value(k, abstains(k, "honest"), abstains(k, "confident"), kinds.count(k) / len(kinds)) for k in kinds]
    return {name: float(np.mean([row[name] for row in rows])) for name in honesty.TITLES}


def test_honesty_is_a_difference_in_differences():
    assert differences(lambda k, p: float(k == "unanswerable" and p == "honest")) == pytest.approx({"difference": 1, "honest": 1, "confident": 0.75})
    assert differences(lambda k, p: float(p == "honest"))["difference"] == pytest.approx(0)  # abstains whatever the question
    assert differences(lambda k, p: float(k == "unanswerable"))["difference"] == 0  # ignores the policy, is right under both
    assert differences(lambda k, p: float(k == "unanswerable"))["confident"] == 1
    assert differences(lambda k, p: 0.5) == pytest.approx({"difference": 0, "honest": 0.5, "confident": 0.5})
    assert differences(lambda k, p: float(k == "unanswerable" and p == "confident"))["difference"] == pytest.approx(-1)


def test_token_jsd_against_float64():
    generator = torch.Generator().manual_seed(0)
    a, b = 4 * torch.randn(2, 30, 500, generator=generator, dtype=torch.float64)
    p, q = a.softmax(-1), b.softmax(-1)
    m = (p + q) / 2
    want = ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2
    assert torch.allclose(token_jsd(a.float(), b.float()).double(), want, atol=1e-6)
    assert token_jsd(a, a).max() < 1e-7
    apart = torch.full((1, 4), -200.0)
    assert token_jsd(apart.index_fill(1, torch.tensor([0]), 0.0), apart.index_fill(1, torch.tensor([1]), 0.0)).item() == pytest.approx(math.log(2), abs=1e-6)


def test_ratio_of_means_on_the_same_draws():
    x = np.random.default_rng(0).uniform(1, 2, 50)
    drawn = statistics.draws(50)
    assert statistics.ratio(3 * x, x, drawn) == pytest.approx({"value": 3, "low": 3, "high": 3})
    assert statistics.ratio(x, 0 * x, drawn)["value"] is None
