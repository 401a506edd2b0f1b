"""Every file of the folders metrics, suites and commands keeps its folder's contract, also one that
is dropped in: found, listed, run and measured without another edit."""

import inspect
import json
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path

import pytest

import eval as evaluate
from ecliptica.evaluation import commands, help, metrics, suites
from ecliptica.evaluation import run as run_suite
from ecliptica.evaluation.metrics import HOW, Derived, Metric
from tests.evaluation.conftest import BASE, TRAINED, Formula, small_bank

NEW_METRIC = '''
"""Own margin: mean over instructions of what the own response gains over the best of the others.

Null 0. Blind to the prompt.
"""

import numpy as np

from ecliptica.evaluation.grid import read_square, square
from ecliptica.evaluation.metrics import Metric


def value(s_JK):
    others_JK = s_JK - np.where(np.eye(len(s_JK)), np.inf, 0)
    return float(np.mean(np.diag(s_JK) - others_JK.max(1)))


METRICS = (
    Metric(
        "own_margin",
        "own margin (nats)",
        0.0,
        blind_to="the prompt",
        questions=square,
        value=lambda cross, answers: value(read_square(cross, answers)),
        reads="grid",
    ),
)
'''
NEW_SUITE = '''
"""Is a longer answer less likely? Log-prob of one word and of many."""

from dataclasses import dataclass

from ecliptica.config import positive
from ecliptica.evaluation.metrics import Metric
from ecliptica.evaluation.questions import Question
from ecliptica.evaluation.suites import Study, Suite

GAIN = Metric(
    "gain",
    "one word over many (nats)",
    0.0,
    blind_to="the content",
    questions=lambda pair: pair,
    value=lambda pair, answers: answers[pair[0]] - answers[pair[1]],
)


@dataclass(frozen=True)
class Options:
    words: int = positive(3, "words of the longer one")
    limit: int | None = None


def prepare(options):
    units = []
    for number in range(4):
        units.append([Question(f"p{number}", None, "word " * n) for n in (1, options.words)])
    return Study(units=units, metrics=[GAIN], unit="pairs")


SUITE = Suite("word-count", Options, prepare, lambda: [GAIN])
'''


def all_metrics():
    return {
        f"{name}: {metric.name}": metric
        for name, file in metrics.FOLDER.all().items()
        for metric in file.METRICS
    }


@pytest.mark.parametrize("name", metrics.FOLDER.names())
def test_a_metric_file_says_what_it_measures(name):
    file = metrics.FOLDER.get(name)
    assert file.__doc__ and len(file.__doc__) > 80, f"{name}: its docstring is its definition"
    assert file.METRICS, f"{name}: METRICS is empty"
    for metric in file.METRICS:
        check_metric(metric)


def check_metric(metric):
    where = metric.name
    assert isinstance(metric, Metric | Derived), where
    assert metric.title and metric.title == metric.title.strip(), where
    assert isinstance(metric.blind_to, str), where
    if callable(metric.null):
        inspect.signature(metric.null).bind([], [])
    else:
        assert metric.null is None or isinstance(metric.null, float), where
    if isinstance(metric, Derived):
        assert metric.how in HOW, where
        return
    inspect.signature(metric.questions).bind("unit")
    inspect.signature(metric.value).bind("unit", "answers")
    if metric.parts:
        inspect.signature(metric.parts).bind("unit", "answers")


@pytest.mark.parametrize("name", suites.names())
def test_a_suite_file_is_a_value(name):
    suite = suites.get(name)
    assert suite.name == name
    assert suites.about(name), f"{name}: its docstring is its help"
    assert is_dataclass(suite.Options) and suite.Options.__dataclass_params__.frozen
    for field in fields(suite.Options):
        assert field.metadata.get("help") or name == "word-count", f"{name}: {field.name}: no help"
    assert suite.metrics(), f"{name}: no metric"
    assert all(metric.title in help.of_suite(suite) for metric in suite.metrics() if shown(metric))


def shown(metric):
    return getattr(metric, "shown", True)


@pytest.mark.parametrize("name", commands.names())
def test_a_command_file_has_options_and_run(name):
    module = commands.get(name)
    assert module.__doc__ and is_dataclass(module.Options)
    inspect.signature(module.run).bind(module.Options)


def asked_of_shipped_data(name):
    """The suite with --limit 1 on what is shipped, if its options have defaults."""
    suite = suites.get(name)
    needed = [field.name for field in fields(suite.Options) if field.default is MISSING]
    if needed:
        pytest.skip(f"--{needed[0]} has no default: tested by itself")
    return suite, suite.Options(limit=1)


def some_number(instruction, prompt, response):
    """Of texts: no two the same, whatever they are."""
    if response is None:
        return f"{instruction} {prompt}"
    return -(hash((instruction, prompt, response)) % 1000) / 7


@pytest.mark.parametrize("name", suites.names())
def test_a_suite_reads_nothing_that_it_did_not_ask(name):
    """Run on two systems of formulas, which answer what is asked and nothing else: a metric that
    reads more raises KeyError. Every unit of every metric has a value, or None, and every row of
    the table an interval around its value."""
    suite, options = asked_of_shipped_data(name)
    systems = {BASE: Formula(some_number, "a"), TRAINED: Formula(some_number, "b")}
    for system in systems.values():
        system.number = lambda question: abs(some_number(question.instruction, *both(question)))
    results = run_suite(suite, options, systems)
    assert results.suite == name and not results.reportable
    assert next(iter(results.metrics)) == results.headline
    names = {metric.name for metric in suite.metrics() if shown(metric)}
    if name != "scale":  # --sizes decides its columns
        assert set(results.metrics) == names
    for label, by_name in results.systems.items():
        assert set(by_name) == set(results.metrics), label
        for metric, cell in by_name.items():
            if cell.value is not None:
                assert cell.low <= cell.value <= cell.high, f"{label}: {metric}"
    for label, by_name in results.per_unit.items():
        for metric, values in by_name.items():
            assert len(values) == results.units, f"{label}: {metric}"
    assert set(results.difference) == {TRAINED}


def both(question):
    return question.prompt, f"{question.other_instruction}{question.response}"


@pytest.fixture
def dropped_in(tmp_path, monkeypatch):
    """A directory for a new metric and one for a new suite, on the packages' paths."""
    for folder, name, text in (
        (metrics, "own_margin", NEW_METRIC),
        (suites, "word_count", NEW_SUITE),
    ):
        place = tmp_path / folder.__name__.rpartition(".")[2]
        place.mkdir()
        (place / f"{name}.py").write_text(text.lstrip())
        monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(place)])
        monkeypatch.setattr(folder.FOLDER, "path", folder.__path__)
    return tmp_path


def helps(capsys, *words):
    with pytest.raises(SystemExit):
        evaluate.main([*words, "--help"])
    return " ".join(capsys.readouterr().out.split())


def test_a_metric_dropped_in_is_found_listed_measured_and_keeps_the_contract(
    dropped_in, tmp_path, capsys
):
    test_a_metric_file_says_what_it_measures("own-margin")
    assert "own_margin: own margin (nats); null: 0.0; blind to the prompt" in helps(
        capsys, "switch"
    )
    small_bank(tmp_path)
    switch = suites.get("switch")
    options = switch.Options(
        bank=f"{tmp_path}/bank.jsonl", instructions=f"{tmp_path}/i.toml", controls=()
    )

    # Loud answers to loud instructions are 3 nats likelier, quiet ones to quiet ones 1.
    def formula(instruction, prompt, response):
        loud = response.isupper() or "GREAT" in response
        if instruction == "Use capitals.":
            return 3.0 * loud
        return 1.0 * (not loud) * (instruction == "Speak softly.")

    results = run_suite(switch, options, {BASE: Formula(formula)})
    assert results.systems[BASE]["own_margin"].value == pytest.approx(2)
    assert list(results.metrics)[-1] == "own_margin"
    assert "own margin (nats)" in str(results)
    alone = run_suite(switch, replace(options, metrics=("own_margin",)), {BASE: Formula(formula)})
    assert list(alone.metrics) == ["own_margin"]


def test_a_suite_dropped_in_is_found_listed_and_runs(dropped_in, tiny, tmp_path, capsys):
    assert "word-count Is a longer answer less likely?" in helps(capsys)
    assert "--words WORDS words of the longer one (default: 3)" in helps(capsys, "word-count")
    test_a_suite_file_is_a_value("word-count")
    test_a_suite_reads_nothing_that_it_did_not_ask("word-count")

    words = ["word-count", "--template", "chatml", "--words", "5", "--out", f"{tmp_path}/out"]
    evaluate.main([*words, "--model", str(tiny)])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["systems"][BASE]["gain"]["value"] > 0, "five words are likelier than one"
    assert results["units"] == 4
    assert "one word over many (nats)" in capsys.readouterr().out


def test_the_folders_of_the_package_are_as_they_were():
    """The tests above put their files on the path, not into the package."""
    here = Path(metrics.__file__).parent
    assert not (here / "own_margin.py").exists()
