"""Generation over the grid: killed, resumed, batched, keyed by all that changes a text."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

import eval as evaluate
from ecliptica.evaluation import answers, systems
from ecliptica.evaluation.commands import isd_generate
from ecliptica.evaluation.questions import Question, Sampling
from model import cli
from tests.conftest import ROOT, write_jsonl
from tests.evaluation.conftest import BASE, TRAINED, command, lines_of

NAMES = ("loud", "quiet", "sly")
TOPICS = ("rain", "bread", "chess", "maps", "bees", "soup", "trains", "snow", "clocks", "ferries")
LOADED = {}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A bank of ten prompts, two of them for training."""
    path = tmp_path_factory.mktemp("answers")
    texts = '{name} = ["Be {name}.", "Sound {name}!", "As if {name}"]\n'
    (path / "i.toml").write_text("".join(texts.format(name=name) for name in NAMES))
    write_jsonl(
        path / "bank.jsonl",
        [
            {
                "id": f"0-{topic}",
                "prompt": f"Tell me of {topic}0.",
                "domain": "d0",
                "split": "train" if n < 2 else "test",
                "responses": {},
            }
            for n, topic in enumerate(TOPICS)
        ],
    )
    return path


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    """A model is loaded once for all runs within this process."""
    real = systems.load

    def load_once(model, **settings):
        key = str(model), settings["adapter"], settings["batch_tokens"]
        if key not in LOADED:
            LOADED[key] = real(model, **settings)
        return LOADED[key]

    monkeypatch.setattr(systems, "load", load_once)


def words(place, tiny, out, *options):
    bank = ["--bank", place / "bank.jsonl", "--instructions", place / "i.toml"]
    return command("isd-generate", tiny, out, *bank, "--max-new-tokens", 6, *options)


def generate(place, tiny, out, *options):
    evaluate.main(words(place, tiny, out, *options))
    return lines_of(out)


def texts(lines):
    return {(line["key"], line["cell"]): line["r"] for line in lines}


EVERYTHING = ("--split", "all", "--wordings", "1,2,3")


@pytest.fixture(scope="module")
def whole(place, tiny):
    """All prompts and wordings, greedy, in one go: 10 x 3 x 3 answers."""
    evaluate.main(words(place, tiny, place / "whole.jsonl", *EVERYTHING))
    return lines_of(place / "whole.jsonl")


def test_a_line_is_p_i_r_with_where_it_comes_from(whole):
    assert len(whole) == 90 == len(texts(whole))
    line = whole[4]
    assert (line["p"], line["i"]) == ("Tell me of rain0.", "Sound quiet!")
    assert (line["prompt"], line["instruction"], line["wording"]) == ("0-rain", "quiet", 2)
    assert line["settings"] == {"max_new_tokens": 6, "temperature": 0, "stop_ids": [2]}
    assert line["system"] == BASE and line["condition"] == "instruction"
    wrong = [row for row in whole if row["truncated"] != (row["tokens"] == 6)]
    assert not wrong
    assert len({row["key"] for row in whole}) == 1


def test_pairs_hold_the_contrastive_answers(whole, place):
    pairs = lines_of(place / "whole.pairs.jsonl")
    answer = {(row["prompt"], row["wording"], row["instruction"]): row["r"] for row in whole}
    assert len(pairs) == len(whole)
    for row in pairs:
        others = [name for name in NAMES if name != row["instruction"]]
        at = row["prompt"], row["wording"]
        assert row["r"] == answer[*at, row["instruction"]]
        assert row["contrastive"] == {name: answer[*at, name] for name in others}


def test_killed_at_random_nothing_is_lost_or_repeated(whole, place, tiny, tmp_path, pytestconfig):
    """kill -9, in a process of its own, whenever the file has grown enough."""
    out, generator = tmp_path / "o.jsonl", random.Random(time.time_ns())
    program = [sys.executable, ROOT / "eval.py", *words(place, tiny, out, *EVERYTHING)]
    kept = b""
    for number in range(pytestconfig.getoption("--kills")):
        until = len(kept) + generator.randint(1, 10000)
        process = subprocess.Popen(
            program, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while process.poll() is None and (not out.exists() or out.stat().st_size < until):
            time.sleep(0.002)
        if process.poll() == 0:  # --kills is more than it takes
            break
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.stderr.read().decode()
        now = out.read_bytes()
        assert now.startswith(kept), "what was there is gone"
        if number == 0:
            now += b'{"system": "half a li'  # a kill within a line
            out.write_bytes(now)
        kept = now[: now.rfind(b"\n") + 1]
    lines = generate(place, tiny, out, *EVERYTHING)
    assert out.read_bytes().startswith(kept)
    assert len(lines) == len(whole), f"kept {kept.count(b'{')} lines over the kills"
    assert texts(lines) == texts(whole)


SAMPLED = ("--temperature", "1", "--limit", "3")


@pytest.mark.parametrize("sampling", [(), SAMPLED], ids=["greedy", "sampled"])
def test_a_text_does_not_depend_on_what_else_is_asked_or_there(
    sampling, place, tiny, tmp_path, whole
):
    """Cut anywhere, lines taken out, fewer prompts, one wording, another --batch-tokens: the same
    texts, from the same batches."""
    two = ("--wordings", "1,2", *sampling)
    want = generate(place, tiny, tmp_path / "want.jsonl", *two)
    if not sampling:
        assert texts(want).items() <= texts(whole).items()
    raw, generator = (tmp_path / "want.jsonl").read_bytes(), random.Random(1)
    (tmp_path / "cut.jsonl").write_bytes(raw[: len(raw) // 3 + 7])
    write_jsonl(tmp_path / "holes.jsonl", [line for line in want if generator.random() < 0.8])
    for name in ("cut", "holes"):
        got = generate(place, tiny, tmp_path / f"{name}.jsonl", *two, "--batch-tokens", "1")
        assert len(got) == len(want), name
        assert texts(got) == texts(want), name
    one = ("--wordings", "2", *sampling, "--limit", "2")
    few = generate(place, tiny, tmp_path / "few.jsonl", *one)
    assert len(few) == 6
    assert texts(few).items() <= texts(want).items()


def test_what_is_missing_is_made_in_the_batch_of_its_group(place, tiny, tmp_path, monkeypatch):
    seen, seeds, real = [], [], answers.generate

    def watched(model, prompts, *rest, **more):
        seen.append(tuple(map(tuple, prompts)))
        seeds.extend(more["seeds"])
        return real(model, prompts, *rest, **more)

    monkeypatch.setattr(answers, "generate", watched)
    out = tmp_path / "o.jsonl"
    want = generate(place, tiny, out, "--limit", "3")
    first = list(seen)
    assert [len(batch) for batch in first] == [3, 3, 3]
    assert len(set(seeds)) == 9, "two answers share a seed"

    write_jsonl(out, [line for n, line in enumerate(want) if n not in (1, 5)])
    seen.clear()
    assert texts(generate(place, tiny, out, "--limit", "3")) == texts(want)
    assert seen == first[:2]
    seen.clear()
    generate(place, tiny, out, "--limit", "3")
    assert not seen


def test_whatever_changes_a_text_is_in_its_key(tiny):
    """Settings of sampling where it samples, the tokens that end an answer, and nothing else."""
    system = systems.load(tiny, template="chatml", adapter=None, batch_tokens=4096)
    names = {"condition": "instruction", "prompt": "x", "instruction": "i", "wording": 1}

    def key(*sampling):
        sampling = Sampling(*sampling)
        return system.key(Question("p", "i", asked="answer", sampling=sampling, names=names))

    greedy = key(6)
    assert key(6, 0.0, 0.5, 3) == greedy, "greedy has neither top-p nor seed"
    others = [key(5), key(6, 1.0), key(6, 0.5), key(6, 1.0, 0.9), key(6, 1.0, 1.0, 1)]
    assert len({greedy, *others}) == 6
    assert system.digest not in {greedy, *others}

    before = system.tokenizer.eos_ids
    try:
        system.tokenizer.eos_ids = (*before, 17)
        assert key(6) != greedy, "a new stop token is another answer"
    finally:
        system.tokenizer.eos_ids = before


def test_base_and_trained_in_one_file_and_controls(place, tiny, adapter, tmp_path):
    options, out = ("--adapter", adapter, "--limit", "1"), tmp_path / "o.jsonl"
    base = generate(place, tiny, out, *options, "--system", "base")
    assert {line["system"] for line in base} == {BASE}
    both = generate(place, tiny, out, *options)
    assert both[:3] == base
    assert [line["system"] for line in both[3:]] == [TRAINED] * 3
    assert len({line["key"] for line in both}) == 2
    assert [line["r"] for line in both[:3]] != [line["r"] for line in both[3:]]

    controls = ",".join(isd_generate.CONDITIONS)
    sampled = ("--temperature", "1", "--system", "trained", "--controls", controls)
    new = generate(place, tiny, out, *options, *sampled)[6:]
    by_condition = {}
    for line in new:
        by_condition.setdefault(line["condition"], []).append(line)
    assert {name: len(lines) for name, lines in by_condition.items()} == dict.fromkeys(
        ("instruction", *isd_generate.CONDITIONS), 3
    )
    assert {line["i"] for line in by_condition["no instruction"]} == {None}
    assert {line["i"] for line in by_condition["one instruction"]} == {"As if loud"}
    assert len({line["r"] for line in by_condition["one instruction"]}) == 3, "one seed for all"
    assert {line["p"] for line in by_condition["instruction"]} == {"Tell me of chess0."}
    assert {line["p"] for line in by_condition["scrambled prompt"]} != {"Tell me of chess0."}


BAD = {
    "no such control": (
        ("--controls", "silence"),
        "--controls 'silence': expected some of no instruction, scrambled prompt, one instruction",
    ),
    "no such wording": (("--wordings", "4"), "--wordings 4: the instructions have wordings 1 to 3"),
    "no number": (("--wordings", "two"), "--wordings two: expected whole numbers"),
    "no trained one": (
        ("--system", "trained"),
        "--system trained: give the trained one as --adapter",
    ),
    "no room": (
        ("--max-new-tokens", "4096"),
        " tokens and 4096 new ones; the model's window is 4096",
    ),
    "no output directory": (("--out", "nowhere/o.jsonl"), "no such directory"),
    "no metric to compute again": (("--rescore", "x.jsonl"), "unrecognized arguments: --rescore"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_one_line(name, place, tiny, tmp_path, capsys):
    options, message = BAD[name]
    out = tmp_path / "o.jsonl"
    assert cli.run(evaluate.main, words(place, tiny, out, *options)) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error, error
    assert not out.exists()


def test_length_suite_resumes_and_counts_again_without_a_model(tiny, tmp_path):
    line = ["length", "--template", "chatml", "--limit", "2", "--max-new-tokens", "7"]
    evaluate.main([*line, "--model", str(tiny), "--out", str(tmp_path)])
    samples = tmp_path / "samples.jsonl"
    raw = samples.read_bytes()
    want = json.loads((tmp_path / "results.json").read_text())
    table = (tmp_path / "table.md").read_text()
    assert len(raw.splitlines()) == 4
    assert want["systems"][BASE]["cut_long"]["value"] == 1
    assert "`short` is kept by force" in table and "NOT REPORTABLE" in table

    samples.write_bytes(raw[:-9])
    evaluate.main([*line, "--model", str(tiny), "--out", str(tmp_path)])
    assert samples.read_bytes() == raw
    again = ["--model", "nowhere", "--out", f"{tmp_path}/again", "--rescore", str(samples)]
    evaluate.main([*line[:-2], *again])
    got = json.loads((tmp_path / "again" / "results.json").read_text())
    for name in ("systems", "published", "per_unit", "notes"):
        assert got[name] == want[name], name
