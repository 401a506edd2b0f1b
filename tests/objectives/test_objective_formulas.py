"""Every shipped objective against its formula written out in float64: loss and gradient."""

import math

import pytest
import torch

from ecliptica import objectives
from ecliptica.objectives import kto, orpo
from ecliptica.objectives.contract import Step
from ecliptica.schema import Rows
from model.errors import InputError
from tests.objectives.random_rows import random_rows, settings_of

# kto's: z0 is 2.5, of four examples of which two are good.
OF_STEP = kto.Baseline(kl=2.5, examples=4.0, good=2.0)
STEP = Step(number=2, steps=5, baseline=OF_STEP)  # lambda is half-way: 0.055
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
        mean = getattr(self.config, "logp", "") == "mean" if mean is None else mean
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
        p, s = good.exp() / (good.exp() + bad.exp()), getattr(self.config, "label_smoothing", 0)
        return -(1 - s) * p.log() - s * (1 - p).log()

    def ratio(self, n, mean=False):
        return self.logp(n, mean=mean) - self.logp(n, "ref_logp_R", mean=mean)

    def ipo(self):
        mean = self.config.length_normalised
        return (self.ratio(0, mean) - self.ratio(1, mean) - 0.5 / self.config.tau) ** 2

    def simpo(self):
        beta, gamma = self.config.beta, self.config.gamma
        good, bad = (beta * self.logp(n, mean=True) for n in (0, 1))
        return (1 + (bad + gamma - good).exp()).log()

    def orpo(self):
        good, bad = (self.logp(n, mean=True).exp() for n in (0, 1))
        odds_ratio = (good / (1 - good)) / (bad / (1 - bad))
        return -good.log() + self.config.odds_weight * (1 + 1 / odds_ratio).log()

    def kto(self):
        beta, z0 = self.config.beta, OF_STEP.z0
        if self.scores[0] > 0:
            ahead, weight = self.ratio(0) - z0, self.config.desirable_weight
        else:
            ahead, weight = z0 - self.ratio(0), self.config.undesirable_weight
        return weight * (1 - 1 / (1 + (-beta * ahead).exp()))

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
    "ipo": Written.ipo,
    "simpo": Written.simpo,
    "orpo": Written.orpo,
    "kto": Written.kto,
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
        {"name": "dpo", "label_smoothing": 0.2},
        {"name": "dpo", "label_smoothing": 0.49, "reference_free": True},
        {"name": "ipo"},
        {"name": "ipo", "length_normalised": True, "tau": 0.5},
        {"name": "simpo"},
        {"name": "simpo", "beta": 10.0, "gamma": 3.0},
        {"name": "orpo"},
        {"name": "orpo", "odds_weight": 2.0},
        {"name": "kto"},
        {"name": "kto", "beta": 0.5, "desirable_weight": 1.3, "undesirable_weight": 0.7},
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


@pytest.mark.parametrize("mean", [-1e-9, -1e-6, -1e-3, -0.6931, -0.6932, -1.0, -40.0, -200.0])
def test_log_odds_have_all_their_digits_near_either_end(mean):
    """float32 against float64 of another form; nearer to 0 than a float32 can tell, the odds are
    those of its epsilon."""
    low = torch.tensor([mean], dtype=torch.float32, requires_grad=True)
    got = orpo.log_odds(low)
    got.backward()
    near = min(mean, orpo.NEAREST)
    want = near - math.log(-math.expm1(near))
    assert got.item() == pytest.approx(want, rel=1e-6, abs=1e-6)
    slope = -1 / math.expm1(near) if mean < orpo.NEAREST else 0
    assert low.grad.item() == pytest.approx(slope, rel=1e-5)


def test_orpo_is_finite_where_a_response_is_certain():
    """Mean log-probs of 0, in float32: chosen, rejected, both."""
    config = settings_of(name="orpo")
    for means in ((0.0, -1.0), (-1.0, 0.0), (0.0, 0.0), (1e-6, -300.0)):
        rows = Rows(
            logp_R=torch.tensor(means).repeat_interleave(3).requires_grad_(),
            segments_R=torch.tensor([0, 0, 0, 1, 1, 1]),
            owner_S=torch.tensor([0, 0]),
            scores_S=torch.tensor([1.0, 0.0]),
        )
        loss = objectives.get(config).loss(rows, config, STEP).loss
        loss.backward()
        assert loss.isfinite() and rows.logp_R.grad.isfinite().all(), means


def test_metrics_of_kto_are_means_over_the_good_and_over_the_bad():
    """Of four examples the first and third are good; the step divides the sums by four."""
    rows, config = random_rows([1] * 4), settings_of(name="kto", beta=0.5)
    terms = objectives.get(config).loss(rows, config, STEP)
    logp_S = rows.sequences().logp_S.tolist()
    reward_S = [0.5 * (a - b) for a, b in zip(logp_S, rows.sequences().ref_logp_S.tolist())]
    good, bad = (reward_S[0] + reward_S[2]) / 2, (reward_S[1] + reward_S[3]) / 2
    z0 = 0.5 * 2.5
    right = sum(r > z0 for r in reward_S[::2]) + sum(r < z0 for r in reward_S[1::2])
    want = {
        "logps/chosen": (logp_S[0] + logp_S[2]) / 2,
        "logps/rejected": (logp_S[1] + logp_S[3]) / 2,
        "rewards/chosen": good,
        "rewards/rejected": bad,
        "rewards/margins": good - bad,
        "rewards/accuracies": right / 4,
    }
    got = {name: value.item() / 4 for name, value in terms.metrics.items()}
    assert got == pytest.approx(want)
    assert terms.values == {"kl/mismatched": 2.5, "z0": 2.5}


def test_a_step_down_the_mismatched_pairs_has_z0_zero():
    assert kto.Baseline(kl=-3.0, examples=4.0, good=2.0).z0 == 0.0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"name": "dpo", "label_smoothing": 0.5}, "objective.label_smoothing: expected a share"),
        ({"name": "dpo", "label_smoothing": -0.1}, "objective.label_smoothing"),
        ({"name": "ipo", "tau": 0.0}, "objective.tau: expected > 0"),
        ({"name": "simpo", "gamma": -1.0}, "objective.gamma: expected >= 0"),
        ({"name": "orpo", "odds_weight": -1.0}, "objective.odds_weight: expected >= 0"),
        ({"name": "kto", "desirable_weight": 0.0}, "objective.desirable_weight: expected > 0"),
        ({"name": "simpo", "logp": "mean"}, "objective.logp: read by .* only"),
    ],
)
def test_what_no_objective_means_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        settings_of(**options)
