"""ECLIPTICA-30k through answers, the published metrics and ours: no reference responses needed."""

import json

import pytest

import eval as evaluate
from ecliptica.evaluation.metrics import published
from model import cli
from tests.conftest import write_jsonl
from tests.evaluation.conftest import BASE, lines_of, run_command
from tests.published_bank import AXES, PROMPTS, rows, taxonomy, texts_of, write_parquet
from tests.published_bank import write_taxonomy as write_yaml

NAMES = [name for _, names in AXES.values() for name in names]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    path = tmp_path_factory.mktemp("published")
    write_parquet(path / "bank.parquet", rows())
    write_yaml(path / "taxonomy.yaml", taxonomy())
    return path


@pytest.fixture(scope="module")
def answers(files, tiny):
    """What the tiny model answers to all of it."""
    out = files / "answers.jsonl"
    command = ["isd-generate", "--model", tiny, "--template", "chatml", "--out", out]
    command += ["--max-new-tokens", "6", *bank(files)]
    evaluate.main([str(word) for word in command])
    return out


def bank(files):
    return ["--bank", files / "bank.parquet", "--instructions", files / "taxonomy.yaml"]


def test_the_grid_is_answered(answers):
    lines = lines_of(answers)
    places = {(line["prompt"], line["instruction"]) for line in lines}
    assert len(lines) == len(places) == len(PROMPTS) * len(NAMES)
    assert {line["i"] for line in lines} == {texts_of(name)[2] for name in NAMES}


def written(path):
    """Answers of known worth: each says its type's tags and, but for maps, its prompt's word."""
    lines = []
    for number, what in enumerate(PROMPTS):
        for name in NAMES:
            said = "nothing" if what == "maps" else what
            text = f"{said} {name}" + " and so it goes on" * (3 * (name == "plain"))
            names = {"condition": "instruction", "prompt": str(number), "instruction": name}
            line = {"system": BASE, "key": "k", "wording": 3, "r": text, "truncated": False}
            lines.append(line | names)
    return write_jsonl(path, lines)


def test_the_published_metrics_and_ours_have_the_values_of_the_formulas(files, tmp_path):
    data = written(tmp_path / "a.jsonl")
    command = ["fidelity", "--data", data, "--out", tmp_path / "out", *bank(files)]
    evaluate.main([str(word) for word in command])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    found = {name: cell["value"] for name, cell in results["systems"][BASE].items()}

    # Three prompts of four name themselves; of the last all four are as far.
    assert found["prompt"] == pytest.approx(3 / 4 + 1 / 4 / 4)
    assert found["loops"] == pytest.approx(1 / 5)
    prototypes = published.prototypes(
        {name: [*texts_of(name), f"{name} tone", "kept", "clear"] for name in NAMES}
    )
    lines = lines_of(data)
    of = {(line["prompt"], line["instruction"]): line["r"] for line in lines}
    each = [published.fidelity(text, prototypes[name]) for (_, name), text in of.items()]
    assert found["published_fidelity"] == pytest.approx(sum(each) / len(each))
    shifts = [published.shift([of[str(n), name] for name in NAMES]) for n in range(len(PROMPTS))]
    assert found["published_shift"] == pytest.approx(sum(shifts) / len(shifts))

    # Apart by axis and by kind: here one axis a kind.
    report = (tmp_path / "out" / "table.md").read_text()
    for words in ("By axis", "By kind of axis", "| stance | 2 |", "| surface | 3 |"):
        assert words in report, words
    assert "instruction" not in found and "both" not in found


@pytest.mark.parametrize("suite, metric", [("shift", "ratio"), ("scale", "candidates_5")])
def test_ours_read_the_answers_in_place_of_references(
    suite, metric, files, answers, tmp_path, tiny
):
    options = ["--answers", answers, *bank(files)]
    if suite == "scale":
        options += ["--sizes", "5"]
    results = run_command(suite, tiny, tmp_path / suite, *options)
    cell = results["systems"][BASE][metric]
    assert results["units"] == len(PROMPTS) and cell["low"] <= cell["value"] <= cell["high"]


def test_a_bank_without_references_says_what_is_missing(files, tiny, tmp_path, capsys):
    command = ["shift", "--model", tiny, "--template", "chatml", "--out", tmp_path, *bank(files)]
    assert cli.run(evaluate.main, [str(word) for word in command]) == 2
    assert "give the answers that isd-generate wrote as --answers" in capsys.readouterr().err
