"""The suite `pairs` on systems whose true value is known, and on files in the shape of two kinds
of public benchmark (original texts)."""

from pathlib import Path

import pytest

from model.errors import InputError
from tests.conftest import write_jsonl
from tests.evaluation.conftest import BASE, Formula, lines_of, results_of, run_command, values

FIXTURES = Path(__file__).parent.parent / "fixtures"
FILES = ("principles", "personas")


@pytest.fixture(params=FILES)
def file(request):
    return FIXTURES / f"{request.param}.jsonl"


class ByWords(Formula):
    """As many tokens as words."""

    def line(self, question):
        return super().line(question) | {"tokens": len(question.response.split())}


def judge_of(file):
    """{(instruction, prompt): the best response}."""
    best = {}
    for record in lines_of(file):
        instruction = record.get("instruction") or record.get("principle")
        best[instruction, record["prompt"]] = record["responses"][record["best"]]
    return best


def chance_of(file):
    records = lines_of(file)
    return sum(1 / len(record["responses"]) for record in records) / len(records)


def test_a_model_that_knows_the_judge(file):
    """Right by PMI only: a prior of 9 nats a word goes before the 5 that the judgement gives."""
    best = judge_of(file)

    def formula(instruction, prompt, response):
        return 5 * (best.get((instruction, prompt)) == response) - 9 * len(response.split())

    results = results_of("pairs", formula, kind=ByWords, data=str(file))
    found = values(results)
    records = lines_of(file)
    shortest = [
        min(range(len(r["responses"])), key=lambda n: len(r["responses"][n].split()))
        for r in records
    ]
    by_length = sum(n == r["best"] for n, r in zip(shortest, records)) / len(records)
    assert found == {"pmi": 1, "likelihood": by_length, "length_normalised": 1}
    assert results.metrics["pmi"].chance == pytest.approx(chance_of(file))
    for condition in ("prompt only", "principle only"):
        own = results.controls[BASE][condition]
        assert own["pmi"].value == pytest.approx(chance_of(file)), condition
        assert own["likelihood"].value == pytest.approx(by_length), condition


def test_the_controls_find_what_gives_the_judgement_away(file):
    """A model that reads the prompt alone is as good without the instruction, and at chance
    without the prompt; and the other way round."""
    best = judge_of(file)
    by_prompt = {prompt: response for (_, prompt), response in best.items()}
    by_instruction = {instruction: response for (instruction, _), response in best.items()}

    def reads_prompt(instruction, prompt, response):
        return float(by_prompt.get(prompt) == response)

    def reads_instruction(instruction, prompt, response):
        return float(by_instruction.get(instruction) == response)

    blind = pytest.approx(chance_of(file))
    for formula, alone, without in (
        (reads_prompt, "prompt only", "principle only"),
        (reads_instruction, "principle only", "prompt only"),
    ):
        results = results_of("pairs", formula, data=str(file))
        own = results.controls[BASE]
        assert values(results)["pmi"] == own[alone]["pmi"].value == 1, alone
        assert own[without]["pmi"].value == blind, without


def test_pairs_from_the_command_line(file, tiny, tmp_path, capsys):
    results = run_command("pairs", tiny, tmp_path, "--data", file)
    assert results["units"] == 4 and results["unit"] == "records"
    for name in ("pmi", "likelihood", "length_normalised"):
        cell = results["systems"][BASE][name]
        assert 0 <= cell["low"] <= cell["value"] <= cell["high"] <= 1, name
    shown = capsys.readouterr().out
    assert "best by PMI" in shown and "principle only" in shown


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"principle": "Too."}, "expected one of 'instruction' and 'principle', got instruction"),
        ({"instruction": None}, "got neither"),
        ({"responses": ["a"]}, "'responses' must be a list of at least 2"),
        ({"responses": ["a", "a"]}, "two of 'responses' are equal"),
        ({"best": 2}, "'best' must be a number from 0 to 1, .* got 2"),
        ({"best": True}, "got True"),
    ],
)
def test_a_wrong_line_is_named(changes, message, tmp_path):
    line = {"instruction": "I", "prompt": "x", "responses": ["a", "b"], "best": 0}
    path = write_jsonl(tmp_path / "d.jsonl", [line | changes])
    with pytest.raises(InputError, match=f"d.jsonl:1: .*{message}"):
        results_of("pairs", lambda i, x, y: 0.0, data=str(path))
