"""Every shipped objective against its formula written out in float64: loss and gradient."""

import math

import pytest
import torch

from ecliptica import objectives
from ecliptica.objectives.contract import Step
from ecliptica.schema import Rows
from tests.objectives.random_rows import random_rows, settings_of

STEP = Step(number=2, steps=5)  # lambda is half-way: 0.055
LAMBDA = 0.055


class Written:
    """One preference's numbers, and the terms of the specification from them."""

    def __init__(self, rows, preference, config):
        self.config = config
        sequences = (rows.owner_S == preference).nonzero()[:, 0].tolist()
        self.where = [rows.segments_R == s for s in sequences]
        self.scores = [float(rows.scores_S[s]) for s in sequences]
        self.rows = rows

    def logp(self, n, of="logp_R", mean=None):
        x = getattr(self.rows, of)[self.where[n]]
        mean = self.config.logp == "mean" if mean is None else mean
        return x.mean() if mean else x.sum()

    def nll(self):
        return -self.logp(0)

    def preference(self):
        """-log of the two-way softmax over beta s."""
        good, bad = (
            self.config.beta
            * (self.logp(n) - (0 if self.config.reference_free else self.logp(n, "ref_logp_R")))
            for n in (0, 1)
        )
        return -(good.exp() / (good.exp() + bad.exp())).log()

    def kl(self):
        both = self.where[0] | self.where[1]
        logp, ref, kl = (x[both] for x in (self.rows.logp_R, self.rows.ref_logp_R, self.rows.kl_R))
        return {
            "exact": kl.sum(),
            "printed": (logp.exp() * (logp - ref)).sum(),
            "logratio": (logp - ref).sum() / 2,
            "none": torch.zeros(()),
        }[self.config.kl]

    def ranking(self):
        mean = [self.logp(n, mean=True) for n in range(len(self.where))]
        pairs = [(i, j) for i in range(len(mean)) for j in range(len(mean))]
        return sum(
            torch.relu(mean[i] - mean[j]) for i, j in pairs if self.scores[i] < self.scores[j]
        )


FORMULAS = {
    "sft": lambda p: p.nll(),
    "dpo": lambda p: p.preference(),
    "cita": lambda p: p.preference() + LAMBDA * p.kl(),
    "unified": lambda p: p.nll() + p.config.preference_weight * p.preference() + LAMBDA * p.kl(),
    "rrhf": lambda p: p.nll() + p.ranking(),
}


@pytest.mark.parametrize(
    "options",
    [
        {"name": "sft"},
        {"name": "sft", "logp": "mean"},
        {"name": "dpo"},
        {"name": "dpo", "reference_free": True},
        {"name": "dpo", "logp": "mean"},
        {"name": "cita"},
        {"name": "cita", "logp": "mean"},
        {"name": "cita", "reference_free": False},
        {"name": "cita", "kl": "printed"},
        {"name": "cita", "kl": "logratio"},
        {"name": "cita", "kl": "none", "ablation": True},
        {"name": "unified", "preference_weight": 0.7},
        {"name": "unified", "kl": "none"},
        {"name": "unified", "logp": "mean", "kl": "logratio", "reference_free": False},
        {"name": "rrhf"},
        {"name": "rrhf", "logp": "mean"},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_loss_and_gradient_equal_the_formula(options):
    config = settings_of(**options)
    objective = objectives.get(config)
    shape = {1: [1] * 4, 2: [2] * 5, None: [2, 3, 4, 2]}[objective.RESPONSES]
    rows, wide = random_rows(shape, torch.float32), random_rows(shape)

    loss = objective.loss(rows, config, STEP).loss
    formula = FORMULAS[config.name]
    want = sum(formula(Written(wide, preference, config)) for preference in range(len(shape)))
    loss.backward()
    want.backward()

    assert loss.item() == pytest.approx(want.item(), rel=1e-5), "loss"
    for name in ("logp_R", "kl_R"):
        got, wanted = getattr(rows, name).grad, getattr(wide, name).grad
        if wanted is None:
            assert got is None or not got.any(), f"a gradient of {name} that the formula has not"
        else:
            error = (got - wanted).abs().max() / wanted.abs().max()
            assert error < 1e-5, f"gradient of {name}: relative error {error:.1e}"


def test_gradient_of_cita_is_the_corrected_one():
    """Errata 1: -beta (1 - P+) (grad s+ - grad s-).

    The printed -beta [(1 - P+) grad s+ - P+ grad s-] is another number.
    """
    rows, config = random_rows([2]), settings_of(ablation=True, kl="none")
    objectives.get(config).loss(rows, config, STEP).loss.backward()
    good, bad = rows.sequences().logp_S.tolist()
    p = 1 / (1 + math.exp(-config.beta * (good - bad)))
    gradient_S = torch.stack([rows.logp_R.grad[rows.segments_R == s][0] for s in (0, 1)])
    want_S = torch.tensor([-0.1 * (1 - p), 0.1 * (1 - p)], dtype=torch.float64)
    torch.testing.assert_close(gradient_S, want_S)
    assert abs(gradient_S[1].item() - 0.1 * p) > 1e-3


def test_saturation_is_the_share_of_preferences_with_p_above_99_percent():
    """Errata 5: a short chosen against a long rejected response starts with P+ near 1 and hardly
    any gradient."""
    tokens_S = torch.tensor([5, 50, 20, 20])
    logp_S = torch.tensor([-10.0, -100.0, -50.0, -52.0])
    segments_R = torch.repeat_interleave(torch.arange(4), tokens_S)
    rows = Rows(
        logp_R=(logp_S / tokens_S)[segments_R].requires_grad_(),
        segments_R=segments_R,
        owner_S=torch.tensor([0, 0, 1, 1]),
        scores_S=torch.tensor([1.0, 0, 1, 0]),
        kl_R=torch.zeros(len(segments_R)),
    )
    config = settings_of()
    terms = objectives.get(config).loss(rows, config, STEP)
    terms.loss.backward()
    assert terms.metrics["saturated"] == 1 and terms.metrics["rewards/accuracies"] == 2
    saturated_R, free_R = rows.logp_R.grad[:55].abs(), rows.logp_R.grad[55:].abs()
    assert saturated_R.max() < 1e-4 < 0.04 < free_R.min()
    mean = settings_of(logp="mean")
    assert objectives.get(mean).loss(rows, mean, STEP).metrics["saturated"] == 0


def test_dpo_without_a_move_is_ln_2():
    rows, config = random_rows([2] * 3), settings_of(name="dpo")
    objective = objectives.get(config)
    still = Rows(
        logp_R=rows.ref_logp_R,
        segments_R=rows.segments_R,
        owner_S=rows.owner_S,
        scores_S=rows.scores_S,
        kl_R=rows.kl_R,
        ref_logp_R=rows.ref_logp_R,
    )
    loss = objective.loss(still, config, STEP).loss.item() / 3
    assert loss == pytest.approx(math.log(2), abs=1e-12)
    assert objective.loss_at_start(config) == pytest.approx(math.log(2), abs=1e-12)
    assert objective.loss_at_start(settings_of(name="dpo", reference_free=True)) is None


def test_what_rrhf_measures():
    """By hand: two of three pairs of one preference in order, and its rank term is logged."""
    logp_R = torch.tensor([-1.0, -0.5, -2.0])
    rows = Rows(
        logp_R=logp_R,
        segments_R=torch.arange(3),
        owner_S=torch.zeros(3, dtype=torch.int64),
        scores_S=torch.tensor([3.0, 2.0, 1.0]),
    )
    config = settings_of(name="rrhf")
    terms = objectives.get(config).loss(rows, config, STEP)
    assert terms.metrics["rewards/accuracies"].item() == pytest.approx(2 / 3)
    assert terms.metrics["rank"].item() == pytest.approx(0.5)
    assert terms.loss.item() == pytest.approx(0.5 + 1.0)
