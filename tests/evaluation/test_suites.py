"""The command lines of the suites, end to end on a tiny model: samples by hand, resume, --rescore,
stamps, one summary of all."""

import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import eval as evaluate
from ecliptica.evaluation import command as suite_command
from ecliptica.evaluation import suites, systems
from ecliptica.evaluation.commands import isd
from ecliptica.evaluation.ledger import Ledger
from model.errors import InputError
from tests.evaluation.conftest import (
    BASE,
    TRAINED,
    command,
    lines_of,
    run_command,
    small_bank,
)

RECORD = {
    "template": "chatml",
    "base_model": "m",
    "objective": "cita",
    "steps": 3,
    "seed": 0,
    "ablation": False,
}


@pytest.fixture(scope="module")
def place(adapter, tmp_path_factory):
    """A bank of six prompts, three of them for testing, and a trained adapter with its record."""
    path = tmp_path_factory.mktemp("suites")
    small_bank(path)
    shutil.copytree(adapter, path / "final")
    (path / "final" / "ecliptica.json").write_text(json.dumps(RECORD))
    return path


def bank(place):
    return ["--bank", f"{place}/bank.jsonl", "--instructions", f"{place}/i.toml"]


@pytest.fixture(scope="module")
def whole(place, tiny):
    """(directory, results) of switch, base and trained, all controls."""
    out = place / "switch"
    return out, run_command("switch", tiny, out, *bank(place), "--adapter", place / "final")


def test_base_and_trained_side_by_side(whole):
    """Column accuracy again from the lines of samples.jsonl."""
    out, results = whole
    assert results["reportable"] and results["units"] == 3
    assert results["wording"] == {"loud": "Use capitals.", "quiet": "Speak softly."}
    chance = {name: metric["chance"] for name, metric in results["metrics"].items()}
    assert chance["column_accuracy"] == chance["switch"] == 0.5
    assert chance["prompt_match"] == pytest.approx(1 / 6)
    assert chance["joint"] == pytest.approx(1 / 10)

    means = {}
    for label in (BASE, TRAINED):
        wins_PK = column_wins(out, label)
        means[label] = wins_PK.mean(1)
        assert results["systems"][label]["column_accuracy"]["value"] == pytest.approx(
            wins_PK.mean()
        )
        assert results["per_unit"][label]["column_accuracy"] == pytest.approx(means[label])
        by_instruction = results["by_instruction"][label]["column_accuracy"]
        assert [by_instruction[name]["value"] for name in ("loud", "quiet")] == pytest.approx(
            wins_PK.mean(0)
        )
    difference = results["difference"][TRAINED]["column_accuracy"]
    assert difference["value"] == pytest.approx(np.mean(means[TRAINED]) - np.mean(means[BASE]))
    assert 0 < difference["p"] <= difference["p_holm"] <= 1


def column_wins(out, label):
    """[prompt, response]: whether its own instruction makes it likelier than the other one."""
    score = {
        (line["prompt"], line["instruction"], line["response"]): line["logp"]
        for line in lines_of(out / "samples.jsonl")
        if line.get("condition") == "instruction"
        and "logp" in line
        and line["system"] == label
        and line["prompt"] == line["response_to"]
    }
    pairs = (("loud", "quiet"), ("quiet", "loud"))
    return np.array(
        [
            [score[prompt, k, k] > score[prompt, other, k] for k, other in pairs]
            for prompt in ("x0", "x1", "x2")
        ]
    )


def test_controls_and_kl_of_switch(whole):
    out, results = whole
    assert set(results["controls"][TRAINED]) == {"no instruction", "scrambled prompt"}
    # Without it no instruction is told from another.
    control = results["controls"][TRAINED]["no instruction"]
    assert control["column_accuracy"]["value"] == 0.5
    kls = [line["kl"] for line in lines_of(out / "samples.jsonl") if "kl" in line]
    assert results["kl"]["per_response"] == pytest.approx(np.mean(kls)) and len(kls) == 6
    table = (out / "table.md").read_text()
    assert "| column accuracy |" in table
    assert "| trained, no instruction |" in table
    assert "Exact KL[trained || base]" in table


def test_rescore_gives_the_same_without_a_model(whole, place, tmp_path):
    out, want = whole
    rescore = [*bank(place), "--adapter", place / "final", "--rescore", out / "samples.jsonl"]
    got = run_command("switch", tmp_path / "no model", tmp_path / "again", *rescore)
    for key in want.keys() - {"config"}:
        assert got[key] == want[key], f"{key} differs"
    assert not (tmp_path / "again" / "samples.jsonl").exists()
    lacking = "has no score of prompting-only for .* run without --rescore"
    with pytest.raises(InputError, match=lacking):
        run_command("switch", "no model", tmp_path / "other", *rescore, "--wording", "1")


def test_rescore_keeps_the_stamp_of_an_ablation(whole, place, tmp_path):
    shutil.copytree(place / "final", tmp_path / "ablated")
    record = json.dumps(RECORD | {"ablation": True})
    (tmp_path / "ablated" / "ecliptica.json").write_text(record)
    rescore = ["--adapter", tmp_path / "ablated", "--rescore", whole[0] / "samples.jsonl"]
    run_command("switch", "no model", tmp_path / "again", *bank(place), *rescore)
    assert (tmp_path / "again" / "table.md").read_text().startswith("ABLATION")


def test_a_limited_run_is_stamped_and_one_with_other_batches_scores_the_same(
    whole, place, tiny, tmp_path, capsys
):
    options = [*bank(place), "--controls", "", "--limit", "2", "--batch-tokens", "1"]
    limited = run_command("switch", tiny, tmp_path, *options)
    assert not limited["reportable"] and limited["units"] == 2
    assert (tmp_path / "table.md").read_text().startswith("NOT REPORTABLE")
    assert "NOT REPORTABLE" in capsys.readouterr().out
    assert "NOT REPORTABLE" not in (whole[0] / "table.md").read_text()

    one, many = (
        {(line["key"], line["cell"]): line["logp"] for line in lines_of(path) if "logp" in line}
        for path in (tmp_path / "samples.jsonl", whole[0] / "samples.jsonl")
    )
    assert one.keys() < many.keys(), "another batch is another key"
    assert max(abs(one[at] - many[at]) for at in one) < 1e-4


def test_another_adapters_scores_are_never_taken(place, tiny, tmp_path):
    """The same path, the same samples.jsonl, other weights."""
    shutil.copytree(place / "final", tmp_path / "other")
    file = tmp_path / "other" / "adapter_model.safetensors"
    options = [*bank(place), "--adapter", tmp_path / "other", "--controls", "", "--limit", "1"]

    run_command("switch", tiny, tmp_path, *options)
    before = lines_of(tmp_path / "samples.jsonl")
    tensors = {name: 3 * tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    run_command("switch", tiny, tmp_path, *options)
    new = lines_of(tmp_path / "samples.jsonl")[len(before) :]

    assert {line["system"] for line in new} == {TRAINED}
    assert not {line["key"] for line in new} & {line["key"] for line in before}
    old = {line["cell"]: line for line in before if line["system"] == TRAINED}
    assert {line["cell"] for line in new} == set(old)
    changes = [abs(line["logp"] - old[line["cell"]]["logp"]) for line in new if "logp" in line]
    assert max(changes) > 1e-2


@pytest.fixture(scope="module")
def loaded(tiny):
    return {BASE: systems.load(tiny, template="chatml")}


SMALL = {
    "paraphrase": {},
    "underspecified": {"data": "{place}/u.toml"},
    "override": {},
    "shift": {"pairs": 1},
    "scale": {"more": "{place}/more.toml", "sizes": ("2", "5")},
}


@pytest.mark.parametrize("name", SMALL)
def test_a_suite_of_the_bank_resumes_and_rescores(name, place, loaded, tmp_path):
    (place / "u.toml").write_text(
        '[loud]\ndropped = ["Be."]\nvague = ["Mind it."]\n'
        '[quiet]\ndropped = ["Use."]\nvague = ["Mind that."]\n'
    )
    (place / "more.toml").write_text(
        '[a]\nrhymed = ["Rhyme.", "In verse.", "Use rhymes."]\n'
        '[b]\nold = ["Be old.", "As of old.", "Antique."]\n'
        'new = ["Be new.", "As now.", "Modern."]\n'
    )
    more = {
        key: value.format(place=place) if isinstance(value, str) else value
        for key, value in SMALL[name].items()
    }
    suite = suites.get(name)
    options = suite.Options(
        bank=f"{place}/bank.jsonl", instructions=f"{place}/i.toml", limit=2, **more
    )
    compared = systems.Compared(model="nowhere", template="chatml")

    def results(out, rescore=None):
        output = suite_command.KeptOutput(str(out), rescore)
        return suite_command.run_compared(suite, compared, options, output, loaded)

    first = results(tmp_path / "o")
    samples = tmp_path / "o" / "samples.jsonl"
    raw = samples.read_bytes()
    samples.write_bytes(raw[: len(raw) * 2 // 3])  # a kill, in the middle of a line
    again = results(tmp_path / "o")
    cells = [line["cell"] for line in lines_of(samples)]
    assert len(cells) == len(set(cells)) == raw.count(b"\n")
    for metric, cell in first.systems[BASE].items():
        want = pytest.approx(cell.value, abs=1e-3)
        assert again.systems[BASE][metric].value == want, metric
    assert results(tmp_path / "again", str(samples)).systems == again.systems


def test_all_suites_at_once(place, tiny, tmp_path, capsys):
    """The wiring of the one command; what the suites measure is tested elsewhere."""
    chosen = ("switch", "shift", "refusal", "honesty", "capability")
    shutil.copytree(place / "final", tmp_path / "ablated")
    record = json.dumps(RECORD | {"ablation": True})
    (tmp_path / "ablated" / "ecliptica.json").write_text(record)
    options = ["--adapter", tmp_path / "ablated", "--limit", "1", "--split", "train"]
    options += [*bank(place), "--suites", ",".join(chosen)]
    out = tmp_path / "a"
    evaluate.main(command("isd", tiny, out, *options))
    shown = capsys.readouterr().out
    for number, name in enumerate(chosen, start=1):
        assert f"[{number}/5] {name}" in shown

    summary = json.loads((out / "summary.json").read_text())
    page = (out / "summary.md").read_text()
    assert tuple(summary) == chosen
    assert "NOT REPORTABLE" in page and "ABLATION" in page
    for name, row in summary.items():
        results = json.loads((out / name / "results.json").read_text())
        metric = next(iter(results["metrics"]))
        assert row["metric"] == metric and row["ablation"], name
        assert row["systems"][TRAINED] == results["systems"][TRAINED][metric], name
        assert row["difference"][TRAINED] == results["difference"][TRAINED][metric], name
        assert f"| {name} | {row['title']} |" in page
        table = (out / name / "table.md").read_text()
        assert table.startswith("NOT REPORTABLE") and "ABLATION" in table, name
        # The split chooses the policies' wording too.
        assert results["config"].get("wording") in (None, 1), name
    chances = {name: row["chance"] for name, row in summary.items()}
    assert [chances[name] for name in ("shift", "refusal", "honesty")] == [1, 0, 0]

    # Again from the files, with no model.
    files = {path: path.read_bytes() for path in out.glob("*/samples.jsonl")}
    again = tmp_path / "b"
    evaluate.main(command("isd", "nowhere", again, *options, "--rescore", out))
    rescored = json.loads((again / "summary.json").read_text())
    for name, row in summary.items():
        assert rescored[name]["systems"] == row["systems"], name
    assert len(files) == 5
    assert {path: path.read_bytes() for path in files} == files
    assert "ABLATION" in (again / "summary.md").read_text()


def test_every_likelihood_suite_is_in_the_one_command():
    generating = {"fidelity", "length"}
    of_own_data = {"pairs"}
    of_conversations = {"correction"}  # many times as long as a prompt
    apart = generating | of_own_data | of_conversations
    assert set(suites.names()) - apart == set(isd.ALL)


def test_a_ledger_is_shared_by_two_command_lines(place, tiny, tmp_path):
    options = [*bank(place), "--limit", "1", "--ledger", tmp_path / "ledger"]
    run_command("switch", tiny, tmp_path / "one", *options, "--controls", "")
    raw = (tmp_path / "ledger" / "samples.jsonl").read_bytes()
    run_command("switch", tiny, tmp_path / "two", *options, "--controls", "")
    assert (tmp_path / "ledger" / "samples.jsonl").read_bytes() == raw
    assert not (tmp_path / "one" / "samples.jsonl").exists()
    assert len(Ledger(tmp_path / "ledger").lines()) == raw.count(b"\n")
