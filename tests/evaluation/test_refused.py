"""What is refused, in one line and before a model is looked for: options, data, outputs; and, after
it, numbers that are none."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import eval as evaluate
from model import cli
from tests.conftest import write_jsonl
from tests.evaluation.conftest import command, small_bank


@pytest.fixture
def place(tmp_path):
    """Banks and sets, good and bad; `bank`: options of a good one."""
    small_bank(tmp_path)
    one = {"domain": "d", "split": "test", "responses": {"x": "1", "y": "2"}}
    write_jsonl(tmp_path / "one.jsonl", [{"id": i, "prompt": f"{i}?"} | one for i in "ab"])
    (tmp_path / "one.toml").write_text('x = ["a"]\ny = ["b", "c"]\n')
    weak = {"id": "a", "strength": "mild", "attack": "a", "harmless": "b"}
    write_jsonl(tmp_path / "weak.jsonl", [weak])
    write_jsonl(tmp_path / "score.jsonl", [{"prompt": "Hi?", "responses": ["Hello."]}])
    (tmp_path / "directory").mkdir()
    for name in ("samples.jsonl", "results.json"):
        (tmp_path / f"with-{name}" / name).mkdir(parents=True)
    return tmp_path


BANK = ["--bank", "{place}/bank.jsonl", "--instructions", "{place}/i.toml"]
ONE = ["--bank", "{place}/one.jsonl", "--instructions", "{place}/one.toml"]
DATA = ["--data", "{place}/score.jsonl"]
REFUSED = {
    "no such suite": (["isd", "--suites", "swich"], "--suites 'swich': expected some of switch"),
    "no suite": (["isd", "--suites", ","], "--suites: none given"),
    "no such wording": (["honesty", "--wording", "4"], "--wording 4"),
    "wordings count from 1": (["switch", *BANK, "--wording", "0"], "--wording 0: loud has 3"),
    "the name of earlier versions": (["switch", *BANK, "--paraphrase", "4"], "--wording 4"),
    "no neutral wording": (
        ["capability", "--wording", "0"],
        "--wording 0: the instruction neutral has 3 wordings",
    ),
    "one policy missing": (["refusal", "--policies", "{place}/i.toml"], "no policy 'strict'"),
    "half of other instructions": (["underspecified", *BANK], "expected the instructions loud"),
    "a strength without a pair": (
        ["override", "--data", "{place}/weak.jsonl"],
        "no pair of the strength 'strong'",
    ),
    "absent data": (["override", "--data", "absent.jsonl"], "absent.jsonl"),
    "sizes that are no numbers": (["scale", "--sizes", "ten"], "--sizes ten: expected whole"),
    "sizes that there are not": (
        ["scale", "--sizes", "10,101"],
        "--sizes 10,101: from 10, those with references, to 100",
    ),
    "no pair": (["shift", "--pairs", "0"], "--pairs: expected >= 1, got 0"),
    "one wording": (["paraphrase", *ONE], "one wording"),
    "one wording, shift": (["shift", *ONE], "one wording"),
    "the wording of paraphrase": (["paraphrase", "--paraphrase", "2"], "--paraphrase"),
    "no such metric": (["override", "--metric", "switch"], "--metric: expected one of joint"),
    "no such switching metric": (["switch", "--metrics", "jont"], "--metrics 'jont': expected"),
    "rescore of nothing": (["isd", "--rescore", "{place}/nowhere"], "no scored line in it"),
    "a negative temperature": (["length", "--temperature", "-1"], "--temperature: expected >= 0"),
    "an infinite temperature": (["length", "--temperature", "inf"], "--temperature must be a"),
    "a temperature that is none": (["length", "--temperature", "nan"], "--temperature must be a"),
    "no mass": (["length", "--top-p", "0"], "--top-p: expected a share above 0, up to 1"),
    "too much mass": (["length", "--top-p", "1.5"], "--top-p: expected a share above 0"),
    "a seed below 0": (["length", "--seed", "-1"], "--seed: expected a seed from 0"),
    "a seed beyond 64 bits": (["length", "--seed", str(2**64)], "--seed: expected a seed from 0"),
    "no token": (["length", "--max-new-tokens", "0"], "--max-new-tokens: expected > 0"),
    "a directory for samples": (["switch", "--out", "{place}/with-samples.jsonl"], "directory"),
    "a directory for results": (["switch", "--out", "{place}/with-results.json"], "is a directory"),
    "a file for a directory": (["switch", "--out", "{place}/one.toml"], "is a file; expected"),
    "a directory for scores": (["score", *DATA, "--out", "{place}/directory"], "is a directory"),
    "a directory for texts": (["generate", *DATA, "--out", "{place}/directory"], "is a directory"),
    "a directory for answers": (["isd-generate", "--out", "{place}/directory"], "is a directory"),
    "nowhere for scores": (["score", *DATA, "--out", "{place}/no/o"], "no such directory"),
    "a directory for a ledger": (
        ["switch", "--ledger", "{place}/with-samples.jsonl"],
        "samples.jsonl",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_the_model_is_looked_for(name, place, capsys):
    (what, *options), message = REFUSED[name]
    words = command(what, "nowhere", place / "out", *options)
    assert cli.run(evaluate.main, [word.format(place=place) for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error, error
    assert error.count("\n") == 1 and error.startswith("error: "), error


# Numbers that are none


@pytest.fixture(scope="module")
def overflowed(tiny, tmp_path_factory):
    """The tiny model with a weight that is NaN."""
    path = tmp_path_factory.mktemp("nan") / "model"
    shutil.copytree(tiny, path)
    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weight"][:] = float("nan")
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


NUMBERS = {
    "score": DATA,
    "generate": [*DATA, "--max-new-tokens", "3"],
    "generate at temperature 1": [*DATA, "--max-new-tokens", "3", "--temperature", "1"],
    "switch": BANK,
    "shift": BANK,
    "refusal": ["--limit", "1"],
    "capability": ["--limit", "1"],
    "length": ["--limit", "1", "--max-new-tokens", "3"],
    "isd-generate": [*BANK, "--limit", "1", "--max-new-tokens", "3"],
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_model_that_overflowed_is_no_result(name, overflowed, place, capsys):
    words = command(name.split()[0], overflowed, place / "out", *NUMBERS[name])
    assert cli.run(evaluate.main, [word.format(place=place) for word in words]) == 2
    error = capsys.readouterr().err
    assert "overflowed" in error and "Traceback" not in error, error
    out = place / "out"
    assert not out.is_file() and not (out / "results.json").exists(), "a result was written"
    if (out / "samples.jsonl").exists():
        assert "NaN" not in (out / "samples.jsonl").read_text()


def test_a_disk_that_is_full_is_said(tiny, place, capsys, monkeypatch):
    """Nothing half is left: neither scores nor texts are files until they are whole."""
    words = ["score", "--model", str(tiny), "--template", "chatml", "--out", "/dev/full", *DATA]
    assert cli.run(evaluate.main, [word.format(place=place) for word in words]) == 2
    error = capsys.readouterr().err
    assert error == (
        "error: /dev/full: No space left on device; make room and start the same command again\n"
    )


def test_lines_of_a_file_are_read_whatever_unicode_calls_a_line_end(tiny, place):
    """A response with U+2028 is one response, and the copied line reads back."""
    prompts = [{"prompt": "Hi\u2028there\u0085?", "id": n} for n in range(2)]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in prompts)
    (place / "in.jsonl").write_text("\ufeff" + text)
    words = command("generate", tiny, place / "o.jsonl", "--data", place / "in.jsonl")
    evaluate.main([*words, "--max-new-tokens", "2"])
    lines = (place / "o.jsonl").read_bytes().removesuffix(b"\n").split(b"\n")
    assert [json.loads(line)["prompt"] for line in lines] == [prompts[0]["prompt"]] * 2


def test_scores_are_finite_numbers(tiny, place):
    evaluate.main([w.format(place=place) for w in command("score", tiny, place / "o", *DATA)])
    line = json.loads((place / "o").read_text())
    assert torch.tensor(line["logps"]).isfinite().all()
