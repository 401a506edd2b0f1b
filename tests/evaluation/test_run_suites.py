"""A suite called from Python, and typed results: written, read, pooled."""

import json
import re

import numpy as np
import pytest

from ecliptica.evaluation import run as run_suite
from ecliptica.evaluation import suites, systems
from ecliptica.evaluation.results import Results
from model.errors import InputError
from tests.conftest import ROOT
from tests.evaluation.conftest import (
    BASE,
    TRAINED,
    Formula,
    results_of,
    small_bank,
    values,
)


def test_the_six_lines_of_the_documentation_run(tiny, adapter, tmp_path, capsys):
    """As they stand in docs/evaluation.md, but for where models lie and for a smaller bank."""
    text = (ROOT / "docs" / "evaluation.md").read_text()
    code = re.search(r"```python\n(from ecliptica\.evaluation import run.*?)```", text, re.S)[1]
    assert len([line for line in code.splitlines() if line.strip()]) == 6
    assert "models/smollm2" in code and "runs/demo/final" in code
    code = code.replace("models/smollm2", str(tiny)).replace("runs/demo/final", str(adapter))
    small_bank(tmp_path)
    bank = f"bank='{tmp_path}/bank.jsonl', instructions='{tmp_path}/i.toml'"
    code = code.replace("limit=2", f"limit=2, {bank}")
    place = {}
    exec(code, place)
    results = place["results"]
    assert isinstance(results, Results)
    assert list(results.systems) == [BASE, TRAINED]
    assert results.details["kl"]["per_token"] > 0, "two models that were loaded apart"
    shown = capsys.readouterr().out
    assert shown.startswith("NOT REPORTABLE")
    assert f"| joint | 0.1 | {results.systems[BASE]['joint'].value:.3f} [" in shown


def test_two_systems_loaded_apart_are_those_of_one_command_line(tiny, adapter):
    """The control of an adapter is its own model with the adapter off: the same digest, and the
    same numbers, as the base model loaded by itself."""
    base = systems.load(tiny, template="chatml")
    trained = systems.load(tiny, adapter=adapter, template="chatml")
    assert trained.without_adapter().digest == base.digest != trained.digest
    assert systems.is_base_of(base, trained)
    assert not systems.is_base_of(trained, trained)
    assert not systems.is_base_of(base, base)


def lengths(instruction, prompt, response):
    return -len(response) - (len(instruction or "") + len(prompt)) % 7


def test_results_are_read_as_they_were_written(tmp_path):
    results = results_of("refusal", {BASE: lengths, TRAINED: lambda i, x, y: len(y)}, limit=3)
    results.write(tmp_path)
    read = Results.read(tmp_path / "results.json")
    assert read == results
    assert str(read) == str(results)
    plain = json.loads((tmp_path / "results.json").read_text())
    assert plain["published"]["m3"].keys() == {BASE, TRAINED}
    assert plain["config"]["limit"] == 3


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda plain: plain.pop("metrics"), "no 'metrics' in it"),
        (lambda plain: plain.update(systems=[1]), "not the results of a suite"),
        (lambda plain: plain["systems"][BASE].update(floor={}), "not the results of a suite"),
        (lambda plain: plain.update(metrics={}), "not the results of a suite"),
    ],
)
def test_results_of_another_shape_are_one_line(change, message, tmp_path):
    plain = results_of("refusal", lengths, limit=1).to_json()
    change(plain)
    (tmp_path / "results.json").write_text(json.dumps(plain, default=str))
    with pytest.raises(InputError, match=message):
        Results.read(tmp_path / "results.json")


def test_a_suite_refuses_options_before_it_asks_anybody():
    with pytest.raises(InputError, match="--wording 9"):
        results_of("refusal", lengths, wording=9)
    with pytest.raises(InputError, match="--metric: expected one of joint, column_accuracy"):
        results_of("override", lengths, metric="switch")
    with pytest.raises(InputError, match="suite: expected one of .*switch"):
        suites.get("swich")


# Seeds


def seed(number):
    """A trained system of its own: what it prefers depends on the seed and the item."""
    generator = np.random.default_rng(number)
    noise = {}

    def formula(instruction, prompt, response):
        if instruction is None:
            return 0.0
        key = instruction, prompt, response
        return noise.setdefault(key, generator.normal(0, 1)) - 0.02 * number * len(response)

    return results_of("refusal", {BASE: lengths, TRAINED: formula}, limit=8)


def test_pooled_seeds_are_the_mean_and_resample_seeds_first():
    """Values by hand; intervals against a bootstrap written out."""
    seeds = [seed(number) for number in range(4)]
    pooled = Results.pooled(seeds)
    values_NP = np.array(
        [[np.nan if v is None else v for v in s.per_unit[TRAINED]["boundary"]] for s in seeds]
    )
    there_NP = values_NP[:, ~np.isnan(values_NP[0])]
    cell = pooled.systems[TRAINED]["boundary"]
    assert cell.value == pytest.approx(there_NP.mean())

    generator = np.random.default_rng(7)
    means = []
    for _ in range(4000):
        drawn = [values_NP[generator.integers(4)] for _ in range(4)]
        units = [own[generator.integers(0, len(own), len(own))] for own in drawn]
        means.append(np.nanmean(units))
    assert (cell.low, cell.high) == pytest.approx(
        tuple(np.quantile(means, [0.025, 0.975])), abs=0.04
    )
    change = pooled.difference[TRAINED]["boundary"]
    control = seeds[0].systems[BASE]["boundary"].value
    assert change.value == pytest.approx(there_NP.mean() - control)
    assert 0 < change.p <= change.p_holm <= 1
    assert "seeds, then requests resampled" in str(pooled)
    assert [row[TRAINED]["boundary"] for row in pooled.details["seeds"]] == [
        s.systems[TRAINED]["boundary"].value for s in seeds
    ]


def test_pooled_seeds_that_differ_have_a_wider_interval_than_their_units_alone():
    units = 24
    seeds = []
    for number in range(5):
        results = seed(0)
        level = number / 4  # every unit of a seed has the seed's own value
        results.per_unit[TRAINED]["boundary"][:] = [level] * units
        results.per_unit[BASE]["boundary"][:] = [0.3] * units
        seeds.append(results)
    pooled = Results.pooled(seeds)
    cell = pooled.systems[TRAINED]["boundary"]
    assert cell.value == pytest.approx(0.5)
    assert cell.low < 0.25 and cell.high > 0.75, "the seeds were not resampled"
    # All units of three seeds are above the control's: as if there were 120 independent ones.
    change = pooled.difference[TRAINED]["boundary"]
    assert change.value == pytest.approx(0.2)
    assert change.low < 0 < change.high and change.p > 0.05


def test_pooling_one_seed_changes_nothing_and_two_need_the_same_metrics(tmp_path):
    one = seed(1)
    pooled = Results.pooled([one])
    assert pooled.systems == one.systems
    assert pooled.difference == one.difference
    other = results_of("refusal", lengths, limit=8)
    with pytest.raises(InputError, match="pooled results must be of one suite"):
        Results.pooled([one, other])
    with pytest.raises(InputError, match="no results to pool"):
        Results.pooled([])


def test_a_ratio_of_means_is_pooled_from_files(tmp_path):
    """Perplexity is made of two columns that are no rows of the table: they are in the file."""
    nats = {"a": 2.0, "b": 3.0}
    for name, each in nats.items():
        (tmp_path / name).mkdir()
        formula = lambda i, x, y, each=each: -4 * each  # noqa: E731
        results_of("capability", formula, limit=6).write(tmp_path / name)
    seeds = [Results.read(tmp_path / name / "results.json") for name in nats]
    assert [values(s)["perplexity"] for s in seeds] == pytest.approx([np.exp(2), np.exp(3)])
    pooled = Results.pooled(seeds).systems[BASE]["perplexity"]
    assert pooled.value == pytest.approx(np.exp(2.5))
    assert (pooled.low, pooled.high) == pytest.approx((np.exp(2), np.exp(3)))


def test_a_system_without_a_model_is_asked_through_the_same_door():
    """Whatever has a digest, a key and ask(...) is a system."""
    suite = suites.get("honesty")
    system = Formula(lambda i, x, y: len(y) * (i is not None), "mine")
    results = run_suite(suite, suite.Options(limit=2), {"mine": system})
    assert results.control == "mine" and results.units == 4
    assert system.asked
