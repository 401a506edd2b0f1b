"""Every offline objective that TRL has, on the same log-probs."""

import contextlib
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from ecliptica import objectives
from ecliptica.objectives import kto
from ecliptica.objectives.contract import Step
from tests.objectives.random_rows import random_rows, settings_of

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore:You are importing from")]
NEAR = 1e-5
STUB = {"accelerator": SimpleNamespace(device="cpu"), "alpha": 0.0}


def ours(rows, **options):
    """Loss of each preference, in the mean."""
    config = settings_of(**options)
    terms = objectives.get(config).loss(rows, config, Step(0, 2))
    return terms.loss.item() / rows.sequences().chosen_P.numel()


def sides(rows, of="logp_S", mean=False):
    """(chosen, rejected) log-probs of every preference; of "ratio" less the reference's."""
    s = rows.sequences()
    x_S = s.logp_S - s.ref_logp_S if of == "ratio" else getattr(s, of)
    if mean:
        x_S = x_S / s.tokens_S
    return x_S[s.chosen_P].detach(), x_S[s.rejected_P].detach()


def cpo(kind, beta, pair, **options):
    """TRL's loss of a kind in the mean: of log-ratios it is dpo's and ipo's."""
    from trl.experimental.cpo import CPOTrainer

    stub = SimpleNamespace(**STUB, loss_type=kind, beta=beta, **options)
    return CPOTrainer.cpo_loss(stub, *pair)[0].mean().item()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_dpo_with_label_smoothing(smoothing):
    rows = random_rows([2] * 6)
    want = cpo("sigmoid", 0.1, sides(rows, "ratio"), label_smoothing=smoothing)
    got = ours(rows, name="dpo", label_smoothing=smoothing)
    assert got == pytest.approx(want, rel=NEAR)


@pytest.mark.parametrize("mean", [False, True])
def test_ipo(mean):
    rows = random_rows([2] * 6)
    want = cpo("ipo", 0.2, sides(rows, "ratio", mean))
    got = ours(rows, name="ipo", tau=0.2, length_normalised=mean)
    assert got == pytest.approx(want, rel=NEAR)


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_simpo(gamma):
    rows = random_rows([2] * 6)
    means = sides(rows, mean=True)
    want = cpo("simpo", 2.0, means, simpo_gamma=gamma, label_smoothing=0.0)
    assert ours(rows, name="simpo", gamma=gamma) == pytest.approx(want, rel=NEAR)


def test_orpo():
    """TRL's term is subtracted from the chosen response's nll."""
    from trl.experimental.orpo import ORPOTrainer

    rows = random_rows([2] * 6)
    chosen_P, rejected_P = sides(rows, mean=True)
    stub = SimpleNamespace(**STUB, beta=0.3)
    term_P = ORPOTrainer.odds_ratio_loss(stub, chosen_P, rejected_P)[0]
    want = (-chosen_P - term_P).mean().item()
    assert ours(rows, name="orpo", odds_weight=0.3) == pytest.approx(want, rel=NEAR)


class Speaking(torch.nn.Module):
    """What TRL takes for a model: it says the log-probs that it was made with."""

    def __init__(self, logp_S, mismatched_S):
        super().__init__()
        self.logp_S = logp_S
        self.mismatched_S = mismatched_S

    def forward(self, input_ids, **_):
        logp_S = self.mismatched_S if input_ids[0, 0] == 1 else self.logp_S
        logps_S1 = logp_S[:, None]
        return SimpleNamespace(log_probs=logps_S1, entropy=logps_S1, mean_logits=logps_S1)


def trl_kto(model, reference, labels, **options):
    """TRL's loss of a batch in the mean, and its z0."""
    from trl import KTOTrainer

    stub = SimpleNamespace(
        **STUB,
        model=model,
        ref_model=reference,
        calculate_KL=True,
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        loss_type="kto",
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, gradient_checkpointing=False),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        **options,
    )
    stub.accelerator = SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x)
    stub._compute_kl_logps = KTOTrainer._compute_kl_logps.__get__(stub)
    ids = torch.zeros(len(labels), 2, dtype=torch.int64)
    ones = torch.ones_like(ids)
    inputs = {"input_ids": ids, "attention_mask": ones, "completion_mask": ones, "label": labels}
    inputs |= {f"KL_{name}": ones for name in ("input_ids", "attention_mask", "completion_mask")}
    loss = KTOTrainer._compute_loss(stub, model, inputs, False)
    return loss.item(), stub._metrics["train"]["kl"][0]


@pytest.mark.parametrize("seed", [1, 2, 4])
def test_kto(seed, monkeypatch):
    from trl.trainer import kto_trainer

    monkeypatch.setattr(
        kto_trainer, "disable_gradient_checkpointing", lambda *_: contextlib.nullcontext()
    )
    rows, pairs = random_rows([1] * 6), random_rows([1] * 6, seed=seed)
    labels = rows.scores_S > 0
    s, m = rows.sequences(), pairs.sequences()
    model = Speaking(s.logp_S.detach(), m.logp_S.detach())
    reference = Speaking(s.ref_logp_S, m.ref_logp_S)
    weights = {"beta": 0.1, "desirable_weight": 1.2, "undesirable_weight": 0.8}
    want, z0 = trl_kto(model, reference, labels, **weights)

    config = settings_of(name="kto", **weights)
    kl = (m.logp_S - m.ref_logp_S).mean().item()
    step = Step(0, 2, kto.Baseline(kl, 6.0, 3.0))
    terms = objectives.get(config).loss(rows, config, step)
    assert terms.values["z0"] == pytest.approx(z0, rel=NEAR)
    assert terms.loss.item() / 6 == pytest.approx(want, rel=NEAR)
