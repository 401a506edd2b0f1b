"""What every objective in the folder promises, whichever there are."""

from dataclasses import fields, is_dataclass, replace

import pytest
import torch

from ecliptica import objectives
from ecliptica.objectives.contract import Needs, Step, Terms, WholeStep
from ecliptica.schema import Rows
from model.errors import InputError
from tests.objectives.random_rows import random_rows, settings_of

NAMES = objectives.OBJECTIVES.names()
STEP = Step(number=1, steps=4)


def shape_of(objective):
    """Responses of each of four preferences, as many as it reads."""
    return [objective.RESPONSES] * 4 if objective.RESPONSES else [2, 3, 2, 4]


def visible(rows, needs):
    """The rows with nothing in them that the objective did not ask for."""
    return replace(
        rows,
        kl_R=rows.kl_R if needs.kl else None,
        ref_logp_R=rows.ref_logp_R if needs.reference else None,
        rewards_S=rows.rewards_S if needs.rewards else None,
    )


def with_baseline(objective, config, parts):
    """The step, with what the objective wants to know of all of it."""
    if not hasattr(objective, "baseline"):
        return STEP
    whole = WholeStep(
        number=STEP.number,
        steps=STEP.steps,
        config=config,
        batches=range(len(parts)),
        rows=lambda number: parts[number],
        sums=list,
    )
    return replace(STEP, baseline=objective.baseline(whole))


def alone(rows, preference):
    """The rows of one preference."""
    sequences = (rows.owner_S == preference).nonzero()[:, 0]
    here_R = torch.isin(rows.segments_R, sequences)

    def of(x_R):
        return None if x_R is None else x_R[here_R]

    return Rows(
        logp_R=of(rows.logp_R),
        segments_R=of(rows.segments_R) - sequences[0],
        owner_S=rows.owner_S[sequences] - preference,
        scores_S=rows.scores_S[sequences],
        kl_R=of(rows.kl_R),
        ref_logp_R=of(rows.ref_logp_R),
        rewards_S=None if rows.rewards_S is None else rows.rewards_S[sequences],
    )


@pytest.mark.parametrize("name", NAMES)
def test_an_objective_has_its_parts(name):
    objective, config = objectives.OBJECTIVES.get(name), settings_of(name=name)
    assert is_dataclass(objective.Config) and config.name == name
    assert objective.RESPONSES is None or objective.RESPONSES >= 1
    assert isinstance(objective.needs(config), Needs)
    without_help = [f.name for f in fields(config) if f.name != "name" and not f.metadata["help"]]
    assert not without_help, f"no help at {without_help}"


@pytest.mark.parametrize("name", NAMES)
def test_its_terms_are_sums_over_preferences_of_what_it_asked_for(name):
    """The loss and every metric of a batch are the sums of those of its preferences: a step is the
    same however it is split."""
    objective, config = objectives.OBJECTIVES.get(name), settings_of(name=name)
    rows = visible(random_rows(shape_of(objective)), objective.needs(config))
    parts = [alone(rows, preference) for preference in range(4)]
    step = with_baseline(objective, config, parts)
    whole = objective.loss(rows, config, step)
    pieces = [objective.loss(part, config, step) for part in parts]
    assert isinstance(whole, Terms)
    assert whole.loss.item() == pytest.approx(sum(p.loss.item() for p in pieces), rel=1e-12)
    for metric, value in whole.metrics.items():
        total = sum(piece.metrics[metric].item() for piece in pieces)
        assert value.item() == pytest.approx(total, rel=1e-6), metric
        assert not value.requires_grad, f"{metric} is not detached"
    assert all(piece.values == whole.values for piece in pieces)
    assert all(type(value) is float for value in whole.values.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_step_down_its_gradient_lowers_it(name):
    objective, config = objectives.OBJECTIVES.get(name), settings_of(name=name)
    rows = visible(random_rows(shape_of(objective)), objective.needs(config))
    step = with_baseline(objective, config, [rows])
    before = objective.loss(rows, config, step).loss
    before.backward()
    moved = {}
    for column in ("logp_R", "rewards_S"):
        value = getattr(rows, column)
        if value is not None and value.grad is not None and value.grad.any():
            moved[column] = (value - 1e-3 * value.grad).detach()
    assert moved, "no gradient reaches what the model says"
    assert objective.loss(replace(rows, **moved), config, step).loss < before


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"kl_weight_start": 0.0},
            "objective.kl_weight_start: expected > 0, got 0.0; cita's KL is mandatory",
        ),
        ({"kl_weight_end": 0.0}, "objective.kl_weight_end"),
        ({"kl": "none"}, "objective.kl: cita's KL is mandatory"),
    ],
)
def test_the_kl_of_cita_is_mandatory_but_for_an_ablation(options, message):
    with pytest.raises(InputError, match=message):
        settings_of(**options)
    assert settings_of(**options, ablation=True).ablation


def test_an_unknown_objective_is_named_with_those_that_there_are():
    with pytest.raises(InputError, match=f"expected one of {', '.join(NAMES)}, got 'simp0'"):
        settings_of(name="simp0")


def test_a_key_that_the_objective_does_not_read_is_refused():
    with pytest.raises(InputError, match="objective.beta: read by .*cita.* only"):
        settings_of(name="sft", beta=0.1)
