"""The report: whatever is in the directory is shown, what is not is left out, nothing is one clear line."""

import builtins
import json
import re

import numpy as np
import pytest

from ecliptica.evaluation import compare, plots, report
from model import cli
from model.errors import InputError
from tests.conftest import write_jsonl


def summary(value, width=0.05):
    return (
        {"value": None, "low": None, "high": None}
        if value is None
        else {"value": value, "low": value - width, "high": value + width}
    )


def example(
    suite="switch", names=("loud", "quiet"), labels=("prompting-only", "trained"), **changes
):
    """results.json as compare.report makes it, of values that rise from system to system."""
    metrics = {
        "joint": ("joint", 0.06),
        "column_accuracy": ("column accuracy", 1 / len(names)),
        "shift": ("distribution shift", None),
    }
    args = type("Args", (), {"limit": None, "split": "test"})()
    generator = np.random.default_rng(0)
    found = {
        label: {
            name: np.clip(0.2 + 0.15 * n + 0.1 * generator.standard_normal(12), 0, 1)
            for name in metrics
        }
        for n, label in enumerate(labels)
    }
    found[labels[0]]["shift"] = np.full(12, np.nan)
    apart = {
        label: {
            metric: {
                name: summary(None if i == 1 else 0.3 + 0.1 * n) for i, name in enumerate(names)
            }
            for metric in ("joint", "column_accuracy")
        }
        for n, label in enumerate(labels)
    }
    matrix = (5 * np.eye(len(names)) - 5 / len(names)).tolist()
    matrix[0][-1] = None
    results = compare.report(
        suite,
        args,
        metrics,
        found,
        12,
        instructions=list(names),
        wording={name: f"Be {name}." for name in names},
        by_instruction=apart,
        interaction={label: matrix for label in labels},
        notes=["\nTwo lines.", "| a | b |", "| --- | --- |", "| <x> | 0.5 [0.4, 0.6] |"],
    )
    return results | {"config": {"split": "test"}} | changes


def write(directory, results):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(json.dumps(results))
    return directory


def test_all_of_a_run(tmp_path):
    write(tmp_path / "switch", example())
    write(tmp_path / "length", example("length"))
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "ecliptica.json").write_text(
        json.dumps(
            {"base_model": "m", "objective": "cita", "steps": 3, "seed": 0, "ablation": True}
        )
    )
    (tmp_path / "config.toml").write_text("[run]\n# <script>")
    write_jsonl(
        tmp_path / "metrics.jsonl", [{"step": n, "loss": 1 / (n + 1), "kl": None} for n in range(3)]
    )
    said = [
        {"prompt": "Rain?", "instruction": i, "text": t}
        for i, t in (("Plain.", "It rains a lot."), ("Loud.", "It rains <b>EVERYWHERE</b>!"))
    ]
    write_jsonl(tmp_path / "before.jsonl", said)
    write_jsonl(tmp_path / "after.jsonl", said[:1])
    page = report.build(tmp_path).read_text()
    pngs = {path.stem for path in tmp_path.glob("*.png")}
    assert pngs == {
        "switch-bars",
        "switch-instructions",
        "switch-interaction",
        "length-instructions",
        "length-interaction",
        "radar",
        "training",
    }
    assert (
        page.count("data:image/png;base64,") == len(pngs)
        and "http" not in page
        and "<script>" not in page
    )
    assert (
        page.index("ABLATION")
        < page.index("rises from")
        < page.index("<h2>Result")
        < page.index("<h2>Length")
        < page.index("<h2>Training")
    )
    assert "&lt;x&gt;" in page and "NOT REPORTABLE" not in page and "n/a" in page
    assert (
        "<span>It rains <mark>&lt;b&gt;EVERYWHERE&lt;/b&gt;!</mark></span>" in page
        and "33 % other words" in page
    )


def test_each_part_by_itself(tmp_path):
    write(tmp_path / "a", example(labels=("prompting-only",), reportable=False))
    page = report.build(tmp_path / "a").read_text()
    assert (
        "NOT REPORTABLE" in page
        and "minus" not in page
        and "<b>Joint</b> of prompting-only" in page
        and "<h2>Training" not in page
    )
    (tmp_path / "b").mkdir()
    write_jsonl(
        tmp_path / "b" / "before.jsonl",
        [{"prompt": "p", "text": "One."}, {"prompt": "p", "instruction": "i", "text": ""}],
    )
    page = report.build(tmp_path / "b").read_text()
    assert "(no instruction)" in page and "<img" not in page


@pytest.mark.parametrize("count, labels", [(2, 1), (100, 2), (13, 5)])
def test_few_and_many(count, labels, tmp_path):
    names = [
        f"{n} $x_1$ – très long 指示 name of an instruction {n}"[: 6 + n] for n in range(count)
    ]
    results = example(
        names=names,
        labels=[
            "prompting-only",
            *(f"seed {n} of a run that has a long name" for n in range(1, labels)),
        ],
    )
    results["systems"][list(results["systems"])[-1]]["shift"] = {
        "value": 7.5,
        "low": 3.0,
        "high": 9.0,
    }  # on another scale: in the table only
    write(tmp_path, results)
    page = report.build(tmp_path).read_text()
    assert (
        plots.shares(results) == ["joint", "column_accuracy"]
        and "7.500" in page
        and page.count("<img") == 3 + (labels > 2)
    )
    assert "Differences to prompting-only" in page or labels <= 2


def test_the_headline_says_what_the_interval_says():
    def said(low, high):
        results = example()
        results["difference"]["trained"]["joint"] = {
            "value": (low + high) / 2,
            "low": low,
            "high": high,
            "p": 0.01,
            "p_holm": 0.02,
        }
        return re.sub("<.*?>", "", report.headline(results)).split("Column")[0]

    assert (
        "Joint rises" in said(0.1, 0.2)
        and "Joint falls" in said(-0.2, -0.1)
        and "does not measurably change" in said(-0.1, 0.2)
    )


def test_the_radar_has_the_metrics_with_a_chance(tmp_path):
    three = [example("switch"), example("length"), example("honesty")]
    assert [name for _, name in plots.radar_axes(three)] == ["joint"] * 3
    assert [name for _, name in plots.radar_axes(three[:1])] == ["joint", "column_accuracy"]
    with plots.style():
        line = plots.radar([(results, "joint") for results in three]).axes[0].lines[1]
    want = (three[0]["systems"]["trained"]["joint"]["value"] - 0.06) / 0.94
    assert line.get_ydata() == pytest.approx(want)


def test_difference_in_words():
    assert report.highlighted("a b c", "a b c") == ("a b c", 1.0) and report.highlighted(
        "", "a"
    ) == ("", 1.0)
    assert report.highlighted("a x c d", "a b c") == ("a <mark>x</mark> c<mark> d</mark>", 0.5)
    assert report.highlighted("天気は雨", "天気は晴") == ("天気は<mark>雨</mark>", 0.75)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "nothing to report; expected results.json"),
        ("{", "results.json: not valid JSON"),
        ("[]", "results.json: no 'suite' in it"),
        (
            '{"suite": "switch", "chance": {}}',
            "results.json: no 'reportable' in it; expected what eval.py writes: run the suite again",
        ),
    ],
)
def test_bad_directories_are_one_line(content, message, tmp_path, capsys):
    if content:
        (tmp_path / "results.json").write_text(content)
    assert (
        cli.run(report.main, [str(tmp_path)]) == 2
        and cli.run(report.main, [str(tmp_path / "nowhere")]) == 2
    )
    first, second = capsys.readouterr().err.splitlines()
    assert (
        message in first
        and "no such directory" in second
        and not (tmp_path / "report.html").exists()
    )


def test_without_matplotlib(tmp_path, monkeypatch):
    real = builtins.__import__
    monkeypatch.setattr(
        builtins,
        "__import__",
        lambda name, *rest: (
            (_ for _ in ()).throw(ImportError(name))
            if name.startswith("matplotlib")
            else real(name, *rest)
        ),
    )
    write(tmp_path, example())
    with pytest.raises(InputError, match="plots need matplotlib .*: pip install matplotlib"):
        report.build(tmp_path)
    assert not (tmp_path / "report.html").exists()
