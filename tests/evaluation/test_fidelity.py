"""What is measured on generated answers, on synthetic models whose true value is known, and the
suite that reads them."""

import json

import numpy as np
import pytest

import eval as evaluate
from ecliptica.evaluation.judge import Judge
from ecliptica.evaluation.metrics.generation_fidelity import (
    Classifier,
    Retrieval,
    other_prompts,
)
from ecliptica.isd.bank import BANK, INSTRUCTIONS, Entry, load_bank, load_instructions
from ecliptica.isd.instruction_classifier import features
from model import cli
from tests.conftest import write_jsonl
from tests.evaluation.conftest import BASE, TRAINED

NAMES = ("loud", "quiet", "sly")
TOPICS = ("rain", "bread", "chess", "maps", "bees", "soup", "trains", "snow", "clocks", "ferries")
MARKS = {"loud": "shout bang crash", "quiet": "hush softly calm", "sly": "wink maybe perhaps"}
# Ten prompts a domain, two of them for training; references of an instruction's mark and a
# prompt's topic.
ENTRIES = [
    Entry(
        f"{d}-{topic}",
        f"Tell me of {topic}{d}.",
        f"d{d}",
        "train" if n < 2 else "test",
        {j: f"{MARKS[j]} {topic}{d} {topic}{d} here" for j in NAMES},
    )
    for d in range(4)
    for n, topic in enumerate(TOPICS)
]
JUDGE = Judge(ENTRIES, list(NAMES), "bank")
CHANCE = {"both": 1 / 30, "instruction": 1 / 3, "prompt": 1 / 10}


def fidelity(answer):
    """Mean of each metric of a model that is a function (entry, instruction) -> text."""
    rows = []
    for entry in ENTRIES:
        lines = {j: {"r": answer(entry, j), "truncated": False} for j in NAMES}
        rows.append(JUDGE.values(entry.id, lines)[0])
    return {name: float(np.mean([row[name] for row in rows])) for name in CHANCE}


def about(both, instruction, prompt):
    want = {"both": both, "instruction": instruction, "prompt": prompt}
    return pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize(
    "answer, want",
    [
        (lambda e, j: f"{MARKS[j]}, {e.prompt}", about(1, 1, 1)),
        (lambda e, j: ENTRIES[0].responses[j], about(0.1, 1, 0.1)),
        (lambda e, j: MARKS[j], about(0.1, 1, 0.1)),
        (lambda e, j: f"{MARKS['quiet']} {e.prompt}", about(1 / 3, 1 / 3, 1)),
        (lambda e, j: f"Be {j}.", about(1 / 30, 1 / 3, 0.1)),
        (lambda e, j: e.prompt, about(1 / 3, 1 / 3, 1)),
        (lambda e, j: "", about(0, 0, 0)),
        (lambda e, j: " \n", about(0, 0, 0)),
        (lambda e, j: f"{MARKS[NAMES[NAMES.index(j) - 1]]} {e.prompt}", about(0, 0, 1)),
    ],
    ids=[
        "right",
        "one reference whatever the prompt",
        "a canned answer an instruction",
        "ignores the instruction",
        "copies the instruction",
        "copies the prompt",
        "says nothing",
        "says white space",
        "switches the wrong way",
    ],
)
def test_fidelity_of_models_that_are_known(answer, want):
    assert fidelity(answer) == want


def test_fidelity_of_a_random_model_is_at_chance():
    assert JUDGE.chance == CHANCE and JUDGE.accuracy == 1
    generator = np.random.default_rng(0)

    def anything(entry, j):
        other = ENTRIES[generator.integers(40)]
        return other.responses[NAMES[generator.integers(3)]]

    rounds = [fidelity(anything) for _ in range(8)]
    means = {name: np.mean([each[name] for each in rounds]) for name in CHANCE}
    assert means == pytest.approx(CHANCE, abs=0.06)


def test_classifier_against_bayes_by_hand():
    classifier = Classifier(["red fox", "blue whale"], ["r", "b"])
    assert classifier.shares("red") == {"r": 1, "b": 0}
    assert classifier.shares("blue") == {"r": 0, "b": 1}
    assert classifier.shares("") == {"r": 0, "b": 0}
    assert classifier.shares("unheard") == {"r": 0.5, "b": 0.5}
    counts = features("red fox")
    total = counts.total() + len(classifier.column)
    got = {name: classifier.logp_FK[classifier.column[name], 0] for name in counts}
    assert got == pytest.approx({name: np.log((n + 1) / total) for name, n in counts.items()})
    whale = classifier.logp_FK[classifier.column["whale"], 0]
    assert whale == pytest.approx(-np.log(total))


def test_retrieval_ignores_common_words():
    prompts = {"a": "the old bridge", "b": "the new school", "c": "the tall tower"}
    retrieval = Retrieval({id: (text, []) for id, text in prompts.items()})
    assert retrieval.share("a bridge, the bridge", "a", ["b", "c"]) == 1
    assert retrieval.share("the", "a", ["b", "c"]) == pytest.approx(1 / 3)


def test_a_prompt_without_references_is_not_told_by_the_length_of_its_document():
    documents = {"a": ("rain", ["bread soup"] * 5), "b": ("bread", []), "c": ("soup", [])}
    retrieval = Retrieval(documents)
    assert retrieval.share("bread, soup", "b", ("a", "c")) == 0.5
    assert retrieval.share("bread, soup", "a", ("b", "c")) == 0


def test_a_prompt_is_told_from_those_of_its_domain_with_references_as_it_has():
    bank = []
    for n in range(40):
        responses = {"x": "y"} if n % 3 == 0 else {}
        split = "test" if n < 12 else "train"
        bank.append(Entry(f"{n}", "p", "ab"[n % 2], split, responses))
    nearest = other_prompts(bank[0], bank)
    assert all(int(id) % 2 == 0 for id in nearest), "another domain"
    assert nearest[:2] == ["6", "12"]
    assert other_prompts(bank[2], bank)[:3] == ["4", "8", "10"]


def test_the_classifier_of_the_shipped_bank_names_references_it_has_not_seen():
    instructions = list(load_instructions(INSTRUCTIONS))
    judge = Judge(load_bank(BANK, instructions), instructions, "bank")
    assert judge.accuracy > 0.88
    worst = min(judge.confusion[j][j] for j in instructions)
    assert worst > 0.7
    for j, row in judge.confusion.items():
        assert sum(row.values()) == pytest.approx(1), j


# The suite


def written(path, change=lambda line: [line]):
    """What isd-generate would write for a good model, of which the trained one falls silent in the
    second wording; with its scrambled prompts."""
    entries = [entry for entry in ENTRIES if entry.split == "test"]
    lines = []
    for condition in ("instruction", "scrambled prompt"):
        for label in (TRAINED, BASE):
            for wording in (1, 2):
                for n, entry in enumerate(entries):
                    asked = entries[n - 16] if condition == "scrambled prompt" else entry
                    silent = label == TRAINED and wording == 2
                    for j in NAMES:
                        line = {
                            "system": label,
                            "key": label,
                            "condition": condition,
                            "prompt": entry.id,
                            "instruction": j,
                            "wording": wording,
                            "truncated": wording == 2,
                            "r": "" if silent else f"{MARKS[j]} {asked.prompt}",
                        }
                        lines += change(line)
    return write_jsonl(path, lines)


def suite(tmp_path, data, *options):
    """(results.json, table.md) of the suite on these answers."""
    entries = [{key: value for key, value in vars(e).items() if value} for e in ENTRIES]
    bank = write_jsonl(tmp_path / "b.jsonl", entries)
    texts = "".join(f'{j} = ["Be {j}.", "Sound {j}!", "As if {j}"]\n' for j in NAMES)
    (tmp_path / "i.toml").write_text(texts)
    words = ["fidelity", "--data", data, "--bank", bank, "--instructions", tmp_path / "i.toml"]
    evaluate.main([str(word) for word in [*words, "--out", tmp_path / "out", *options]])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    return results, (tmp_path / "out" / "table.md").read_text()


def test_fidelity_suite(tmp_path):
    results, table = suite(tmp_path, written(tmp_path / "g.jsonl"))

    def values(label, *names):
        return [results["systems"][label][name]["value"] for name in names]

    assert list(results["systems"]) == [BASE, TRAINED]
    assert results["units"] == 32 and results["reportable"]
    assert values(BASE, "both", "instruction", "prompt", "cut") == [1, 1, 1, 0.5]
    # Of two wordings the silent one counts.
    assert values(TRAINED, "both", "instruction", "prompt") == [0.5] * 3
    assert results["difference"][TRAINED]["both"]["value"] == -0.5
    assert results["by_instruction"][TRAINED]["both"]["sly"]["value"] == 0.5
    scrambled = results["controls"][BASE]["scrambled prompt"]
    assert scrambled["prompt"]["value"] == pytest.approx(0.1, abs=0.05)
    assert scrambled["instruction"]["value"] == 1
    assert results["confusion"]["loud"] == {"loud": 1, "quiet": 0, "sly": 0}
    assert "| prompting-only, scrambled prompt |" in table
    assert "as published: M1" in table


def test_fidelity_with_a_limit_and_of_an_ablation_is_stamped(tmp_path):
    def ablated(line):
        return [line | ({"ablation": True} if line["system"] == TRAINED else {})]

    data = written(tmp_path / "g.jsonl", ablated)
    results, table = suite(tmp_path, data, "--limit", "3")
    assert results["units"] == 3
    assert table.startswith("NOT REPORTABLE") and "ABLATION" in table


def test_a_condition_that_one_system_did_not_answer_is_no_row_of_its_controls(tmp_path):
    def only_base(line):
        dropped = line["system"] == TRAINED and line["condition"] == "scrambled prompt"
        return [] if dropped else [line]

    results, _ = suite(tmp_path, written(tmp_path / "g.jsonl", only_base))
    assert list(results["controls"]) == [BASE]


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda line: (
                [] if (line["prompt"], line["instruction"]) == ("3-maps", "sly") else [line]
            ),
            "has not answered 3-maps (wording 1) under every instruction; finish isd-generate",
        ),
        (
            lambda line: [line, line | {"key": "other"}],
            "answers of trained from two models or settings, keys trained and other",
        ),
        (
            lambda line: [line | {"prompt": "9-none"}],
            "'9-none', 'loud': expected a prompt of the bank",
        ),
        (lambda line: [{**line, "r": None}], ":1: expected 'r' (text)"),
        (
            lambda line: [line | {"condition": "no instruction"}],
            "no answer under the condition 'instruction'",
        ),
    ],
)
def test_a_bad_file_is_one_line(change, message, tmp_path, capsys):
    data = written(tmp_path / "g.jsonl", change)
    assert cli.run(lambda _: suite(tmp_path, data), None) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error, error
