"""The KL term: its modes by hand, its annealing, and that only one of them is a KL."""

import math

import pytest
import torch

from ecliptica import objectives
from ecliptica.objectives import kl
from ecliptica.objectives.contract import Step, Terms
from ecliptica.schema import Rows
from tests.objectives.random_rows import random_rows, settings_of


def one_preference():
    """Two responses of two tokens and one; the reference was more certain of the second."""
    return Rows(
        logp_R=torch.tensor([-1.0, -2.0, -3.0]),
        segments_R=torch.tensor([0, 0, 1]),
        owner_S=torch.tensor([0, 0]),
        scores_S=torch.tensor([1.0, 0.0]),
        kl_R=torch.tensor([0.1, 0.2, 0.4]),
        ref_logp_R=torch.tensor([-1.5, -2.5, -1.0]),
    )


@pytest.mark.parametrize(
    "mode, want",
    [
        ("exact", 0.7),
        ("printed", math.exp(-1) * 0.5 + math.exp(-2) * 0.5 - math.exp(-3) * 2),
        # (0.5 + 0.5 - 2) / 2
        ("logratio", -0.5),
    ],
)
def test_each_mode_by_hand(mode, want):
    config = settings_of(kl=mode)
    term = kl.term(one_preference(), config, Step(0, 2))
    assert term.metrics["kl"].item() == pytest.approx(want, rel=1e-5)
    assert term.loss.item() == pytest.approx(0.01 * want, rel=1e-5)
    assert term.values == {"kl_weight": 0.01}


def test_none_measures_nothing():
    config = settings_of(name="unified", kl="none")
    term = kl.term(one_preference(), config, Step(0, 2))
    assert term.loss == 0 and term.metrics == {}
    assert not objectives.get(config).needs(config).frozen_model


@pytest.mark.parametrize("mode", kl.MODES)
def test_what_is_no_kl_is_an_ablation(mode):
    config = settings_of(name="unified", kl=mode)
    assert kl.is_ablation(config) == (mode in ("printed", "logratio"))
    assert kl.is_ablation(settings_of(name="unified", kl=mode, ablation=True))


def test_annealing_is_linear_from_the_first_step_to_the_last():
    config = settings_of()
    weights = [kl.weight(config, Step(number, 5)) for number in range(5)]
    assert weights == pytest.approx([0.01, 0.0325, 0.055, 0.0775, 0.1])
    assert kl.weight(config, Step(0, 1)) == 0.01


def test_the_kl_is_observed_wherever_there_is_a_reference():
    """dpo has no KL in its loss; it is measured beside it, exactly, with weight 0."""
    rows, config = random_rows([2, 2]), settings_of(name="dpo")
    terms = objectives.get(config).loss(rows, config, Step(0, 2))
    observed = kl.observed(terms, rows, config)
    assert observed.loss is terms.loss
    assert observed.metrics["kl"].item() == pytest.approx(rows.kl_R.sum().item())
    assert observed.values == {"kl_weight": 0.0}
    none = Terms(terms.loss, {}, {})
    bare = Rows(rows.logp_R, rows.segments_R, rows.owner_S, rows.scores_S)
    assert "kl" not in kl.observed(none, bare, config).metrics
