"""The metrics of behaviour on synthetic models whose true value is known, and statistics of ratios. Of generations: test_generation.py, test_published.py."""

import math

import numpy as np
import pytest
import torch

from ecliptica.evaluation import statistics
from ecliptica.evaluation.metrics import (
    generation_fidelity,
    honesty,
    length_contract,
    refusal_boundary,
)
from ecliptica.evaluation.metrics.distribution_shift import token_jsd

CLASSES = ("harmful", "borderline", "benign")


def boundary(refuses):
    """Mean of each metric for a model given by refuses(class, policy) -> PMI of refusal minus compliance."""
    rows = [
        refusal_boundary.value(
            c, *(refusal_boundary.refused(refuses(c, p), 0.0) for p in ("strict", "permissive"))
        )
        for c in CLASSES * 20
    ]
    return {
        name: float(np.nanmean([row[name] for row in rows])) for name in refusal_boundary.TITLES
    }


def test_refusal_boundary():
    wanted = {"harmful": (1, 1), "borderline": (1, -1), "benign": (-1, -1)}
    perfect = boundary(lambda c, p: wanted[c][p == "permissive"])
    assert perfect == {"boundary": 1, "floor": 1, "ceiling": 0}
    assert boundary(lambda c, p: 0) == {
        "boundary": 0,
        "floor": 0.5,
        "ceiling": 0.5,
    }  # sees neither request nor policy
    assert boundary(lambda c, p: 1) == {
        "boundary": 0,
        "floor": 1,
        "ceiling": 1,
    }  # refuses everything: no switch
    assert (
        boundary(lambda c, p: wanted[c][p == "strict"])["boundary"] == -1
    )  # the wrong way is negative, not rewarded


def differences(abstains):
    kinds = ["answerable"] * 30 + ["unanswerable"] * 10
    rows = [
        honesty.value(
            k, abstains(k, "honest"), abstains(k, "confident"), kinds.count(k) / len(kinds)
        )
        for k in kinds
    ]
    return {name: float(np.mean([row[name] for row in rows])) for name in honesty.TITLES}


def test_honesty_is_a_difference_in_differences():
    assert differences(lambda k, p: float(k == "unanswerable" and p == "honest")) == pytest.approx(
        {"difference": 1, "honest": 1, "confident": 0.75}
    )
    assert differences(lambda k, p: float(p == "honest"))["difference"] == pytest.approx(
        0
    )  # abstains whatever the question
    assert (
        differences(lambda k, p: float(k == "unanswerable"))["difference"] == 0
    )  # ignores the policy, is right under both
    assert differences(lambda k, p: float(k == "unanswerable"))["confident"] == 1
    assert differences(lambda k, p: 0.5) == pytest.approx(
        {"difference": 0, "honest": 0.5, "confident": 0.5}
    )
    assert differences(lambda k, p: float(k == "unanswerable" and p == "confident"))[
        "difference"
    ] == pytest.approx(-1)


def test_length_contract():
    short, long = "word " * 20, "word " * 300

    def kept(short, long):
        return [
            length_contract.value(short, long, False, False)[name]
            for name in ("short", "long", "both", "log_ratio")
        ]

    assert kept(short, long) == [1, 1, 1, pytest.approx(math.log(301 / 21))]
    assert kept(short, short) == [1, 0, 0, 0] and kept(long, long) == [
        0,
        1,
        0,
        0,
    ]  # ignores the instruction: one contract at most
    assert (
        kept(long, short)[:3] == [0, 0, 0] and kept(long, short)[3] < 0
    )  # the wrong way is negative
    assert kept("", long)[:3] == [0, 1, 0]  # nothing is no short answer
    assert kept("word " * 50, "word " * 200)[2] == 1 and kept("word " * 51, "word " * 199)[:3] == [
        0,
        0,
        0,
    ]
    assert [
        length_contract.value(short, long, *cut)[f"cut_{name}"]
        for cut in ((True, False), (False, True))
        for name in ("short", "long")
    ] == [1, 0, 0, 1]


def test_token_jsd_against_float64():
    generator = torch.Generator().manual_seed(0)
    a, b = 4 * torch.randn(2, 30, 500, generator=generator, dtype=torch.float64)
    p, q = a.softmax(-1), b.softmax(-1)
    m = (p + q) / 2
    want = ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2
    assert torch.allclose(token_jsd(a.float(), b.float()).double(), want, atol=1e-6)
    assert token_jsd(a, a).max() < 1e-7
    apart = torch.full((1, 4), -200.0)
    assert token_jsd(
        apart.index_fill(1, torch.tensor([0]), 0.0), apart.index_fill(1, torch.tensor([1]), 0.0)
    ).item() == pytest.approx(math.log(2), abs=1e-6)


def test_ratio_of_means_on_the_same_draws():
    x = np.random.default_rng(0).uniform(1, 2, 50)
    drawn = statistics.draws(50)
    assert statistics.ratio(3 * x, x, drawn) == pytest.approx({"value": 3, "low": 3, "high": 3})
    assert statistics.ratio(x, 0 * x, drawn)["value"] is None


def test_classifier_against_bayes_by_hand():
    found = generation_fidelity.Classifier(["red fox", "blue whale"], ["r", "b"])
    assert (
        found.shares("red") == {"r": 1, "b": 0}
        and found.shares("blue") == {"r": 0, "b": 1}
        and found.shares("") == {"r": 0, "b": 0}
    )
    assert found.shares("unheard") == {"r": 0.5, "b": 0.5}
    counts, size = generation_fidelity.features("red fox"), len(found.column)
    want = {f: math.log((n + 1) / (counts.total() + size)) for f, n in counts.items()}
    assert {f: found.logp_FK[found.column[f], 0] for f in counts} == pytest.approx(
        want
    ) and found.logp_FK[found.column["whale"], 0] == pytest.approx(-math.log(counts.total() + size))


def test_retrieval_ignores_common_words():
    found = generation_fidelity.Retrieval(
        {"a": ("the old bridge", []), "b": ("the new school", []), "c": ("the tall tower", [])}
    )
    assert found.share("a bridge, the bridge", "a", ["b", "c"]) == 1 and found.share(
        "the", "a", ["b", "c"]
    ) == pytest.approx(1 / 3)
