"""The suites end to end on a tiny model: numbers against an independent oracle, resume, --rescore, one summary of all."""

import json
import math

import pytest
import torch

import eval as evaluate
from ecliptica.data.templates import get_template
from ecliptica.evaluation.scoring import context_ids, response_ids
from ecliptica.evaluation.suites.shift import jsd
from ecliptica.evaluation.systems import System
from model import cli
from model.tokenizer import load_tokenizer
from model.weights import load_model
from tests.conftest import write_jsonl


def run(suite, model, out, *options):
    evaluate.main(
        [
            suite,
            "--model",
            str(model),
            "--template",
            "chatml",
            "--out",
            str(out),
            *map(str, options),
        ]
    )
    return json.loads((out / "results.json").read_text())


@pytest.fixture
def own(tmp_path):
    """Options that point a suite at a bank of two instructions and four prompts."""
    (tmp_path / "i.toml").write_text(
        'loud = ["Shout.", "Be loud.", "Use capitals."]\nquiet = ["Whisper.", "Be calm.", "Speak softly."]\n'
    )
    bank = write_jsonl(
        tmp_path / "bank.jsonl",
        [
            {
                "id": f"x{n}",
                "prompt": f"Tell me of {what}.",
                "domain": "d",
                "split": "test" if n < 2 else "train",
                "responses": {
                    "loud": f"{what.upper()}! GREAT {what.upper()}!",
                    "quiet": f"some {what}, softly",
                },
            }
            for n, what in enumerate(("rain", "bread", "chess", "maps"))
        ],
    )
    return ["--bank", bank, "--instructions", tmp_path / "i.toml"]


@pytest.fixture(scope="module")
def system(tiny):
    tokenizer = load_tokenizer(tiny)
    return System(load_model(tiny), tokenizer, get_template("chatml", tokenizer), 4096, {})


def logits(system, context, response):
    """[R, V] in float64, one response alone: no packing."""
    ids = torch.tensor([*context, *response])
    from model.attention import packed_attention

    zeros = torch.zeros_like(ids)
    hidden = system.model.forward_hidden(
        ids, torch.arange(len(ids)), packed_attention(zeros, zeros)
    )
    return hidden[len(context) - 1 : -1].double() @ system.model.head_weight_VD.double().T


@torch.no_grad()
def test_shift_against_dense_float64(system):
    contexts = [
        context_ids(system, "What is rain?", i) for i in ("Shout.", "Whisper softly, please.")
    ]
    response = response_ids(system, "Water that falls from clouds.")
    p, q = (logits(system, c, response).softmax(-1) for c in contexts)
    m = (p + q) / 2
    want = (((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2).mean().item()
    assert (
        jsd(system, contexts, response) == pytest.approx(want, rel=1e-3)
        and jsd(system, contexts[:1] * 2, response) < 1e-6
    )


@torch.no_grad()
def test_capability_is_the_perplexity_of_the_texts(tiny, system, tmp_path):
    texts = ["The kettle sang.", "A ferry left at noon with nine on board."]
    data = write_jsonl(
        tmp_path / "c.jsonl", [{"id": str(n), "kind": "k", "text": t} for n, t in enumerate(texts)]
    )
    found = run("capability", tiny, tmp_path / "o", "--data", data)
    from ecliptica.evaluation.suites.capability import PROMPT
    from ecliptica.isd.bank import load_instructions

    context, total, tokens = (
        context_ids(system, PROMPT, next(iter(load_instructions().values()))[-1]),
        0.0,
        0,
    )
    for text in texts:
        response = response_ids(system, text)
        total += (
            logits(system, context, response)
            .log_softmax(-1)[torch.arange(len(response)), torch.tensor(response)]
            .sum()
            .item()
        )
        tokens += len(response)
    assert found["perplexity"]["prompting-only"] == pytest.approx(
        math.exp(-total / tokens), rel=1e-4
    )


def test_policies_by_likelihood_equal_a_computation_by_hand(tiny, system, tmp_path):
    from ecliptica.isd.sets import SETS, load_policies, load_safety

    found = run("refusal", tiny, tmp_path / "o", "--limit", 1)
    policies = {
        name: texts[2] for name, texts in load_policies(SETS / "safety_policies.toml").items()
    }
    item = next(item for item in load_safety() if item.clazz == "borderline")

    @torch.no_grad()
    def logp(instruction, prompt, text):
        response = response_ids(system, text)
        return (
            logits(system, context_ids(system, prompt, instruction), response)
            .log_softmax(-1)[torch.arange(len(response)), torch.tensor(response)]
            .sum()
            .item()
        )

    def refused(policy):
        pmi = [
            logp(policies[policy], item.prompt, text) - logp(None, "N/A", text)
            for text in (item.refusal, item.compliance)
        ]
        return float(pmi[0] > pmi[1])

    assert found["systems"]["prompting-only"]["boundary"]["value"] == refused("strict") - refused(
        "permissive"
    )
    assert not found["reportable"] and found["units"] == 3


def test_bank_suites_resume_and_rescore(tiny, own, tmp_path):
    (tmp_path / "u.toml").write_text(
        '[loud]\ndropped = ["Be."]\nvague = ["Mind it."]\n[quiet]\ndropped = ["Use."]\nvague = ["Mind that."]\n'
    )
    (tmp_path / "more.toml").write_text(
        '[a]\nrhymed = ["Rhyme.", "In verse.", "Use rhymes."]\n[b]\nold = ["Be old.", "As of old.", "Antique."]\nnew = ["Be new.", "As now.", "Modern."]\n'
    )
    options = {
        "paraphrase": [],
        "underspecified": ["--data", tmp_path / "u.toml"],
        "override": [],
        "shift": ["--pairs", 1],
        "scale": ["--more", tmp_path / "more.toml", "--sizes", "2,5"],
    }
    for suite, more in options.items():
        out = tmp_path / suite
        first, samples = run(suite, tiny, out, *own, *more), (out / "samples.jsonl").read_bytes()
        (out / "samples.jsonl").write_bytes(
            samples[: len(samples) * 2 // 3]
        )  # a kill in the middle of a line
        again = run(suite, tiny, out, *own, *more)
        lines = [
            json.loads(line)["cell"] for line in (out / "samples.jsonl").read_text().splitlines()
        ]
        assert len(lines) == len(set(lines)) == samples.count(b"\n"), suite
        rescored = run(
            suite,
            tiny,
            tmp_path / f"{suite}-again",
            *own,
            *more,
            "--rescore",
            out / "samples.jsonl",
        )
        for name, cell in first["systems"]["prompting-only"].items():
            assert again["systems"]["prompting-only"][name]["value"] == pytest.approx(
                cell["value"], abs=1e-3
            ), (suite, name)
        assert rescored["systems"] == again["systems"], suite
    assert (
        first["metrics"]["candidates_5"]["chance"] == 0.2
        and first["systems"]["prompting-only"]["candidates_5"]["value"]
        <= first["systems"]["prompting-only"]["candidates_2"]["value"]
    )


def test_all_suites_in_one(tiny, tmp_path):
    evaluate.main(
        [
            "isd",
            "--model",
            str(tiny),
            "--template",
            "chatml",
            "--out",
            str(tmp_path),
            "--limit",
            "1",
            "--suites",
            "honesty,capability",
        ]
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary) == ["honesty", "capability"] and not summary["honesty"]["reportable"]
    for name, metric in (("honesty", "difference"), ("capability", "perplexity")):
        assert (
            summary[name]["systems"]["prompting-only"]
            == json.loads((tmp_path / name / "results.json").read_text())["systems"][
                "prompting-only"
            ][metric]
        )
    assert "NOT REPORTABLE" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["refusal", "--wording", "9"], "--wording 9"),
        (["scale", "--sizes", "3"], "--sizes 3"),
        (["scale", "--sizes", "x"], "whole numbers"),
        (["isd", "--suites", "nothing"], "--suites 'nothing'"),
        (["shift", "--pairs", "0"], "--pairs: expected >= 1, got 0"),
        (["override", "--data", "absent.jsonl"], "absent.jsonl"),
        (["isd-generate", "--wordings", "7"], "--wordings 7"),
        (["length", "--top-p", "0"], "--top-p"),
    ],
)
def test_bad_options_are_one_line(arguments, said, tmp_path, capsys):
    suite, *options = arguments
    code = cli.run(
        evaluate.main,
        [
            suite,
            "--model",
            "absent",
            "--template",
            "chatml",
            "--out",
            str(tmp_path / "o"),
            *options,
        ],
    )
    error = capsys.readouterr().err
    assert code == 2 and said in error and error.count("\n") == 1 and "Traceback" not in error
