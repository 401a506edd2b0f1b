"""Every objective against its formula written out in float64, loss and gradient; dpo against TRL."""

import math

import pytest
import torch

from ecliptica import config, objectives
from ecliptica.recipe import Config
from ecliptica.schema import SequenceStats
from model.errors import InputError

LAMBDA = 0.03


def numbers(per_preference, dtype=torch.float64, seed=0):
    """Random sequence statistics: logp and kl are leaves."""
    g = torch.Generator().manual_seed(seed)
    owner = torch.tensor([p for p, k in enumerate(per_preference) for _ in range(k)])
    S = len(owner)
    logp = (-30 * torch.rand(S, generator=g, dtype=torch.float64) - 5).to(dtype).requires_grad_()
    kl = (4 * torch.rand(S, generator=g, dtype=torch.float64)).to(dtype).requires_grad_()
    ref = (-30 * torch.rand(S, generator=g, dtype=torch.float64) - 5).to(dtype)
    scores = torch.tensor([float(k - n) for k in per_preference for n in range(k)])
    tokens = torch.randint(3, 30, (S,), generator=g)
    return SequenceStats(logp, tokens, owner, scores, kl, ref)


def written_out(name, s, config):
    """The table of the specification, preference by preference."""
    beta, total = config.beta, 0.0
    length = (lambda i: s.tokens_S[i]) if config.logp == "mean" else (lambda i: 1)
    for p in range(int(s.owner_S.max()) + 1):
        where = (s.owner_S == p).nonzero()[:, 0].tolist()
        best = where[0]
        nll = -s.logp_S[best] / length(best)
        if name == "sft":
            total = total + nll
            continue
        if name == "rrhf":
            mean = [s.logp_S[i] / s.tokens_S[i] for i in where]
            total = (
                total
                + nll
                + sum(
                    torch.relu(mean[i] - mean[j])
                    for i in range(len(where))
                    for j in range(len(where))
                    if s.scores_S[where[i]] < s.scores_S[where[j]]
                )
            )
            continue
        worse = where[1]
        reference_free = (
            config.reference_free if config.reference_free is not None else name != "dpo"
        )
        good, bad = (
            (s.logp_S[i] - (0 if reference_free else s.ref_logp_S[i])) / length(i)
            for i in (best, worse)
        )
        softmax = (beta * good).exp() / ((beta * good).exp() + (beta * bad).exp())
        kl = s.kl_S[best] + s.kl_S[worse] if config.kl != "none" else 0.0
        if config.kl == "logratio":
            kl = kl / 2
        total = (
            total
            + {
                "dpo": -softmax.log(),
                "cita": -softmax.log() + LAMBDA * kl,
                "unified": nll + config.preference_weight * -softmax.log() + LAMBDA * kl,
            }[name]
        )
    return total


def settings(**options):
    """The checked section `objective` of a recipe that says `options`."""
    table = {"model": {"path": "m"}, "data": {"train": "d"}, "objective": options}
    return config.from_table(Config, table, "test").objective


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
        {"name": "cita", "kl": "logratio"},
        {"name": "cita", "kl": "none", "ablation": True},
        {"name": "unified", "preference_weight": 0.7},
        {"name": "unified", "kl": "none"},
        {"name": "rrhf"},
    ],
    ids=lambda o: " ".join(map(str, o.values())),
)
def test_loss_and_gradient_equal_the_formula(options):
    config = settings(**options)
    shape = [2, 3, 4, 2] if config.name == "rrhf" else [1] * 4 if config.name == "sft" else [2] * 5
    stats, wide = numbers(shape, torch.float32), numbers(shape)
    terms = objectives.get(config).loss(stats, config, LAMBDA)
    want = written_out(config.name, wide, config)
    terms.loss.backward()
    want.backward()
    assert (
        abs(terms.loss.item() / want.item() - 1) < 1e-5
        and terms.metrics["loss"].item() == terms.loss.item()
    )
    for got, reference in (
        (stats.logp_S.grad, wide.logp_S.grad),
        (stats.kl_S.grad, wide.kl_S.grad),
    ):
        if reference is None or not reference.any():
            assert got is None or not got.any()
        else:
            assert ((got - reference).abs().max() / reference.abs().max()) < 1e-5


def test_gradient_of_cita_is_the_corrected_one():
    """Errata 1: -beta (1 - P+) (grad s+ - grad s-); the printed -beta [(1 - P+) grad s+ - P+ grad s-] is another number."""
    stats, config = numbers([2]), settings(ablation=True, kl="none")
    objectives.get(config).loss(stats, config, 0.0).loss.backward()
    p = torch.sigmoid(config.beta * (stats.logp_S[0] - stats.logp_S[1])).item()
    assert torch.allclose(
        stats.logp_S.grad, torch.tensor([-0.1 * (1 - p), 0.1 * (1 - p)], dtype=torch.float64)
    )
    assert abs(stats.logp_S.grad[1].item() - 0.1 * p) > 1e-3


def test_saturation_is_the_share_of_preferences_with_p_above_99_percent():
    """Errata 5: a short chosen against a long rejected response starts with P+ near 1 and hardly any gradient."""
    logp = torch.tensor([-10.0, -100.0, -50.0, -52.0], requires_grad=True)
    stats = SequenceStats(
        logp,
        torch.tensor([5, 50, 20, 20]),
        torch.tensor([0, 0, 1, 1]),
        torch.tensor([1.0, 0, 1, 0]),
        torch.zeros(4),
        None,
    )
    config = settings()
    terms = objectives.get(config).loss(stats, config, LAMBDA)
    terms.loss.backward()
    assert terms.metrics["saturated"] == 1 and terms.metrics["rewards/accuracies"] == 2
    assert logp.grad[:2].abs().max() < 1e-4 < 0.04 < logp.grad[2:].abs().min()
    mean = settings(logp="mean")
    assert objectives.get(mean).loss(stats, mean, LAMBDA).metrics["saturated"] == 0


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"kl_weight_start": 0.0},
            "objective.kl_weight_start: expected > 0, got 0.0; cita's KL is mandatory",
        ),
        ({"kl_weight_end": 0.0}, "objective.kl_weight_end"),
        ({"kl": "none"}, "objective.kl: cita's KL is mandatory"),
        (
            {"name": "simpo"},
            "objective.name: expected one of cita, dpo, rrhf, sft, unified, got 'simpo'",
        ),
    ],
)
def test_mandatory_kl(options, message):
    with pytest.raises(InputError, match=message):
        objectives.get(settings(**options))
    if "name" not in options:
        objectives.get(settings(**options, ablation=True))


def test_dpo_without_a_move_is_ln_2():
    stats, config = numbers([2] * 3), settings(name="dpo")
    still = SequenceStats(
        stats.ref_logp_S,
        stats.tokens_S,
        stats.owner_S,
        stats.scores_S,
        stats.kl_S,
        stats.ref_logp_S,
    )
    assert (
        abs(objectives.get(config).loss(still, config, 0.0).loss.item() / 3 - math.log(2)) < 1e-12
    )
