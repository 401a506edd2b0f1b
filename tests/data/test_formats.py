"""What each format reads, and how each bad line is named."""

import json

import pytest

from ecliptica.data import formats
from model.errors import InputError
from tests.conftest import write_jsonl

GOOD = {"instruction": "Be kind.", "prompt": "Hi?", "chosen": "Hello.", "rejected": "Go."}
USER, YES, NO = ({"role": r, "content": c} for r, c in (("user", "Hi?"), ("assistant", "Hello."), ("assistant", "Go.")))
SYSTEM, LATER = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "And now?"}


def one(record, name):
    return formats.read(record, name)[0]


@pytest.mark.parametrize("name, record, expected", [
    ("cita", GOOD | {"rationale": "manners", "extra": 1}, ("Be kind.", (), "Hi?", ("Hello.", "Go."))),
    ("cita", {"prompt": "Hi?", "responses": ["a", "b", "c"], "scores": [0, 2, 1]}, (None, (), "Hi?", ("b", "c", "a"))),
    ("eba", {"prompt": "Hi?", "chosen": "Hello.", "rejected": "Go."}, (None, (), "Hi?", ("Hello.", "Go."))),
    ("messages", {"prompt": [SYSTEM, USER], "chosen": [YES], "rejected": [NO]}, ("Be kind.", (), "Hi?", ("Hello.", "Go."))),
    ("messages", {"prompt": "Hi?", "chosen": [YES], "rejected": [NO]}, (None, (), "Hi?", ("Hello.", "Go."))),
    ("messages", {"chosen": [USER, YES], "rejected": [USER, NO]}, (None, (), "Hi?", ("Hello.", "Go."))),
    ("messages", {"prompt": [USER, YES, LATER], "chosen": "Now.", "rejected": "Never."}, (None, (("Hi?", "Hello."),), "And now?", ("Now.", "Never."))),
])
def test_formats(name, record, expected, tmp_path):
    p = one(write_jsonl(tmp_path / "d.jsonl", [record]), name)
    assert (p.instruction, p.turns, p.prompt, p.responses) == expected
    assert p.scores == tuple(sorted(p.scores, reverse=True)) and p.id.endswith("d.jsonl:1")


@pytest.mark.parametrize("name, line, message", [
    ("cita", "{", r"d.jsonl:2: not valid JSON"),
    ("cita", "[1]", r"d.jsonl:2: expected a JSON object, got list"),
    ("cita", GOOD | {"chosen": "Go."}, r"d.jsonl:2: 'chosen' and 'rejected' are equal"),
    ("cita", GOOD | {"rejected": "  "}, r"d.jsonl:2: 'rejected' is empty"),
    ("cita", GOOD | {"prompt": 3}, r"d.jsonl:2: 'prompt' must be a string, got int"),
    ("cita", {"prompt": "Hi?", "chosen": "a"}, r"d.jsonl:2: the field 'rejected' is missing"),
    ("cita", {"prompt": "p", "responses": ["a", "b"], "scores": [1]}, "'scores' must be a list of 2 numbers"),
    ("cita", {"prompt": "p", "responses": ["a", "b"], "scores": [1, 1]}, "no preference in them"),
    ("messages", {"chosen": [USER], "rejected": [USER]}, "the last message of 'chosen' must be the assistant's"),
    ("messages", {"chosen": [USER, YES], "rejected": [LATER, NO]}, "must share every message but the last"),
    ("messages", {"chosen": [YES, YES], "rejected": [YES, NO]}, "before the answer, got assistant"),
    ("messages", {"chosen": [], "rejected": []}, "'chosen' must be a list of"),
])
def test_bad_lines_are_named(name, line, message, tmp_path):
    good = json.dumps(GOOD if name == "cita" else {"chosen": [USER, YES], "rejected": [USER, NO]})
    path = tmp_path / "d.jsonl"
    path.write_text(good + "\n" + (line if isinstance(line, str) else json.dumps(line)) + "\n" + good + "\n")
    with pytest.raises(InputError, match=message):
        formats.read(path, name)
    skipped = []
    assert len(formats.read(path, name, "skip", skipped)) == 2 and len(skipped) == 1


def test_bad_files_are_named(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    for name, message in (("none.jsonl", "no such file"), ("empty.jsonl", "no usable line"), ("binary.jsonl", "not UTF-8"), (".", "is a directory")):
        with pytest.raises(InputError, match=message):
            formats.read(tmp_path / name, "cita")
    with pytest.raises(InputError, match="expected one of cita, eba, isd, messages, got 'csv'"):
        formats.read(tmp_path / "x", "csv")
