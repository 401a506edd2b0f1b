"""Generation over the grid: killed, resumed, batched; and what is measured on it, on synthetic models whose true value is known."""

import json
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import eval as evaluate
from ecliptica.config import load
from ecliptica.evaluation import generations, systems
from ecliptica.evaluation.metrics import generation_fidelity
from ecliptica.evaluation.suites.fidelity import Judge
from ecliptica.isd.bank import BANK, INSTRUCTIONS, Entry, load_bank, load_instructions
from ecliptica.recipe import Config
from ecliptica.training import loop
from model import cli
from tests.conftest import ROOT, write_jsonl

NAMES = ("loud", "quiet", "sly")
TOPICS = ("rain", "bread", "chess", "maps", "bees", "soup", "trains", "snow", "clocks", "ferries")
LOADED = {}
MARKS = {"loud": "shout bang crash", "quiet": "hush softly calm", "sly": "wink maybe perhaps"}


def bank_of(domains=2):
    """Ten prompts a domain, two of them for training; references of an instruction's mark and a prompt's topic."""
    return [
        Entry(
            f"{d}-{topic}",
            f"Tell me of {topic}{d}.",
            f"d{d}",
            "train" if n < 2 else "test",
            {j: f"{MARKS[j]} {topic}{d} {topic}{d} here" for j in NAMES},
        )
        for d in range(domains)
        for n, topic in enumerate(TOPICS)
    ]


@pytest.fixture(scope="module")
def place(tiny, preferences, tmp_path_factory):
    path = tmp_path_factory.mktemp("generation")
    (path / "i.toml").write_text(
        "".join(f'{name} = ["Be {name}.", "Sound {name}!", "As if {name}"]\n' for name in NAMES)
    )
    write_jsonl(
        path / "bank.jsonl",
        [
            {
                "id": e.id,
                "prompt": e.prompt,
                "domain": e.domain,
                "split": e.split,
                "responses": e.responses,
            }
            for e in bank_of(1)
        ],
    )
    (path / "r.toml").write_text(
        f'[model]\npath = "{tiny}"\ndtype = "float32"\n[data]\ntrain = "{write_jsonl(path / "t.jsonl", preferences)}"\n'
        f'[training]\nmax_steps = 2\nlr = 3e-2\n[run]\ndir = "{path}/run"\n'
    )
    loop.train(load(Config, path / "r.toml"))
    return path


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    """A model is loaded once for all runs within this process."""
    real = systems.load

    def load_once(args):
        key = args.model, args.adapter, args.batch_tokens
        if key not in LOADED:
            LOADED[key] = real(args)
        return LOADED[key]

    monkeypatch.setattr(systems, "load", load_once)


def command(place, tiny, out, *options):
    return [
        "isd-generate",
        "--model",
        str(tiny),
        "--template",
        "chatml",
        "--bank",
        f"{place}/bank.jsonl",
        "--instructions",
        f"{place}/i.toml",
        "--max-new-tokens",
        "6",
        "--out",
        str(out),
        *options,
    ]


def made(place, tiny, out, *options):
    evaluate.main(command(place, tiny, out, *options))
    return lines_of(out)


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def texts(lines):
    return {(line["key"], line["cell"]): line["r"] for line in lines}


@pytest.fixture(scope="module")
def whole(place, tiny):
    """All prompts and wordings, greedy, in one go: 10 x 3 x 3 answers."""
    return made(place, tiny, place / "whole.jsonl", "--split", "all", "--wordings", "1,2,3")


def test_a_line_is_p_i_r_with_where_it_comes_from(whole, place):
    assert len(whole) == 90 == len(texts(whole))
    line = whole[4]
    assert set(line) == {
        "system",
        "key",
        "cell",
        "condition",
        "prompt",
        "instruction",
        "wording",
        "p",
        "i",
        "r",
        "tokens",
        "truncated",
        "settings",
    }
    assert (line["p"], line["i"]) == ("Tell me of rain0.", "Sound quiet!") and (
        line["prompt"],
        line["instruction"],
        line["wording"],
    ) == ("0-rain", "quiet", 2)
    assert (
        all(row["truncated"] == (row["tokens"] == 6) for row in whole)
        and len({row["key"] for row in whole}) == 1
    )


def test_pairs_hold_the_contrastive_answers(whole, place):
    pairs = lines_of(place / "whole.pairs.jsonl")
    by = {(row["prompt"], row["wording"], row["instruction"]): row["r"] for row in whole}
    assert len(pairs) == len(whole) and not list(place.glob("*.part"))
    for row in pairs:
        assert row["r"] == by[row["prompt"], row["wording"], row["instruction"]]
        assert row["contrastive"] == {
            j: by[row["prompt"], row["wording"], j] for j in NAMES if j != row["instruction"]
        }


def test_killed_at_random_nothing_is_lost_or_repeated(whole, place, tiny, tmp_path, pytestconfig):
    out, generator = tmp_path / "o.jsonl", random.Random(time.time_ns())
    arguments = [
        sys.executable,
        str(ROOT / "eval.py"),
        *command(place, tiny, out, "--split", "all", "--wordings", "1,2,3"),
    ]
    kept = b""
    for n in range(pytestconfig.getoption("--kills")):
        until = len(kept) + generator.randint(1, 10000)
        process = subprocess.Popen(
            arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while process.poll() is None and (not out.exists() or out.stat().st_size < until):
            time.sleep(0.002)
        if process.poll() == 0:  # --kills is more than it takes
            break
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.stderr.read().decode()
        now = out.read_bytes()
        assert now.startswith(kept), "what was there is still there"
        kept = now if n else now + b'{"system": "half a li'  # a kill within a line
        out.write_bytes(kept)
        kept = kept[: kept.rfind(b"\n") + 1]
    assert made(
        place, tiny, out, "--split", "all", "--wordings", "1,2,3"
    ) and out.read_bytes().startswith(kept)
    assert len(lines_of(out)) == len(whole) and texts(lines_of(out)) == texts(whole), (
        f"kept {kept.count(b'{')} lines over the kills"
    )


@pytest.mark.parametrize(
    "sampling", [(), ("--temperature", "1", "--limit", "3")], ids=["greedy", "sampled"]
)
def test_a_text_does_not_depend_on_what_else_is_asked_or_there(
    sampling, place, tiny, tmp_path, whole
):
    """Cut anywhere, lines taken out, fewer prompts, one wording, another --batch-tokens: the same texts, from the same batches."""
    want = made(place, tiny, tmp_path / "want.jsonl", "--wordings", "1,2", *sampling)
    if not sampling:
        assert texts(want).items() <= texts(whole).items()
    raw, generator = (tmp_path / "want.jsonl").read_bytes(), random.Random(1)
    (tmp_path / "cut.jsonl").write_bytes(raw[: len(raw) // 3 + 7])
    (tmp_path / "holes.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in want if generator.random() < 0.8)
    )
    for name in ("cut", "holes"):
        got = made(
            place,
            tiny,
            tmp_path / f"{name}.jsonl",
            "--wordings",
            "1,2",
            "--batch-tokens",
            "1",
            *sampling,
        )
        assert len(got) == len(want) and texts(got) == texts(want), name
    few = made(place, tiny, tmp_path / "few.jsonl", "--wordings", "2", *sampling, "--limit", "2")
    assert len(few) == 6 and texts(few).items() <= texts(want).items()


def test_what_is_missing_is_made_in_the_batch_of_its_group(place, tiny, tmp_path, monkeypatch):
    seen, seeds, real = [], [], generations.generate

    def watched(model, prompts, *rest, **more):
        seen.append(tuple(map(tuple, prompts)))
        seeds.extend(more["seeds"])
        return real(model, prompts, *rest, **more)

    monkeypatch.setattr(generations, "generate", watched)
    out = tmp_path / "o.jsonl"
    want, first = made(place, tiny, out, "--limit", "3"), list(seen)
    assert len(first) == 3 and all(len(batch) == 3 for batch in first) and len(set(seeds)) == 9
    write_jsonl(out, [line for n, line in enumerate(want) if n not in (1, 5)])
    seen.clear()
    assert texts(made(place, tiny, out, "--limit", "3")) == texts(want) and seen == first[:2]
    seen.clear()
    assert made(place, tiny, out, "--limit", "3") and not seen


def test_other_settings_are_other_answers_and_a_greedy_one_has_no_seed(place, tiny, tmp_path):
    out = tmp_path / "o.jsonl"
    run = lambda *options: len(made(place, tiny, out, "--limit", "1", *options))  # noqa: E731
    assert [
        run(),
        run("--seed", "1"),
        run("--max-new-tokens", "5"),
        run("--temperature", "1"),
        run("--temperature", "1", "--seed", "1"),
        run("--temperature", "1"),
    ] == [3, 3, 6, 9, 12, 12]
    sampled = [line for line in lines_of(out) if line["settings"]["temperature"]]
    assert len({line["r"] for line in sampled}) == 6


def test_base_and_trained_in_one_file_and_controls(place, tiny, tmp_path):
    adapter, out = ("--adapter", f"{place}/run/final", "--limit", "1"), tmp_path / "o.jsonl"
    base = made(place, tiny, out, *adapter, "--system", "base")
    assert {line["system"] for line in base} == {"prompting-only"}
    both = made(place, tiny, out, *adapter)
    assert (
        both[:3] == base
        and [line["system"] for line in both[3:]] == ["trained"] * 3
        and len({line["key"] for line in both}) == 2
    )
    assert [line["r"] for line in both[:3]] != [line["r"] for line in both[3:]]
    all_of = made(
        place,
        tiny,
        out,
        *adapter,
        "--temperature",
        "1",
        "--system",
        "trained",
        "--controls",
        "no instruction,scrambled prompt,one instruction",
    )[6:]
    by = {
        condition: [line for line in all_of if line["condition"] == condition]
        for condition in dict.fromkeys(line["condition"] for line in all_of)
    }
    assert [len(found) for found in by.values()] == [3] * 4
    assert {line["i"] for line in by["no instruction"]} == {None} and {
        line["i"] for line in by["one instruction"]
    } == {"As if loud"}
    assert len({line["r"] for line in by["one instruction"]}) == 3  # each with a seed of its own
    assert (
        {line["p"] for line in by["instruction"]}
        == {"Tell me of chess0."}
        != {line["p"] for line in by["scrambled prompt"]}
    )


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
    "rescore": (("--rescore", "x.jsonl"), "--rescore: isd-generate has no metric"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_one_line(name, place, tiny, tmp_path, capsys):
    options, message = BAD[name]
    assert cli.run(evaluate.main, command(place, tiny, tmp_path / "o.jsonl", *options)) == 2
    error = capsys.readouterr().err.splitlines()
    assert (
        message in error[-1]
        and "Traceback" not in "".join(error)
        and not (tmp_path / "o.jsonl").exists()
    )


# what is measured on generations

ENTRIES = bank_of(4)
JUDGE = Judge(ENTRIES, list(NAMES), "bank")
CHANCE = {"both": 1 / 30, "instruction": 1 / 3, "prompt": 1 / 10}


def measure(answer):
    """Mean of each metric of a model that is a function (entry, instruction) -> text."""
    rows = [
        JUDGE.values(e.id, {j: {"r": answer(e, j), "truncated": False} for j in NAMES})[0]
        for e in ENTRIES
    ]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def about(**want):
    return {name: pytest.approx(value, abs=1e-9) for name, value in want.items()}


def fidelity(answer):
    return {name: measure(answer)[name] for name in CHANCE}


def test_fidelity_of_a_perfect_model():
    assert (
        JUDGE.chance == CHANCE
        and JUDGE.accuracy == 1
        and fidelity(lambda e, j: f"{MARKS[j]}, {e.prompt}")
        == about(both=1, instruction=1, prompt=1)
    )


def test_fidelity_of_a_model_that_ignores_the_prompt():
    """Each instruction's canned answer, one of the references even: at chance on the prompt, and at most there on both."""
    assert fidelity(lambda e, j: ENTRIES[0].responses[j]) == about(
        both=0.1, instruction=1, prompt=0.1
    )
    assert fidelity(lambda e, j: MARKS[j]) == about(both=0.1, instruction=1, prompt=0.1)


def test_fidelity_of_a_model_that_ignores_the_instruction():
    assert fidelity(lambda e, j: f"{MARKS['quiet']} {e.prompt}") == about(
        both=1 / 3, instruction=1 / 3, prompt=1
    )


def test_fidelity_of_a_model_that_copies():
    assert fidelity(lambda e, j: f"Be {j}.") == about(
        both=1 / 30, instruction=1 / 3, prompt=0.1
    )  # no word of the references
    assert fidelity(lambda e, j: e.prompt)["prompt"] == 1 and fidelity(lambda e, j: e.prompt)[
        "instruction"
    ] == pytest.approx(1 / 3)


def test_fidelity_of_a_random_and_of_an_empty_model():
    generator = np.random.default_rng(0)
    found = np.mean(
        [
            list(
                fidelity(
                    lambda e, j: ENTRIES[generator.integers(40)].responses[
                        NAMES[generator.integers(3)]
                    ]
                ).values()
            )
            for _ in range(8)
        ],
        axis=0,
    )
    assert (
        found[1] == pytest.approx(1 / 3, abs=0.06)
        and found[0] < 0.07
        and found[2] == pytest.approx(0.1, abs=0.04)
    )
    assert (
        fidelity(lambda e, j: "")
        == fidelity(lambda e, j: " \n")
        == about(both=0, instruction=0, prompt=0)
    )


def test_fidelity_of_a_wrong_way_switcher_is_below_chance():
    assert fidelity(lambda e, j: f"{MARKS[NAMES[NAMES.index(j) - 1]]} {e.prompt}") == about(
        both=0, instruction=0, prompt=1
    )


def test_a_prompt_without_references_is_not_told_by_the_length_of_its_document():
    retrieval = generation_fidelity.Retrieval(
        {"a": ("rain", ["bread soup"] * 5), "b": ("bread", []), "c": ("soup", [])}
    )
    assert [
        retrieval.share("bread, soup", own, others)
        for own, others in (("b", ("a", "c")), ("a", ("b", "c")))
    ] == [0.5, 0]
    bank = [
        Entry(
            f"{n}",
            "p",
            "ab"[n % 2],
            "test" if n < 12 else "train",
            {"x": "y"} if n % 3 == 0 else {},
        )
        for n in range(40)
    ]
    assert all(
        int(id) % 2 == 0 for id in generation_fidelity.candidates(bank[0], bank)
    ) and generation_fidelity.candidates(bank[0], bank)[:2] == ["6", "12"]
    assert generation_fidelity.candidates(bank[2], bank)[:3] == ["4", "8", "10"]


def test_the_classifier_of_the_shipped_bank_names_references_it_has_not_seen():
    instructions = list(load_instructions(INSTRUCTIONS))
    judge = Judge(load_bank(BANK, instructions), instructions, "bank")
    assert judge.accuracy > 0.88 and min(judge.confusion[j][j] for j in instructions) > 0.7
    assert all(sum(row.values()) == pytest.approx(1) for row in judge.confusion.values())


def written(
    path,
    conditions=("instruction", "scrambled prompt"),
    wordings=(1, 2),
    change=lambda line: [line],
):
    """What isd-generate would write for a good model, of which the trained one falls silent."""
    entries = [e for e in ENTRIES if e.split == "test"]
    return write_jsonl(
        path,
        [
            row
            for condition in conditions
            for label in ("trained", "prompting-only")
            for w in wordings
            for n, e in enumerate(entries)
            for j in NAMES
            for row in change(
                {
                    "system": label,
                    "key": label,
                    "condition": condition,
                    "prompt": e.id,
                    "instruction": j,
                    "wording": w,
                    "truncated": w == 2,
                    "r": ""
                    if label == "trained" and w == 2
                    else f"{MARKS[j]} {entries[n - 16].prompt if condition == 'scrambled prompt' else e.prompt}",
                }
            )
        ],
    )


def suite(place, tmp_path, data, *options):
    evaluate.main(
        [
            "fidelity",
            "--data",
            str(data),
            "--bank",
            str(
                write_jsonl(
                    tmp_path / "b.jsonl",
                    [{key: value for key, value in vars(e).items() if value} for e in ENTRIES],
                )
            ),
            "--instructions",
            f"{place}/i.toml",
            "--out",
            str(tmp_path / "out"),
            *options,
        ]
    )
    return json.loads((tmp_path / "out" / "results.json").read_text()), (
        tmp_path / "out" / "table.md"
    ).read_text()


def test_fidelity_suite(place, tmp_path):
    results, table = suite(place, tmp_path, written(tmp_path / "g.jsonl"))
    value = lambda label, name: results["systems"][label][name]["value"]  # noqa: E731
    assert (
        list(results["systems"]) == ["prompting-only", "trained"]
        and results["units"] == 32
        and results["reportable"]
    )
    assert [value("prompting-only", name) for name in ("both", "instruction", "prompt", "cut")] == [
        1,
        1,
        1,
        0.5,
    ]
    assert [value("trained", name) for name in ("both", "instruction", "prompt")] == [
        0.5
    ] * 3  # of two wordings the silent one counts
    assert (
        results["difference"]["trained"]["both"]["value"] == -0.5
        and results["by_instruction"]["trained"]["both"]["sly"]["value"] == 0.5
    )
    scrambled = results["controls"]["prompting-only"]["scrambled prompt"]
    assert (
        scrambled["prompt"]["value"] == pytest.approx(0.1, abs=0.05)
        and scrambled["instruction"]["value"] == 1
    )
    assert (
        results["confusion"]["loud"] == {"loud": 1, "quiet": 0, "sly": 0}
        and "prompting-only, scrambled prompt" in table
        and "as published: M1" in table
    )
    results, table = suite(place, tmp_path, tmp_path / "g.jsonl", "--limit", "3")
    assert results["units"] == 3 and table.startswith("NOT REPORTABLE")


def test_fidelity_keeps_the_stamp_of_an_ablation(place, tmp_path):
    assert suite(
        place,
        tmp_path,
        written(
            tmp_path / "g.jsonl",
            change=lambda line: [
                line | ({"ablation": True} if line["system"] == "trained" else {})
            ],
        ),
    )[1].startswith("ABLATION")


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda line: (
                [] if line["prompt"] == "3-maps" and line["instruction"] == "sly" else [line]
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
def test_a_bad_file_is_one_line(change, message, place, tmp_path, capsys):
    data = written(tmp_path / "g.jsonl", change=change)
    assert cli.run(lambda _: suite(place, tmp_path, data), None) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and message in error[0]


def test_length_suite_resumes_and_counts_again_without_a_model(tiny, tmp_path):
    line = ["length", "--template", "chatml", "--limit", "2", "--max-new-tokens", "7"]
    evaluate.main([*line, "--model", str(tiny), "--out", str(tmp_path)])
    raw = (tmp_path / "samples.jsonl").read_bytes()
    want, table = (
        json.loads((tmp_path / "results.json").read_text()),
        (tmp_path / "table.md").read_text(),
    )
    assert (
        len(raw.splitlines()) == 4
        and want["systems"]["prompting-only"]["cut_long"]["value"] == 1
        and "`short` is kept by force" in table
        and "NOT REPORTABLE" in table
    )
    (tmp_path / "samples.jsonl").write_bytes(raw[:-9])
    evaluate.main([*line, "--model", str(tiny), "--out", str(tmp_path)])
    assert (tmp_path / "samples.jsonl").read_bytes() == raw
    evaluate.main(
        [
            *line[:-2],
            "--model",
            "nowhere",
            "--out",
            str(tmp_path / "again"),
            "--rescore",
            str(tmp_path / "samples.jsonl"),
        ]
    )
    got = json.loads((tmp_path / "again" / "results.json").read_text())
    assert all(got[name] == want[name] for name in ("systems", "published", "per_unit", "notes"))
