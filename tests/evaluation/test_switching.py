"""The metrics on synthetic models whose true value is known; the suite end to end on a tiny one."""

import json

import numpy as np
import pytest

import eval as evaluate
from ecliptica.config import load
from ecliptica.evaluation import report, statistics, switching
from ecliptica.evaluation.suites.switch import distractors
from ecliptica.isd.bank import Entry
from ecliptica.training import loop
from tests.conftest import write_jsonl

K, N, PROMPTS = 10, 9, 400
RNG = np.random.default_rng(0)
PRIOR = 20 * RNG.standard_normal((PROMPTS, 1, K))  # response length and fluency: large, and not the instruction's doing


def values(s, own, others):
    return {"switch": np.mean([switching.switch(x) for x in s]), "strict": np.mean([switching.strict_switch(x) for x in s]),
            "column": np.mean([switching.column_accuracy(x) for x in s]),
            "match": np.mean([switching.prompt_match(o, d) for o, d in zip(own, others)])}


def test_a_perfect_model():
    s = np.tile(50 * np.eye(K), (PROMPTS, 1, 1))
    assert values(s, np.zeros((PROMPTS, K)), -np.ones((PROMPTS, K, N))) == {"switch": 1, "strict": 1, "column": 1, "match": 1}


def test_a_perfect_interaction_under_a_large_prior():
    """Switch and column accuracy see through length and prior; strict switch, which does not cancel them, falls."""
    found = values(PRIOR + 5 * np.eye(K), np.zeros((PROMPTS, K)), -np.ones((PROMPTS, K, N)))
    assert found["switch"] == 1 and found["column"] == 1 and found["strict"] < 0.2


def test_a_model_that_ignores_the_instruction_is_at_chance():
    s = np.broadcast_to(PRIOR, (PROMPTS, K, K))
    found = values(s, np.zeros((PROMPTS, K)), -np.ones((PROMPTS, K, N)))
    assert found["switch"] == 0.5 and found["column"] == pytest.approx(1 / K) and found["strict"] == 0 and found["match"] == 1


def test_a_model_that_ignores_the_prompt_is_at_chance_on_prompt_match():
    found = values(np.tile(50 * np.eye(K), (PROMPTS, 1, 1)), np.zeros((PROMPTS, K)), np.zeros((PROMPTS, K, N)))
    assert found["match"] == pytest.approx(1 / (N + 1)) and found["column"] == 1


def test_a_random_model_is_at_chance():
    s = RNG.standard_normal((PROMPTS, K, K))
    found = values(s, RNG.standard_normal((PROMPTS, K)), RNG.standard_normal((PROMPTS, K, N)))
    assert found["switch"] == pytest.approx(0.5, abs=0.02) and found["column"] == pytest.approx(0.1, abs=0.02)
    assert found["match"] == pytest.approx(0.1, abs=0.02)
    null = np.mean([switching.strict_switch_null(x, np.random.default_rng(1), 20) for x in s[:100]])
    assert found["strict"] == pytest.approx(null, abs=0.02) == pytest.approx(0.25, abs=0.03)


def test_a_wrong_way_switcher_scores_below_chance():
    assert switching.switch(-np.eye(K)) == 0 and switching.column_accuracy(-np.eye(K)) == 0


def test_interaction_takes_both_means_out():
    found = switching.interaction(PRIOR[0] + np.arange(K)[:, None] + 3 * np.eye(K))
    assert np.allclose(found.sum(0), 0) and np.allclose(found.sum(1), 0) and np.allclose(np.diag(found), 2.7)


def test_interval_is_the_bootstrap_of_the_mean():
    x = np.random.default_rng(3).normal(2, 1, 200)
    value, low, high = statistics.interval(x, statistics.draws(200))
    half = 1.96 * x.std() / 200**0.5
    assert value == x.mean() and low == pytest.approx(value - half, abs=0.02) and high == pytest.approx(value + half, abs=0.02)
    again = statistics.interval(x, statistics.draws(200))
    assert (value, low, high) == again


def test_distractors_come_from_the_same_domain_first():
    bank = [Entry(str(n), "p", "ab"[n % 2], "test" if n < 6 else "train", {}) for n in range(30)]
    found = distractors(bank[0], bank)
    assert len(found) == 9 and all(e.domain == "a" for e in found) and [e.id for e in found[:2]] == ["2", "4"] and bank[0] not in found
    assert len(distractors(bank[0], bank[:4])) == 3


def small_bank(tmp_path):
    """Two instructions, six prompts; the test split has three."""
    (tmp_path / "i.toml").write_text('loud = ["Shout.", "Be loud.", "Use capitals."]\nquiet = ["Whisper.", "Be calm.", "Speak softly."]\n')
    return write_jsonl(tmp_path / "bank.jsonl", [
        {"id": f"x{n}", "prompt": f"Tell me of {what}.", "domain": "d", "split": "test" if n < 3 else "train",
         "responses": {"loud": f"{what.upper()}! GREAT {what.upper()}!", "quiet": f"some {what}, softly"}}
        for n, what in enumerate(("rain", "bread", "chess", "maps", "bees", "soup"))])


def test_switch_suite_base_and_trained_side_by_side(tiny, preferences, tmp_path, capsys):
    recipe = tmp_path / "r.toml"
    recipe.write_text(f'[model]\npath = "{tiny}"\ndtype = "float32"\n[data]\ntrain = "{write_jsonl(tmp_path / "t.jsonl", preferences)}"\n'
                      f'[training]\nmax_steps = 4\nlr = 1e-2\n[run]\ndir = "{tmp_path}/run"\n')
    final = loop.train(load(recipe))
    out = tmp_path / "run" / "switch"
    arguments = ["switch", "--model", str(tiny), "--adapter", str(final), "--template", "chatml", "--bank", str(small_bank(tmp_path)),
                 "--instructions", str(tmp_path / "i.toml"), "--out", str(out)]
    evaluate.main(arguments)
    results = json.loads((out / "results.json").read_text())
    assert results["reportable"] and results["prompts"] == 3 and results["wording"] == {"loud": "Use capitals.", "quiet": "Speak softly."}
    assert results["chance"]["column_accuracy"] == 0.5 and results["chance"]["prompt_match"] == pytest.approx(1 / 6)
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    # 3 prompts x 2 x 2 cells, and every response under five other prompts' contexts
    assert len(samples) == 2 * (12 + 3 * 2 * 5) == len({tuple(map(str, list(s.values())[:5])) for s in samples})
    by_hand = {label: [] for label in results["systems"]}
    for label in by_hand:
        score = {(s["prompt"], s["instruction"], s["response"]): s["logp"] for s in samples if s["system"] == label and s["prompt"] == s["response_to"]}
        for x in ("x0", "x1", "x2"):
            by_hand[label].append(np.mean([score[x, k, k] > score[x, other, k] for k, other in (("loud", "quiet"), ("quiet", "loud"))]))
        assert results["systems"][label]["column_accuracy"]["value"] == pytest.approx(np.mean(by_hand[label]))
        assert results["per_prompt"][label]["column_accuracy"] == pytest.approx(by_hand[label])
    assert results["difference"]["column_accuracy"]["value"] == pytest.approx(np.mean(by_hand["trained"]) - np.mean(by_hand["prompting-only"]))
    assert results["kl"]["per_token"] > 0 and "| column accuracy |" in capsys.readouterr().out
    evaluate.main([*arguments, "--batch-tokens", "1", "--limit", "2"])
    limited = json.loads((out / "results.json").read_text())
    assert not limited["reportable"] and "NOT REPORTABLE" in (out / "table.md").read_text()
    page = report.build(tmp_path / "run").read_text()
    assert page.count("data:image/png;base64,") == 3 and "http" not in page.replace("http-equiv", "") and "NOT REPORTABLE" in page
