"""Every file of JSON lines is cut at \\n and \\r\\n alone, and every bad line is one InputError."""

import json
import random
from types import SimpleNamespace

import pytest

from ecliptica.data import formats
from ecliptica.data.formats import cita, eba, messages
from ecliptica.files import (
    append_lines,
    journal,
    journal_lines,
    read_lines,
    read_records,
    to_line,
    write_lines,
)
from ecliptica.isd import __main__ as isd
from ecliptica.isd.bank import load_bank
from ecliptica.isd.hard import read_scores
from ecliptica.running.run_directory import RunDirectory
from model.errors import InputError
from model.files import DEEPEST, parse_object

# What str.splitlines cuts at, and a file of JSON lines must not.
SEPARATORS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r"]
TEXT = "".join(f"{n}{character}" for n, character in enumerate(SEPARATORS)) + "end"


def raw(path, records):
    """Lines as other tools write them: what JSON lets stand as it is stands as it is."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_bytes("".join(lines).encode())
    return path


def as_is(record, where):
    return record


def test_data_keep_every_separator(tmp_path):
    sides = {"chosen": TEXT, "rejected": f"{TEXT}!"}
    chats = {key: [{"role": "assistant", "content": text}] for key, text in sides.items()}
    records = {
        "cita": {"prompt": TEXT, "instruction": TEXT, "rationale": TEXT, "id": TEXT} | sides,
        "eba": {"prompt": TEXT} | sides,
        "messages": {"prompt": [{"role": "user", "content": TEXT}]} | chats,
    }
    for name, record in records.items():
        first, second = formats.read(raw(tmp_path / "d.jsonl", [record, record]), name)
        assert second.prompt == first.prompt == TEXT, name
        assert first.responses == (TEXT, f"{TEXT}!"), name


def test_bank_pairs_and_scores_keep_every_separator(tmp_path):
    entries = [
        {
            "id": f"p{n}{TEXT}",
            "prompt": f"{TEXT}?",
            "domain": "d",
            "split": "train",
            "responses": {"x": f"{TEXT} {n} x", "y": f"{TEXT} {n} y"},
        }
        for n in range(3)
    ]
    bank = raw(tmp_path / "bank.jsonl", entries)
    (tmp_path / "i.toml").write_text('x = ["Say x."]\ny = ["Say y."]\n')
    assert [entry.id for entry in load_bank(bank)] == [entry["id"] for entry in entries]

    # Scores as the switching suite writes them choose the hard negatives of the pairs.
    scores = [
        {"prompt": e["id"], "instruction": j, "response_to": e["id"], "response": k, "logp": -1.0}
        for e in entries
        for j in "xy"
        for k in "xy"
    ]
    write_lines(tmp_path / "scores.jsonl", scores)
    assert set(read_scores(tmp_path / "scores.jsonl", ["x", "y"])[0]) == {e["id"] for e in entries}
    options = ["--bank", bank, "--instructions", tmp_path / "i.toml", "--out", tmp_path / "p.jsonl"]
    isd.main(["build", "--scores", f"{tmp_path}/scores.jsonl", *map(str, options)])
    pairs = formats.read(tmp_path / "p.jsonl", "cita")
    texts = {text for entry in entries for text in entry["responses"].values()}
    assert len(pairs) == 3 * 2 * 3 and {text for p in pairs for text in p.responses} == texts


def test_journals_keep_every_separator(tmp_path):
    path = tmp_path / "samples.jsonl"
    for step in range(4):
        append_lines(path, [{"step": step, "text": TEXT}])
    with open(path, "ab") as file:
        file.write(f'{{"step": 4, "text": "cut{TEXT[:2]}'.encode())
    assert journal(path) == [{"step": step, "text": TEXT} for step in range(4)]

    # A resumed run takes back what it will write again, and the cut line.
    RunDirectory.take_back(SimpleNamespace(path=tmp_path), 2)
    assert journal(path) == [{"step": step, "text": TEXT} for step in range(2)]
    append_lines(path, [{"step": 2, "text": TEXT}])
    assert [line["step"] for line in journal(path)] == [0, 1, 2]


def test_what_is_written_is_read(tmp_path):
    rows = [{"a": character * 2, character: TEXT} for character in (*SEPARATORS, "\ufeff", "é")]
    write_lines(tmp_path / "o.jsonl", rows)
    assert read_records(tmp_path / "o.jsonl", as_is) == rows
    assert len(read_lines(tmp_path / "o.jsonl")) == len(rows)


def test_line_ends_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "d.jsonl"
    for data, expected in (
        (b'{"n": 1}\r\n{"n": 2}\r\n', [(1, 1), (2, 2)]),
        (b'\xef\xbb\xbf{"n": 1}\n\n  \n{"n": 2}', [(1, 1), (2, 4)]),
        (b'{"n": 1}\n\xef\xbb\xbf{"n": 2}\n', [(1, 1), (2, 2)]),  # two files, one after the other
        (b'{"n":\r 1}\n', [(1, 1)]),
    ):
        path.write_bytes(data)
        rows = read_records(path, lambda record, where: (record["n"], where))
        assert rows == [(n, f"{path}:{line}") for n, line in expected], data
    assert journal_lines(tmp_path / "none.jsonl") == []


NESTED = "[" * 60_000 + "]" * 60_000


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"a": "\\ud83d"}', "text that is no Unicode"),
        ('{"a": {"b": ["\\uDE00 x"]}}', "text that is no Unicode"),
        ('{"\\udfff": 1}', "text that is no Unicode"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": [1, -Infinity]}', "-Infinity is not JSON"),
        ('{"a": 1e999}', "1e999 is beyond 64 bits"),
        ('{"a": -1e999}', "-1e999 is beyond 64 bits"),
        ('{"a": 18446744073709551616}', "18446744073709551616 is beyond 64 bits"),
        ('{"a": ' + "9" * 5000 + "}", "a number that is none"),
        (f'{{"a": {NESTED}}}', "nested too deeply"),
        ('{"a":' * DEEPEST + "[[]]" + "}" * DEEPEST, "nested too deeply"),
        ('{"a": "\x0b"}', "not valid JSON"),
        ('{"a": 1}\x0b{"a": 2}', "not valid JSON"),
        ("null", "expected a JSON object, got NoneType"),
        ('"{}"', "expected a JSON object, got str"),
    ],
)
def test_a_bad_line_is_named_or_skipped_and_counted(line, message, tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n{{"a": "\\ud83d\\ude00"}}\n')
    with pytest.raises(InputError, match=message) as error:
        read_records(path, as_is)
    assert str(error.value).startswith(f"{path}:2: ") and len(str(error.value)) < 400
    skipped = []
    assert read_records(path, as_is, "skip", skipped) == [{"a": 1}, {"a": "😀"}]
    assert len(skipped) == 1
    with pytest.raises(InputError, match=message):
        journal(path)


def test_what_is_as_deep_as_may_be_is_written_too(tmp_path):
    nested = '{"a":' * (DEEPEST - 1) + "[]" + "}" * (DEEPEST - 1)
    record = parse_object(nested.encode(), "here", "")
    write_lines(tmp_path / "o.jsonl", [record | {"text": "more"}])
    assert read_records(tmp_path / "o.jsonl", as_is) == [record | {"text": "more"}]


def test_bytes_that_are_no_utf8_are_named(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"a": "é"}\n{"a": "ü"}\n', encoding="utf-16")
    with pytest.raises(InputError, match=r"d.jsonl:1: not UTF-8 text"):
        read_records(tmp_path / "d.jsonl", as_is)


def test_append_takes_off_half_a_line_and_names_a_full_disk(tmp_path):
    path = tmp_path / "a.jsonl"
    append_lines(path, [{"n": 1}, {"n": "é"}])
    for half in (b'{"n": 3', b"x" * 200_000):
        with open(path, "ab") as file:
            file.write(half)
        append_lines(path, [{"n": 4}])
    assert journal(path) == [{"n": 1}, {"n": "é"}, {"n": 4}, {"n": 4}]
    path.write_bytes(b"no line end at all")
    append_lines(path, [{"n": 5}])
    assert path.read_bytes() == b'{"n": 5}\n'
    full = "No space left on device; make room and start the same command again: '/dev/full'"
    with pytest.raises(OSError, match=full):
        append_lines("/dev/full", [{"n": 1}])


# Fuzzing

GOOD = [
    {"instruction": "Be kind.", "prompt": "Hi?", "chosen": "Hello.", "rejected": "Go.", "id": 7},
    {"prompt": "Hi?\u2028", "responses": ["a", "b", "c"], "scores": [0, 2.5, 1], "id": "x"},
    {"prompt": "Hi?", "chosen": [{"role": "assistant", "content": "é"}], "rejected": "😀"},
    {"chosen": [{"role": "system", "content": ""}, {"role": "user", "content": "q"}]},
]
PIECES = [
    *(character.encode() for character in SEPARATORS),
    *(b"\\ud83d", b"\\ude00", b"\\u0000", b"NaN", b"-Infinity", b"1e999", b"1E-999", b"9" * 30),
    *(b"\n", b"\r\n", b"\xef\xbb\xbf", b"\xff", b"\xed\xa0\xbd", b"\xc2", b"\x00", b'"', b"\\"),
    *(b"{", b"}", b"[", b"]", b"[" * 2000, b'{"a":' * 2000, b":", b",", b"null", b"true", b"-"),
    *(b'"id"', b'"scores"', b'"responses"', b'"chosen"', b'"role"', b'"content"', b" ", b"\t"),
]


def mutated(generator):
    """A file of good lines with a few pieces put in, taken out, doubled or turned over."""
    data = bytearray("\n".join(json.dumps(generator.choice(GOOD)) for _ in range(3)).encode())
    for _ in range(generator.randrange(6)):
        at = generator.randrange(len(data) + 1)
        end = at + generator.randrange(12)
        kind = generator.randrange(4)
        if kind == 0:
            data[at:at] = generator.choice(PIECES)
        elif kind == 1:
            del data[at:end]
        elif kind == 2:
            data[at:at] = data[at:end]
        else:
            data[at:end] = generator.randbytes(end - at)
    return bytes(data)


def fuzz(path, count, seed=0):
    """Read mutated files in every format: (files read, files refused). Anything else is raised."""
    generator = random.Random(seed)
    read = 0
    for number in range(count):
        data = mutated(generator)
        path.write_bytes(data)
        parse = (as_is, cita.read, eba.read, messages.read)[number % 4]
        skipped = []
        try:
            rows = read_records(path, parse, generator.choice(("stop", "skip")), skipped)
        except InputError as error:
            assert "\n" not in " ".join(str(error).split())
            continue
        read += 1
        assert len(rows) + len(skipped) <= data.count(b"\n") + 1
        if parse is as_is:  # what was read can be written, and read again
            assert [parse_object(to_line(row).encode(), "", "") for row in rows] == rows
    return read, count - read


def test_fuzzed_lines_are_read_or_refused(tmp_path):
    read, refused = fuzz(tmp_path / "f.jsonl", 1500)
    assert read > 150 and refused > 150
