"""The switching metrics on synthetic models whose true value is known; statistics by hand; the suite end to end on a tiny model."""

import itertools
import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import eval as evaluate
from ecliptica.config import load
from ecliptica.evaluation import report, statistics
from ecliptica.evaluation.cells import Cell, Scores
from ecliptica.evaluation.grid import RIVALS, Grid, dealt_wrongly, distractors, interaction
from ecliptica.evaluation.metrics import column_accuracy, strict_switch, switch
from ecliptica.isd.bank import Entry
from ecliptica.recipe import Config
from ecliptica.training import loop
from model import cli
from model.errors import InputError
from tests.conftest import write_jsonl

NAMES = tuple("abcdefghij")
K, N = len(NAMES), 9
BANK = [
    Entry(f"x{n}", f"prompt {n}", "de"[n % 2], "test", {k: f"{k} of x{n}" for k in NAMES})
    for n in range(40)
]
RNG = np.random.default_rng(0)
PRIOR = {
    (entry.id, k): round(160 * RNG.standard_normal()) / 8 for entry in BANK for k in NAMES
}  # length and fluency; eighths, so that ties stay ties
CHANCE = 1 / (1 + (K - 1) + 2 * RIVALS)


class Synthetic:
    """Scores of a model that is a formula of what is asked."""

    def __init__(self, formula):
        self.formula, self.at = formula, {entry.prompt: entry.id for entry in BANK}

    def __getitem__(self, cell):
        x, k = cell.names["response_to"], cell.names["response"]
        if cell.names["condition"] == "content-free":
            return self.formula(None, None, x, k)
        return self.formula(
            self.at[cell.prompt], cell.names["instruction"] if cell.instruction else None, x, k
        )


def measure(formula, condition="instruction"):
    grid = Grid(BANK, BANK, {name: f"Do {name}." for name in NAMES}, condition)
    found, null, _ = grid.values(Synthetic(formula))
    apart = grid.by_instruction(Synthetic(formula))
    for metric, values_PJ in apart.items():
        assert values_PJ.shape == (len(BANK), K) and values_PJ.mean(1) == pytest.approx(
            found[metric]
        )
    return {name: float(np.mean(v)) for name, v in found.items()} | {
        "null": null,
        "apart": {m: v.mean(0) for m, v in apart.items()},
        "chances": grid.chances(null),
    }


def perfect(x, j, owner, k):
    return PRIOR[owner, k] + 5 * (j == k) + 5 * (x == owner)


def test_a_perfect_model_scores_1_under_a_large_prior():
    """PMI, switch and column accuracy see through length and prior; strict switch, which does not cancel them, falls."""
    found = measure(perfect)
    assert [found[m] for m in ("joint", "column_accuracy", "prompt_match", "switch")] == [
        1,
        1,
        1,
        1,
    ] and found["strict_switch"] < 0.2
    assert found["chances"] == {
        "joint": pytest.approx(CHANCE),
        "column_accuracy": 1 / K,
        "prompt_match": pytest.approx(1 / (N + 1)),
        "switch": 0.5,
        "strict_switch": found["null"],
    }
    assert (
        measure(lambda x, j, owner, k: perfect(x, j, owner, k) - PRIOR[owner, k])["strict_switch"]
        == 1
    )


def test_a_model_that_ignores_the_prompt():
    """The same whatever the prompt: at chance among the four responses to other prompts under the same instruction."""
    found = measure(lambda x, j, owner, k: PRIOR[owner, k] + 5 * (j == k))
    assert (
        found["joint"] == pytest.approx(1 / (1 + RIVALS))
        and found["prompt_match"] == pytest.approx(1 / (N + 1))
        and found["column_accuracy"] == 1
    )


def test_a_model_that_ignores_the_instruction():
    """At chance among the responses to the same prompt."""
    found = measure(lambda x, j, owner, k: PRIOR[owner, k] + 5 * (x == owner))
    assert (
        found["joint"] == pytest.approx(1 / K) == pytest.approx(found["column_accuracy"])
        and found["switch"] == 0.5
    )
    assert found["prompt_match"] == 1 and found["strict_switch"] == 0


def test_a_model_that_only_likes_short_answers():
    found = measure(lambda x, j, owner, k: PRIOR[owner, k])
    assert (
        found["joint"] == pytest.approx(CHANCE)
        and found["column_accuracy"] == pytest.approx(1 / K)
        and found["switch"] == 0.5
    )


def test_a_random_model_is_at_chance():
    noise, generator = {}, np.random.default_rng(1)
    found = measure(lambda *asked: noise.setdefault(asked, generator.standard_normal()))
    for metric, width in (
        ("joint", 0.04),
        ("column_accuracy", 0.05),
        ("prompt_match", 0.05),
        ("switch", 0.05),
        ("strict_switch", 0.04),
    ):
        assert found[metric] == pytest.approx(found["chances"][metric], abs=width), metric
    assert found["null"] == pytest.approx(0.25, abs=0.03)


def test_a_model_that_obeys_one_instruction_is_seen_by_instruction():
    found = measure(lambda x, j, owner, k: PRIOR[owner, k] + 5 * (j == k == "c") + 5 * (x == owner))
    at = NAMES.index("c")
    assert found["apart"]["joint"][at] == 1 == found["apart"]["column_accuracy"][at]
    assert np.delete(found["apart"]["column_accuracy"], at) == pytest.approx(1 / K) and np.delete(
        found["apart"]["joint"], at
    ) == pytest.approx(1 / K)


def test_the_controls_take_away_what_they_say():
    without = measure(perfect, "no instruction")
    assert (
        without["joint"] == pytest.approx(1 / K)
        and without["column_accuracy"] == pytest.approx(1 / K)
        and without["prompt_match"] == 1
    )
    scrambled = measure(perfect, "scrambled prompt")
    assert (
        scrambled["prompt_match"] < 0.3
        and scrambled["joint"] <= 1 / (1 + RIVALS) + 1e-9
        and scrambled["column_accuracy"] == 1
    )
    dealt = dealt_wrongly(BANK)
    assert sorted(dealt.values()) == sorted(entry.prompt for entry in BANK) and all(
        dealt[entry.id] != entry.prompt for entry in BANK
    )


def test_a_wrong_way_switcher_scores_below_chance():
    assert (
        switch.value(-np.eye(K)) == 0
        and column_accuracy.value(-np.eye(K)) == 0
        and strict_switch.value(-np.eye(K)) == 0
    )
    assert (
        measure(lambda x, j, owner, k: PRIOR[owner, k] - 5 * (j == k) + 2 * (x == owner))["joint"]
        == 0
    )


def test_interaction_takes_both_means_out():
    found = interaction(RNG.standard_normal((1, K)) + np.arange(K)[:, None] + 3 * np.eye(K))
    assert (
        np.allclose(found.sum(0), 0)
        and np.allclose(found.sum(1), 0)
        and np.allclose(np.diag(found), 2.7)
    )


def test_distractors_come_from_the_same_domain_first():
    bank = [Entry(str(n), "p", "ab"[n % 2], "test" if n < 6 else "train", {}) for n in range(30)]
    found = distractors(bank[0], bank)
    assert (
        len(found) == 9
        and all(e.domain == "a" for e in found)
        and [e.id for e in found[:2]] == ["2", "4"]
        and bank[0] not in found
    )
    assert len(distractors(bank[0], bank[:4])) == 3


def test_interval_is_the_bootstrap_of_the_mean():
    x = np.random.default_rng(3).normal(2, 1, 200)
    value, low, high = statistics.interval(x, statistics.draws(200))
    half = 1.96 * x.std() / 200**0.5
    assert (
        value == x.mean()
        and low == pytest.approx(value - half, abs=0.02)
        and high == pytest.approx(value + half, abs=0.02)
    )
    assert (value, low, high) == statistics.interval(x, statistics.draws(200))


def test_interval_where_units_have_no_value():
    x = np.array([1.0, np.nan, 3.0, np.nan, 2.0, 4.0])
    value, low, high = statistics.interval(x, statistics.draws(6))
    assert value == 2.5 and 1 <= low < value < high <= 4
    drawn = np.array(
        [[0, 1, 1, 1, 1, 1], [1, 3, 1, 3, 1, 3], [2, 2, 1, 1, 1, 1]]
    )  # means 1, none at all, 3
    assert statistics.interval(x, drawn, level=1.0) == (2.5, 1.0, 3.0)
    assert statistics.summary([np.nan] * 3, statistics.draws(3)) == {
        "value": None,
        "low": None,
        "high": None,
    }


def test_sign_flip_is_the_exact_test_of_eight_units():
    for d in (
        RNG.normal(0.5, 1, 8),
        RNG.normal(0, 1, 8),
        np.array([0.1, 0.2, 0, 0.3, -0.1, 0.2, 0.4, 0.1]),
    ):
        exact = np.mean(
            [
                abs(np.dot(signs, d)) >= abs(d.sum()) - 1e-12
                for signs in itertools.product((-1, 1), repeat=8)
            ]
        )
        assert (
            statistics.sign_flip(d)
            == pytest.approx(exact, abs=0.02)
            == pytest.approx(statistics.sign_flip(-d), abs=0.02)
        )
    assert statistics.sign_flip(np.ones(8)) == pytest.approx(2 / 256, abs=0.004)
    assert statistics.sign_flip([0.0] * 8) == 1 == statistics.sign_flip([np.nan] * 8)
    assert statistics.sign_flip([1, np.nan] * 8) == statistics.sign_flip([1] * 8)


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert (
        statistics.holm([0.5, 0.9]) == [1, 1]
        and statistics.holm([0.03]) == [0.03]
        and statistics.holm([]) == []
    )


@pytest.fixture(scope="module")
def place(tiny, preferences, tmp_path_factory):
    """A trained adapter, a bank of six prompts (the test split has three) and two instructions."""
    path = tmp_path_factory.mktemp("suite")
    (path / "i.toml").write_text(
        'loud = ["Shout.", "Be loud.", "Use capitals."]\nquiet = ["Whisper.", "Be calm.", "Speak softly."]\n'
    )
    write_jsonl(
        path / "bank.jsonl",
        [
            {
                "id": f"x{n}",
                "prompt": f"Tell me of {what}.",
                "domain": "d",
                "split": "test" if n < 3 else "train",
                "responses": {
                    "loud": f"{what.upper()}! GREAT {what.upper()}!",
                    "quiet": f"some {what}, softly",
                },
            }
            for n, what in enumerate(("rain", "bread", "chess", "maps", "bees", "soup"))
        ],
    )
    (path / "r.toml").write_text(
        f'[model]\npath = "{tiny}"\ndtype = "float32"\n[data]\ntrain = "{write_jsonl(path / "t.jsonl", preferences)}"\n'
        f'[training]\nmax_steps = 3\nlr = 1e-2\n[run]\ndir = "{path}/run"\n'
    )
    loop.train(load(Config, path / "r.toml"))
    return path


def run(place, tiny, out, *options, adapter="run/final"):
    arguments = [
        "switch",
        "--model",
        str(tiny),
        "--template",
        "chatml",
        "--bank",
        f"{place}/bank.jsonl",
        "--instructions",
        f"{place}/i.toml",
        "--out",
        str(out),
    ]
    evaluate.main([*arguments, *(["--adapter", f"{place / adapter}"] if adapter else []), *options])
    return json.loads((out / "results.json").read_text())


def lines(out):
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(place, tiny):
    """(directory, results) of the suite, base and trained, all controls."""
    return place / "run" / "switch", run(place, tiny, place / "run" / "switch")


@pytest.fixture(scope="module")
def alone(place, tiny):
    """The same of the base model, without controls: quicker."""
    return place / "alone", run(place, tiny, place / "alone", "--controls", "", adapter=None)


def same(a, b):
    """Equal but for where they were written and the last digit of a mean of float32 scores."""
    for key in a.keys() | b.keys():
        if key == "interaction":
            assert all(
                np.allclose(a[key][label], b[key][label], atol=2e-3) for label in a[key] | b[key]
            )
        elif key not in ("config", "kl", "notes"):
            assert a[key] == b[key], key
    return True


def test_base_and_trained_side_by_side(whole):
    out, results = whole
    assert (
        results["reportable"]
        and results["units"] == 3
        and results["wording"] == {"loud": "Use capitals.", "quiet": "Speak softly."}
    )
    chance = {name: metric["chance"] for name, metric in results["metrics"].items()}
    assert (
        chance["column_accuracy"] == chance["switch"] == 0.5
        and chance["prompt_match"] == pytest.approx(1 / 6)
        and chance["joint"] == pytest.approx(1 / 10)
    )
    samples = [s for s in lines(out) if s.get("condition") == "instruction"]
    by_hand = {label: [] for label in results["systems"]}
    for label in by_hand:
        score = {
            (s["prompt"], s["instruction"], s["response"]): s["logp"]
            for s in samples
            if s["system"] == label and s["prompt"] == s["response_to"]
        }
        wins = np.array(
            [
                [
                    score[x, k, k] > score[x, other, k]
                    for k, other in (("loud", "quiet"), ("quiet", "loud"))
                ]
                for x in ("x0", "x1", "x2")
            ]
        )
        by_hand[label] = wins.mean(1)
        assert results["systems"][label]["column_accuracy"]["value"] == pytest.approx(wins.mean())
        assert results["per_unit"][label]["column_accuracy"] == pytest.approx(by_hand[label])
        apart = results["by_instruction"][label]["column_accuracy"]
        assert [apart[name]["value"] for name in ("loud", "quiet")] == pytest.approx(
            wins.mean(0)
        ) and set(results["by_instruction"][label]) == {"joint", "column_accuracy"}
    difference = results["difference"]["trained"]["column_accuracy"]
    assert (
        difference["value"]
        == pytest.approx(np.mean(by_hand["trained"]) - np.mean(by_hand["prompting-only"]))
        and 0 < difference["p"] <= difference["p_holm"] <= 1
    )
    assert (
        set(results["controls"]["trained"]) == {"no instruction", "scrambled prompt"}
        and results["kl"]["per_token"] > 0
    )
    assert (
        results["controls"]["trained"]["no instruction"]["column_accuracy"]["value"] == 0.5
    )  # without it no instruction is told from another
    assert (
        "| column accuracy |" in (out / "table.md").read_text()
        and "trained, no instruction" in (out / "table.md").read_text()
    )


def test_the_report_of_a_run(whole, place):
    page = report.build(place / "run").read_text()
    assert (
        "<b>Joint</b>" in page
        and "trained, scrambled prompt" in page
        and "Use capitals." in page
        and "max_steps = 3" in page
        and "objective cita, 3 steps" in page
    )
    assert {path.stem for path in (place / "run").glob("*.png")} == {
        "switch-bars",
        "switch-instructions",
        "switch-interaction",
        "radar",
        "training",
    }


def test_a_limited_run_is_stamped_everywhere(alone, place, tiny, capsys):
    limited = run(place, tiny, place / "limited", "--limit", "2", "--controls", "", adapter=None)
    assert (
        not limited["reportable"]
        and limited["units"] == 2
        and (place / "limited" / "table.md").read_text().startswith("NOT REPORTABLE")
    )
    assert (
        "NOT REPORTABLE" in capsys.readouterr().out
        and "NOT REPORTABLE" not in (alone[0] / "table.md").read_text()
    )


def test_a_cut_run_goes_on_and_asks_every_cell_once(alone, place, tiny, tmp_path):
    out, want = alone
    raw = (out / "samples.jsonl").read_bytes()
    cells = sorted((s["key"], s["cell"]) for s in lines(out))
    assert len(cells) == len(set(cells))
    first = raw.index(b"\n") + 1
    for n, at in enumerate((7, first, len(raw) // 2, len(raw) - 1)):
        cut = tmp_path / str(n)
        cut.mkdir()
        (cut / "samples.jsonl").write_bytes(raw[:at])
        assert same(run(place, tiny, cut, "--controls", "", adapter=None), want)
        assert sorted((s["key"], s["cell"]) for s in lines(cut)) == cells, f"cut at byte {at}"
        kept = raw[: raw[:at].rfind(b"\n") + 1]
        assert (
            (cut / "samples.jsonl").read_bytes().startswith(kept)
        )  # what was there is not written again


def test_rescore_gives_the_same_without_a_model(whole, place, tmp_path):
    out, want = whole
    got = run(
        place, tmp_path / "no model", tmp_path / "again", "--rescore", str(out / "samples.jsonl")
    )
    assert same(got, want) and not (tmp_path / "again" / "samples.jsonl").exists()
    with pytest.raises(
        InputError, match="has no score of prompting-only for .* run without --rescore"
    ):
        run(
            place,
            tmp_path / "no model",
            tmp_path / "other",
            "--rescore",
            str(out / "samples.jsonl"),
            "--paraphrase",
            "1",
        )


def test_rescore_keeps_the_stamp_of_an_ablation(whole, place, tmp_path):
    shutil.copytree(place / "run" / "final", place / "ablated")
    made = json.loads((place / "ablated" / "ecliptica.json").read_text())
    (place / "ablated" / "ecliptica.json").write_text(json.dumps(made | {"ablation": True}))
    run(
        place,
        tmp_path / "no model",
        tmp_path / "again",
        "--rescore",
        str(whole[0] / "samples.jsonl"),
        adapter="ablated",
    )
    assert (tmp_path / "again" / "table.md").read_text().startswith("ABLATION")


def test_another_adapters_scores_are_never_taken(place, tiny, tmp_path):
    def adapter(scale):
        shutil.copytree(place / "run" / "final", place / "other", dirs_exist_ok=True)
        file = place / "other" / "adapter_model.safetensors"
        save_file(
            {name: tensor * scale for name, tensor in load_file(file).items()},
            file,
            metadata={"format": "pt"},
        )
        run(place, tiny, tmp_path, "--controls", "", adapter="other")

    adapter(1.0)
    before = lines(tmp_path)
    adapter(3.0)  # same path, same directory of samples, other weights
    new = lines(tmp_path)[len(before) :]
    assert {s["system"] for s in new} == {"trained"} and not {s["key"] for s in new} & {
        s["key"] for s in before
    }
    assert {s["cell"] for s in new} == {s["cell"] for s in before} and len(new) == len(before) / 2
    old = {s["cell"]: s["logp"] for s in before if s["system"] == "trained"}
    assert any(abs(old[s["cell"]] - s["logp"]) > 1e-2 for s in new)


def test_scores_do_not_depend_on_the_batch(alone, place, tiny, tmp_path):
    run(
        place, tiny, tmp_path, "--batch-tokens", "1", "--limit", "1", "--controls", "", adapter=None
    )
    one, many = (
        {(s["key"], s["cell"]): s["logp"] for s in lines(out)} for out in (tmp_path, alone[0])
    )
    assert one.keys() < many.keys() and max(abs(one[at] - many[at]) for at in one) < 1e-4


def test_a_bad_line_in_samples_is_named(tmp_path, capsys):
    (tmp_path / "samples.jsonl").write_text(
        '{"key": "k", "cell": "c", "logp": -1.0, "tokens": 2}\nnot json\n{"half'
    )
    assert cli.run(lambda _: Scores(tmp_path / "samples.jsonl", "k", "base"), None) == 2
    assert "samples.jsonl:2: not valid JSON" in capsys.readouterr().err
    write_jsonl(
        tmp_path / "samples.jsonl",
        [{"key": "k", "cell": Cell(None, "x", "y").digest, "logp": -1.0, "tokens": 2}],
    )
    scores = Scores(tmp_path / "samples.jsonl", "k", "base")
    assert (
        scores[Cell(None, "x", "y", {"any": "name"})] == -1.0
        and not Scores(tmp_path / "samples.jsonl", "other", "base").known
    )
