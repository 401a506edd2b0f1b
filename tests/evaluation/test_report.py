"""The report: whatever is in the directory is shown, what is not is left out, nothing is one clear
line. And tables."""

import builtins
import json
import re

import numpy as np
import pytest

from ecliptica.evaluation import statistics
from ecliptica.evaluation.measured import Change, Column, Interval, Measured, changes, intervals
from ecliptica.evaluation.report import __main__ as report
from ecliptica.evaluation.report import figures, generations, tables
from ecliptica.evaluation.report.figures import bars, radar
from ecliptica.evaluation.report.html import of_table
from ecliptica.evaluation.report.page import build, headline
from ecliptica.evaluation.results import Results
from model import cli
from model.errors import InputError
from tests.conftest import write_jsonl
from tests.evaluation.conftest import BASE, TRAINED

UNITS = 12
RECORD = {"base_model": "m", "objective": "cita", "steps": 3, "seed": 0, "ablation": True}


def around(value, width=0.05):
    if value is None:
        return Interval(None, None, None)
    return Interval(value, value - width, value + width)


def example(suite="switch", names=("loud", "quiet"), labels=(BASE, TRAINED), **changed):
    """Results as `run` makes them, of values that rise from system to system."""
    columns = {
        "joint": Column("joint", 0.06),
        "column_accuracy": Column("column accuracy", 1 / len(names)),
        "shift": Column("distribution shift", None),
    }
    generator = np.random.default_rng(0)
    per_unit, by_instruction = {}, {}
    for n, label in enumerate(labels):
        noise = 0.1 * generator.standard_normal((3, UNITS))
        per_unit[label] = dict(zip(columns, np.clip(0.2 + 0.15 * n + noise, 0, 1)))
        own = {name: around(None if i == 1 else 0.3 + 0.1 * n) for i, name in enumerate(names)}
        by_instruction[label] = {"joint": own, "column_accuracy": own}
    per_unit[labels[0]]["shift"] = np.full(UNITS, np.nan)
    matrix = (5 * np.eye(len(names)) - 5 / len(names)).tolist()
    matrix[0][-1] = None

    measured = Measured(columns, per_unit, {label: {} for label in labels}, {})
    drawn = statistics.draws(UNITS)
    fields = {
        "suite": suite,
        "reportable": True,
        "units": UNITS,
        "unit": "prompts",
        "headline": "joint",
        "metrics": columns,
        "systems": intervals(measured, drawn),
        "difference": changes(measured, drawn),
        "per_unit": {},
        "bootstrap": {"draws": statistics.DRAWS, "resampled": "prompts", "level": 0.95},
        "config": {"split": "test"},
        "versions": {},
        "by_instruction": by_instruction,
        "tables": (tables.Table("Second", ["<a>", "b"], [["<x>", Interval(0.5, 0.4, 0.6)]]),),
        "notes": ("Two <notes>.",),
        "details": {
            "instructions": list(names),
            "wording": {name: f"Be {name}." for name in names},
            "interaction": {label: matrix for label in labels},
        },
    }
    return Results(**fields | changed)


def write(directory, results):
    directory.mkdir(parents=True, exist_ok=True)
    results.write(directory)
    return directory


ANSWERS = [
    {"prompt": "Rain?", "instruction": "Plain.", "text": "It rains a lot."},
    {"prompt": "Rain?", "instruction": "Loud.", "text": "It rains <b>EVERYWHERE</b>!"},
]


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    """What a run leaves behind, with two suites."""
    path = tmp_path_factory.mktemp("run")
    write(path / "switch", example())
    write(path / "length", example("length"))
    (path / "final").mkdir()
    (path / "final" / "ecliptica.json").write_text(json.dumps(RECORD))
    (path / "config.toml").write_text("[run]\n# <script>")
    steps = [{"step": n, "loss": 1 / (n + 1), "kl": None} for n in range(3)]
    write_jsonl(path / "metrics.jsonl", steps)
    write_jsonl(path / "before.jsonl", ANSWERS)
    write_jsonl(path / "after.jsonl", ANSWERS[:1])
    return path


def test_all_of_a_run(run_directory):
    page = build(run_directory).read_text()
    pictures = {path.stem for path in run_directory.glob("*.png")}
    assert pictures == {
        "switch-bars",
        "switch-instructions",
        "switch-interaction",
        "length-instructions",
        "length-interaction",
        "radar",
        "training",
    }
    assert page.count("data:image/png;base64,") == len(pictures)
    assert "http" not in page and "<script>" not in page, "not self-contained, or not escaped"
    order = ["ABLATION", "rises from", "<h2>Result", "<h2>Length", "<h2>Training"]
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    assert "&lt;x&gt;" in page and "Two &lt;notes&gt;." in page
    assert "NOT REPORTABLE" not in page and "n/a" in page
    assert "Be quiet." in page and "objective cita, 3 steps" in page
    marked = "<span>It rains <mark>&lt;b&gt;EVERYWHERE&lt;/b&gt;!</mark></span>"
    assert marked in page and "33 % other words" in page


def test_a_run_that_was_killed_is_shown_without_its_cut_lines(tmp_path):
    whole = write_jsonl(tmp_path / "metrics.jsonl", [{"step": 0, "loss": 1.0}])
    whole.write_text(whole.read_text() + '{"step": 1, "lo')
    answers = write_jsonl(tmp_path / "after.jsonl", ANSWERS[:1])
    answers.write_text(answers.read_text() + '{"prompt": "Rain?", "te')
    page = build(tmp_path).read_text()
    assert "<h2>Training" in page and "It rains a lot." in page


def test_a_log_with_nothing_but_a_cut_line_is_no_picture(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "lo')
    assert "<h2>Training" not in build(tmp_path).read_text()


def test_each_part_by_itself(tmp_path):
    write(tmp_path / "a", example(labels=(BASE,), reportable=False))
    page = build(tmp_path / "a").read_text()
    assert "NOT REPORTABLE" in page
    assert "minus" not in page and "<h2>Training" not in page
    assert "<b>Joint</b> of prompting-only" in page
    (tmp_path / "b").mkdir()
    plain = [{"prompt": "p", "text": "One."}, {"prompt": "p", "instruction": "i", "text": ""}]
    write_jsonl(tmp_path / "b" / "before.jsonl", plain)
    page = build(tmp_path / "b").read_text()
    assert "(no instruction)" in page and "<img" not in page


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("count, systems", [(2, 1), (100, 1), (13, 4)])
def test_few_and_many(count, systems, tmp_path):
    long = "{n} $x_1$ – très long 指示 name of an instruction {n}"
    names = [long.format(n=n)[: 6 + n] for n in range(count)]
    labels = [BASE, *(f"seed {n} of a run that has a long name" for n in range(1, systems))]
    results = example(names=names, labels=labels)
    # On another scale: in the table only.
    results.systems[labels[-1]]["shift"] = Interval(7.5, 3.0, 9.0)
    page = build(write(tmp_path, results)).read_text()
    assert bars.shares(results) == ["joint", "column_accuracy"]
    assert "7.500" in page
    assert page.count("<img") == 3 + (systems > 2)
    assert ("Differences to prompting-only" in page) == (systems > 2)


@pytest.mark.parametrize(
    "low, high, verb",
    [(0.1, 0.2, "rises"), (-0.2, -0.1, "falls"), (-0.1, 0.2, "does not measurably change")],
)
def test_the_headline_says_what_the_interval_says(low, high, verb):
    results = example()
    results.difference[TRAINED]["joint"] = Change((low + high) / 2, low, high, 0.01, 0.02)
    text = re.sub("<.*?>", "", headline(results))
    assert f"Joint {verb} from" in text.split("Column")[0]


def test_the_radar_has_the_metrics_with_a_chance():
    three = [example("switch"), example("length"), example("honesty")]
    assert [name for _, name in radar.spokes(three)] == ["joint"] * 3
    assert [name for _, name in radar.spokes(three[:1])] == ["joint", "column_accuracy"]
    with figures.style():
        line = radar.radar([(results, "joint") for results in three]).axes[0].lines[1]
    value = three[0].systems[TRAINED]["joint"].value
    assert line.get_ydata() == pytest.approx((value - 0.06) / 0.94)


@pytest.mark.parametrize(
    "answer, plain, want",
    [
        ("a b c", "a b c", ("a b c", 1.0)),
        ("", "a", ("", 1.0)),
        ("a x c d", "a b c", ("a <mark>x</mark> c<mark> d</mark>", 0.5)),
        ("天気は雨", "天気は晴", ("天気は<mark>雨</mark>", 0.75)),
    ],
)
def test_difference_in_words(answer, plain, want):
    assert generations.highlighted(answer, plain) == want


# Tables: one writer of Markdown, and the same rows as HTML


def test_the_tables_of_results_as_markdown():
    results = example(
        systems={
            BASE: {name: Interval(0.25, 0.2, 0.3) for name in ("joint", "column_accuracy")},
            TRAINED: {name: Interval(None, None, None) for name in ("joint", "column_accuracy")},
        },
        difference={
            TRAINED: {
                "joint": Change(0.5, 0.25, 0.75, 0.01, 0.02),
                "column_accuracy": Change(None, None, None, 1.0, 1.0),
            }
        },
        metrics={"joint": Column("joint", 0.0555), "column_accuracy": Column("c | d", None)},
        controls={BASE: {"no instruction": {"joint": around(0.5), "column_accuracy": around(0)}}},
        reportable=False,
    )
    assert str(results).splitlines() == [
        "NOT REPORTABLE: made with --limit.",
        "",
        "| metric | chance | prompting-only | trained | trained - prompting-only |",
        "| --- | --- | --- | --- | --- |",
        "| joint | 0.0555 | 0.250 [0.200, 0.300] | n/a | 0.500 [0.250, 0.750] p=0.02 |",
        r"| c \| d | - | 0.250 [0.200, 0.300] | n/a | n/a p=1 |",
        "",
        "12 prompts; 95 % intervals, 2000 draws, prompts resampled, the same draws for every "
        "system; p: paired sign-flip test (of a ratio: systems swapped within units), Holm over "
        "this table.",
        "",
        "Controls.",
        "",
        r"| system, condition | joint | c \| d |",
        "| --- | --- | --- |",
        "| prompting-only, no instruction | 0.500 [0.450, 0.550] | 0.000 [-0.050, 0.050] |",
        "",
        "Second.",
        "",
        "| <a> | b |",
        "| --- | --- |",
        "| <x> | 0.500 [0.400, 0.600] |",
        "",
        "Two <notes>.",
    ]


def test_a_typed_table_as_html():
    table = tables.Table("T", ["<a>", "b - c"], [["x | y", Change(0.5, 0.25, 0.75, 0.01, 0.02)]])
    assert of_table(table) == (
        "<h3>T</h3><div class=scroll><table><tr><th>&lt;a&gt;</th><th>b − c</th></tr>"
        "<tr><td>x | y</td><td class=n>+0.500 <small>[+0.250, +0.750]</small><br>"
        "<small>p = 0.02</small></td></tr></table></div>"
    )


# What cannot be reported


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "nothing to report; expected results.json"),
        ("{", "results.json: not valid JSON"),
        ("[]", "results.json: expected a JSON object"),
        ('{"suite": "switch", "chance": {}}', "results.json: no 'reportable' in it; expected what"),
    ],
)
def test_bad_directories_are_one_line(content, message, tmp_path, capsys):
    if content:
        (tmp_path / "results.json").write_text(content)
    assert cli.run(report.main, [str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error
    assert not (tmp_path / "report.html").exists()


def test_no_directory_is_one_line(tmp_path, capsys):
    assert cli.run(report.main, [str(tmp_path / "nowhere")]) == 2
    assert "no such directory" in capsys.readouterr().err


def test_without_matplotlib(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    write(tmp_path, example())
    with pytest.raises(InputError, match="plots need matplotlib .*: pip install matplotlib"):
        build(tmp_path)
    assert not (tmp_path / "report.html").exists()
