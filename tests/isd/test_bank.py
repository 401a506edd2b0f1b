"""The shipped dataset loads, keeps its promises, and is read with one clear line for each fault;
the commands."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from ecliptica.isd import __main__ as isd
from ecliptica.isd import sets
from ecliptica.isd.bank import (
    BANK,
    INSTRUCTIONS,
    MORE_INSTRUCTIONS,
    Entry,
    load_axes,
    load_bank,
    load_instructions,
    referenced,
)
from model import cli
from model.errors import InputError
from tests.conftest import ROOT, write_jsonl

LINE = {
    "id": "a",
    "prompt": "Hi?",
    "domain": "d",
    "split": "test",
    "responses": {"x": "1", "y": "2"},
}


@pytest.fixture(scope="module")
def bank():
    return load_bank(BANK, load_instructions())


def test_size_and_splits(bank):
    assert len(bank) == 500
    assert set(Counter(entry.domain for entry in bank).values()) == {25}
    assert Counter(entry.split for entry in bank) == {"train": 200, "dev": 60, "test": 240}
    entries, instructions = referenced(bank, load_instructions()), load_instructions()
    assert Counter(entry.split for entry in entries) == {"train": 80, "dev": 20, "test": 100}
    assert all(list(entry.responses) == list(instructions) for entry in entries)
    for domain in {entry.domain for entry in bank}:
        own = Counter(
            (entry.split, bool(entry.responses)) for entry in bank if entry.domain == domain
        )
        assert own == {
            ("train", True): 4,
            ("dev", True): 1,
            ("test", True): 5,
            ("train", False): 6,
            ("dev", False): 2,
            ("test", False): 7,
        }
    lines = [
        line
        for path in BANK.glob("*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    assert all(set(json.loads(line)) == set(Entry.__dataclass_fields__) for line in lines)


def test_no_response_quotes_its_instruction(bank):
    for name, paraphrases in load_instructions().items():
        for entry in referenced(bank):
            assert "\n" not in entry.responses[name]
            assert all(text.lower() not in entry.responses[name].lower() for text in paraphrases)


def test_a_bank_is_a_file_or_a_directory_and_responses_may_be_missing(tmp_path):
    (tmp_path / "bank").mkdir()
    bare = {key: value for key, value in LINE.items() if key != "responses"}
    write_jsonl(tmp_path / "bank" / "b.jsonl", [LINE])
    write_jsonl(
        tmp_path / "bank" / "a.jsonl",
        [bare | {"id": "b"}, bare | {"id": "c", "responses": {}, "source": "news"}],
    )
    entries = load_bank(tmp_path / "bank", {"x": ["1"], "y": ["2"]})
    assert [entry.id for entry in entries] == ["b", "c", "a"]
    assert [entry.id for entry in referenced(entries)] == ["a"]
    assert entries[1].source == "news"
    assert entries[0].source == entries[0].licence == ""
    assert entries[0].responses == {}
    assert load_bank(tmp_path / "bank" / "b.jsonl") == [entries[2]]
    with pytest.raises(InputError, match="a: no response to the instruction 'z'"):
        referenced(entries, ["x", "z"])


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"responses": ["1"]},
            r"m.jsonl:2: 'responses' must be an object of instruction id to text, got list",
        ),
        (
            {"responses": {"z": "1"}},
            r"m.jsonl:2: responses has the instruction id 'z'; the instructions file has x, y",
        ),
        ({"responses": {"x": " "}}, r"m.jsonl:2: 'x' is empty"),
        (
            {"split": "holdout"},
            r"m.jsonl:2: 'split' must be one of train, dev, test, got 'holdout'",
        ),
        ({"source": 3}, r"m.jsonl:2: 'source' must be a string, got int"),
        ({"prompt": ""}, r"m.jsonl:2: 'prompt' is empty"),
        ({"id": "a"}, r"m.jsonl:2: the id 'a' occurs twice, first at .*m.jsonl:1"),
    ],
)
def test_a_bad_line_is_named(change, message, tmp_path):
    write_jsonl(tmp_path / "m.jsonl", [LINE, LINE | {"id": "b"} | change])
    with pytest.raises(InputError, match=message):
        load_bank(tmp_path, {"x": ["1"], "y": ["2"]})


def test_an_empty_directory_is_named(tmp_path):
    with pytest.raises(InputError, match="no .jsonl file in this directory"):
        load_bank(tmp_path)


def test_further_instructions_stand_on_axes(tmp_path):
    axes = load_axes(MORE_INSTRUCTIONS)
    assert len(load_instructions(MORE_INSTRUCTIONS)) == len(axes) == 90
    assert len(set(axes.values())) == 10
    assert not set(axes) & set(load_instructions())
    assert set(load_axes(INSTRUCTIONS).values()) == {None}
    (tmp_path / "i.toml").write_text(
        'top = ["1"]\n[alone]\nparaphrases = ["2"]\n'
        '[axis]\none = ["3"]\n[axis.two]\nparaphrases = ["4"]\n'
    )
    assert load_instructions(tmp_path / "i.toml") == {
        "top": ("1",),
        "alone": ("2",),
        "one": ("3",),
        "two": ("4",),
    }
    assert load_axes(tmp_path / "i.toml") == {
        "top": None,
        "alone": None,
        "one": "axis",
        "two": "axis",
    }
    for content, message in (
        ('x = ["1"]\n[a]\nx = ["2"]', "the instruction x occurs in two axes"),
        ('x = ["1"]\n[a]\ny = "2"', "y must be a list"),
        ('x = ["1"]', "switching needs at least two"),
        ("x =", "not valid TOML"),
    ):
        (tmp_path / "i.toml").write_text(content)
        with pytest.raises(InputError, match=message):
            load_instructions(tmp_path / "i.toml")


SETS = {
    "safety": {
        "id": "a",
        "kind": "k",
        "class": "harmful",
        "prompt": "p",
        "refusal": "r",
        "compliance": "c",
    },
    "honesty": {
        "id": "a",
        "kind": "k",
        "class": "answerable",
        "prompt": "p",
        "answer": "a",
        "abstention": "b",
    },
    "override": {"id": "a", "strength": "mild", "attack": "a", "harmless": "h"},
    "length": {"id": "a", "prompt": "p"},
    "capability": {"id": "a", "kind": "k", "text": "t"},
}


@pytest.mark.parametrize("name", SETS)
def test_sets_are_typed_and_validated(name, tmp_path):
    load, path, good = getattr(sets, f"load_{name}"), tmp_path / "s.jsonl", SETS[name]
    (item,) = load(write_jsonl(path, [good]))
    assert item.id == "a"
    assert item.licence == ""
    assert all(entry.author and entry.licence == "CC-BY-4.0" for entry in load())
    for key in good:
        with pytest.raises(InputError, match=rf"s.jsonl:1: the field '{key}' is missing"):
            load(write_jsonl(path, [{k: v for k, v in good.items() if k != key}]))
    with pytest.raises(InputError, match=r"s.jsonl:2: the id 'a' occurs twice"):
        load(write_jsonl(path, [good, good]))
    for key in {"class", "strength"} & set(good):
        with pytest.raises(InputError, match=rf"s.jsonl:1: '{key}' must be one of .*, got 'other'"):
            load(write_jsonl(path, [good | {key: "other"}]))


def test_policies_and_underspecified_instructions(tmp_path):
    assert list(sets.load_policies(sets.SETS / "safety_policies.toml")) == ["strict", "permissive"]
    assert list(sets.load_underspecified(names=load_instructions())) == list(load_instructions())
    (tmp_path / "u.toml").write_text('[x]\ndropped = ["a"]\nvague = ["b"]\n')
    assert sets.load_underspecified(tmp_path / "u.toml") == {
        "x": {"dropped": ("a",), "vague": ("b",)}
    }
    with pytest.raises(InputError, match="y is in one of the two only"):
        sets.load_underspecified(tmp_path / "u.toml", ["x", "y"])
    (tmp_path / "u.toml").write_text('[x]\ndropped = ["a"]\n')
    with pytest.raises(InputError, match="x.vague must be a list"):
        sets.load_underspecified(tmp_path / "u.toml")


def test_show(capsys):
    assert cli.run(isd.main, ["show", "technology-05"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("technology-05: test, technology, news, question")
    assert all(f"\n{name}\n    " in shown for name in load_instructions())
    assert cli.run(isd.main, ["show", "technology-11"]) == 0
    assert "no reference responses" in capsys.readouterr().out
    assert cli.run(isd.main, ["show", "nobody"]) == 2
    assert "no such id" in capsys.readouterr().err


def test_a_reader_that_goes_away_gets_no_traceback():
    process = subprocess.Popen(
        [sys.executable, "-m", "ecliptica.isd", "show", "technology-05"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    complaint, status = process.stderr.read(), process.wait()
    assert complaint == ""
    assert status == 141
