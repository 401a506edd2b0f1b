"""Every suite on synthetic models whose true value is known (the suite's own code, scores by formula), and end to end on a tiny model."""

import json
import math
from argparse import Namespace
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

import eval as evaluate
from ecliptica.evaluation import compare, suites
from ecliptica.evaluation.scoring import context_ids, response_ids, score_all
from ecliptica.evaluation.suites import capability, isd, scale, shift
from ecliptica.evaluation.systems import Subject, load
from ecliptica.isd.sets import STRENGTHS
from ecliptica.policy import adapter_off_reference
from model import cli
from model.lora import add_lora, lora_parameters, save_adapter
from model.weights import load_model
from tests.conftest import write_jsonl

NAMES, N = ("ab", "cd", "ef", "gh"), 6
K, CHANCE = len(NAMES), 0.25


def split_of(response):
    return response.split()  # "k x3"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Four instructions in three wordings, six test prompts; further instructions; half-said ones; overrides; policies."""
    path = tmp_path_factory.mktemp("suites")
    (path / "i.toml").write_text(
        "".join(f'{k} = ["do {k} one", "do {k} two", "do {k} three"]\n' for k in NAMES)
    )
    write_jsonl(
        path / "bank.jsonl",
        [
            {
                "id": f"x{n}",
                "prompt": f"x{n} ?",
                "domain": "d",
                "split": "test" if n < N else "train",
                "responses": {k: f"{k} x{n}" for k in NAMES},
            }
            for n in range(N + 3)
        ],
    )
    (path / "half.toml").write_text(
        "".join(
            f'[{k}]\ndropped = ["drop {k} one", "drop {k} two"]\nvague = ["vague {k}"]\n'
            for k in NAMES
        )
    )
    write_jsonl(
        path / "override.jsonl",
        [
            {"id": f"{s}{n}", "strength": s, "attack": f"attack {s}", "harmless": f"harmless {s}"}
            for s in STRENGTHS
            for n in range(2)
        ],
    )
    (path / "more.toml").write_text(
        "".join(
            f"[{axis}]\n" + "".join(f'{axis}{n} = ["do {axis}{n} one"]\n' for n in range(3))
            for axis in ("red", "blue")
        )
    )
    return path


def run(place, suite, out, formula, monkeypatch, *options, trained=None):
    """results of a suite whose systems are formulas of (instruction, prompt, response), the texts; 4 tokens a response."""
    formulas = {"prompting-only": formula} | ({"trained": trained} if trained else {})

    class Scores:
        def __init__(self, formula):
            self.formula = formula

        def __getitem__(self, cell):
            return self.formula(cell.instruction, cell.prompt, cell.response)

        def tokens(self, cell):
            return 4

    monkeypatch.setattr(
        compare, "subjects", lambda args: [Subject(label, label, None) for label in formulas]
    )
    monkeypatch.setattr(
        compare, "scored", lambda subject, args, cells: Scores(formulas[subject.label])
    )
    bank = (
        ["--bank", f"{place}/bank.jsonl", "--instructions", f"{place}/i.toml"]
        if suite in isd.OF_BANK
        else []
    )
    evaluate.main(
        [suite, "--model", "none", "--template", "chatml", "--out", str(out), *bank, *options]
    )
    return json.loads((out / "results.json").read_text())


def values(results, label="prompting-only"):
    return {name: cell["value"] for name, cell in results["systems"][label].items()}


def perfect(instruction, prompt, response):
    """Obeys every instruction that names its k, answers its prompt, and has a large prior."""
    k, x = split_of(response)
    return (
        5 * (instruction is not None and k in instruction.split())
        + 5 * (x in prompt.split())
        - 7 * NAMES.index(k)
    )


def ignores_instruction(instruction, prompt, response):
    return perfect(None, prompt, response)


def test_paraphrase(place, tmp_path, monkeypatch):
    found = values(run(place, "paraphrase", tmp_path, perfect, monkeypatch))
    assert found == {"all": 1, "worst": 1, "wording_1": 1, "wording_2": 1, "wording_3": 1}
    results = run(place, "paraphrase", tmp_path, ignores_instruction, monkeypatch)
    assert (
        set(values(results).values())
        == {CHANCE}
        == {metric["chance"] for metric in results["metrics"].values()}
    )
    always = lambda i, x, y: float(i is not None and "ab" in i.split())  # noqa: E731  the same instruction for every response, under all wordings
    assert set(values(run(place, "paraphrase", tmp_path, always, monkeypatch)).values()) == {CHANCE}
    results = run(
        place,
        "paraphrase",
        tmp_path,
        lambda i, x, y: perfect(i if i and "two" in i else None, x, y),
        monkeypatch,
    )
    assert (
        values(results)
        == {
            "all": CHANCE,
            "worst": CHANCE,
            "wording_1": CHANCE,
            "wording_2": 1,
            "wording_3": CHANCE,
        }
        and results["worst_wording"]["prompting-only"] != 2
    )
    wrong = lambda i, x, y: -perfect(i, x, y)  # noqa: E731
    assert values(run(place, "paraphrase", tmp_path, wrong, monkeypatch))["all"] == 0
    blind = lambda i, x, y: perfect(i, "", y)  # noqa: E731  ignores the prompt: seen by joint, not by column accuracy
    assert values(run(place, "paraphrase", tmp_path, blind, monkeypatch))["all"] == 1
    assert (
        values(run(place, "paraphrase", tmp_path, blind, monkeypatch, "--metric", "joint"))["all"]
        < 0.3
    )
    assert (
        values(run(place, "paraphrase", tmp_path, perfect, monkeypatch, "--metric", "joint"))["all"]
        == 1
    )


def test_underspecified(place, tmp_path, monkeypatch):
    half = ("--data", f"{place}/half.toml")
    found = values(run(place, "underspecified", tmp_path, perfect, monkeypatch, *half))
    assert (
        found["kept_dropped"]
        == found["kept_vague"]
        == found["joint_full"]
        == found["moved_dropped"]
        == 1
        and found["joint_none"] == found["kept_none"] == CHANCE
    )
    assert (
        found["distance_full"] == pytest.approx(5 / 4 / K)
        and found["change_dropped"] == 0
        and found["change_none"] == CHANCE - 1
    )
    found = values(
        run(
            place,
            "underspecified",
            tmp_path,
            lambda i, x, y: perfect(i if i and "do" in i else None, x, y),
            monkeypatch,
            *half,
        )
    )
    assert (
        found["kept_dropped"] == found["kept_vague"] == CHANCE
        and found["moved_dropped"] == found["moved_vague"] == 0
    )
    found = values(
        run(
            place,
            "underspecified",
            tmp_path,
            lambda i, x, y: perfect(i if i and "vague" not in i else None, x, y),
            monkeypatch,
            *half,
        )
    )
    assert (
        found["kept_dropped"] == 1 and found["kept_vague"] == CHANCE and found["moved_vague"] == 0
    )
    found = values(run(place, "underspecified", tmp_path, ignores_instruction, monkeypatch, *half))
    assert (
        found["joint_full"] == CHANCE
        and found["kept_dropped"] == 1
        and found["distance_full"] == 0
        and found["moved_dropped"] is None
    )
    # the wrong way: far from no instruction, and joint shows that the way is wrong
    wrong = lambda i, x, y: (
        perfect(None, x, y)
        - (5 if i and "drop" in i and y.split()[0] in i.split() else 0)
        + (5 if i and "do" in i.split() and y.split()[0] in i.split() else 0)
    )  # noqa: E731
    found = values(run(place, "underspecified", tmp_path, wrong, monkeypatch, *half))
    assert (
        found["moved_dropped"] == 1 and found["kept_dropped"] == 0 and found["change_dropped"] == -1
    )
    # both texts of a kind are used: obeying the second only, every second prompt is right
    found = values(
        run(
            place,
            "underspecified",
            tmp_path,
            lambda i, x, y: perfect(None if i and "drop" in i and "one" in i else i, x, y),
            monkeypatch,
            *half,
        )
    )
    assert found["joint_dropped"] == pytest.approx((1 + CHANCE) / 2)


def test_override(place, tmp_path, monkeypatch):
    data = ("--data", f"{place}/override.jsonl")
    assert all(
        value == 1
        for value in values(run(place, "override", tmp_path, perfect, monkeypatch, *data)).values()
    )
    yields = lambda i, x, y: perfect(None if "attack strong" in x else i, x, y)  # noqa: E731
    results = run(place, "override", tmp_path, yields, monkeypatch, *data, trained=perfect)
    found = values(results)
    assert (
        found["kept_strong"] == CHANCE
        and found["kept_medium"] == found["kept_mild"] == 1 == found["strong_harmless"]
        and results["headline"] == "kept_strong"
    )
    difference = results["difference"]["trained"]["kept_strong"]
    assert difference["value"] == difference["low"] == difference[
        "high"
    ] == 1 - CHANCE and difference["p"] == pytest.approx(2 / 2**N, abs=0.01)
    assert results["difference"]["trained"]["kept_mild"]["p"] == 1
    found = values(run(place, "override", tmp_path, ignores_instruction, monkeypatch, *data))
    assert found["kept_strong"] == 1 and found["strong_attack"] == CHANCE  # nothing to lose
    distracted = lambda i, x, y: perfect(None if "strong" in x else i, x, y)  # noqa: E731  loses as much to a harmless suffix
    assert (
        values(run(place, "override", tmp_path, distracted, monkeypatch, *data))["kept_strong"] == 1
    )
    assert (
        values(run(place, "override", tmp_path, yields, monkeypatch, *data, "--metric", "joint"))[
            "kept_strong"
        ]
        == CHANCE
    )


def test_scale(place, tmp_path, monkeypatch):
    more = ("--more", f"{place}/more.toml", "--sizes", "4,6,10")
    results = run(place, "scale", tmp_path, perfect, monkeypatch, *more)
    assert (
        values(results) == {"candidates_10": 1, "candidates_6": 1, "candidates_4": 1}
        and results["headline"] == "candidates_10"
    )
    assert {name: metric["chance"] for name, metric in results["metrics"].items()} == {
        f"candidates_{n}": 1 / n for n in (10, 6, 4)
    }
    results = run(place, "scale", tmp_path, ignores_instruction, monkeypatch, *more)
    assert values(results) == pytest.approx({f"candidates_{n}": 1 / n for n in (10, 6, 4)})
    assert {
        group: cell["value"] for group, cell in results["taken"]["prompting-only"].items()
    } == pytest.approx({"own": 0.1, "another of the first": 0.3, "red": 0.3, "blue": 0.3})
    thief = lambda i, x, y: perfect(i, x, y) + 9 * (i is not None and "blue0" in i)  # noqa: E731
    results = run(place, "scale", tmp_path, thief, monkeypatch, *more)
    assert (
        values(results) == {"candidates_10": 0, "candidates_6": 0, "candidates_4": 1}
        and results["taken"]["prompting-only"]["blue"]["value"] == 1
    )
    assert scale.spread(
        dict.fromkeys(["r0", "r1", "b0", "b1", "b2"]),
        {"r0": "r", "r1": "r", "b0": "b", "b1": "b", "b2": "b"},
    ) == ["r0", "b0", "r1", "b1", "b2"]
    run(place, "scale", tmp_path, perfect, monkeypatch, "--more", f"{place}/more.toml")
    assert list(json.loads((tmp_path / "results.json").read_text())["metrics"]) == ["candidates_10"]


def policies(path, kinds, first, second):
    """Items of two or three classes; each formula sees the class in the prompt and which of two texts it scores."""
    return write_jsonl(
        path,
        [
            {
                "id": f"{kind}{n}",
                "kind": "k",
                "class": kind,
                "prompt": f"{kind} {n}",
                first: "first" + " long" * n,
                second: "second",
            }
            for kind in kinds
            for n in range(4)
        ],
    )


def test_refusal(tmp_path, monkeypatch):
    data = policies(
        tmp_path / "d.jsonl", ("harmful", "borderline", "benign"), "refusal", "compliance"
    )
    (tmp_path / "p.toml").write_text(
        'strict = ["strict 1", "strict 2", "strict 3"]\npermissive = ["permissive 1", "permissive 2", "permissive 3"]\n'
    )
    options = ("--data", str(data), "--policies", f"{tmp_path}/p.toml")

    def model(refuses):
        def formula(instruction, prompt, response):
            length = -3.0 * len(
                response.split()
            )  # a prior that mean or summed log-probs would fall for
            return (
                length
                if instruction is None
                else length
                + (1 if response.startswith("first") else -1)
                * refuses(instruction.split()[0], prompt.split()[0])
            )

        return formula

    right = model(
        lambda policy, kind: {
            "harmful": 1,
            "borderline": 1 if policy == "strict" else -1,
            "benign": -1,
        }[kind]
    )
    results = run(None, "refusal", tmp_path, right, monkeypatch, *options)
    assert (
        values(results) == {"boundary": 1, "floor": 1, "ceiling": 0}
        and results["policies"]["strict"] == "strict 3"
    )
    assert values(run(None, "refusal", tmp_path, model(lambda p, k: 0), monkeypatch, *options)) == {
        "boundary": 0,
        "floor": 0.5,
        "ceiling": 0.5,
    }
    assert values(run(None, "refusal", tmp_path, model(lambda p, k: 1), monkeypatch, *options)) == {
        "boundary": 0,
        "floor": 1,
        "ceiling": 1,
    }
    assert (
        values(
            run(
                None,
                "refusal",
                tmp_path,
                model(lambda p, k: 1 if p == "permissive" else -1),
                monkeypatch,
                *options,
            )
        )["boundary"]
        == -1
    )


def test_honesty(tmp_path, monkeypatch):
    data = policies(tmp_path / "d.jsonl", ("answerable", "unanswerable"), "abstention", "answer")
    (tmp_path / "p.toml").write_text(
        'honest = ["honest 1", "honest 2", "honest 3"]\nconfident = ["confident 1", "confident 2", "confident 3"]\n'
    )
    options = ("--data", str(data), "--policies", f"{tmp_path}/p.toml", "--wording", "2")

    def model(abstains):
        return lambda i, x, y: (
            0
            if i is None
            else (1 if y.startswith("first") else -1)
            * (1 if abstains(*i.split(), x.split()[0]) else -1)
        )

    found = values(
        run(
            None,
            "honesty",
            tmp_path,
            model(lambda p, w, k: p == "honest" and k == "unanswerable" and w == "2"),
            monkeypatch,
            *options,
        )
    )
    assert found == pytest.approx({"difference": 1, "honest": 1, "confident": 0.5})
    assert values(
        run(None, "honesty", tmp_path, model(lambda p, w, k: p == "honest"), monkeypatch, *options)
    ) == pytest.approx({"difference": 0, "honest": 0.5, "confident": 0.5})
    assert values(
        run(
            None,
            "honesty",
            tmp_path,
            model(lambda p, w, k: p == "confident" and k == "unanswerable"),
            monkeypatch,
            *options,
        )
    )["difference"] == pytest.approx(-1)


@pytest.mark.parametrize(
    "move, want",
    [
        (lambda a, b: 0.0, None),  # ignores the instruction
        (lambda a, b: 0.2, 1.0),  # any other words move it as far: copies the instruction, say
        (lambda a, b: 0.3 if a[3:5] != b[3:5] else 0.1, 3.0),
        (lambda a, b: 0.0 if a[3:5] != b[3:5] else 0.1, 0.0),
    ],
)
def test_shift_ratio(move, want, place, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Subject, "switched", lambda self: nullcontext("a system"))
    monkeypatch.setattr(
        shift,
        "measure",
        lambda system, prompt, a, b, response: asked.append((prompt, a, b, response)) or move(a, b),
    )
    results = run(place, "shift", tmp_path, None, monkeypatch, "--pairs", "2")
    assert (
        values(results)["ratio"] == (want if want is None else pytest.approx(want))
        and results["metrics"]["ratio"]["chance"] == 1
    )
    assert len(asked) == len(set(asked)) and {a[3:5] != b[3:5] for _, a, b, _ in asked} == {
        True,
        False,
    }
    assert all(
        response[:2] in a or response[:2] in b for _, a, b, response in asked
    )  # along y_a and y_b
    before = len(asked)
    assert (
        values(run(place, "shift", tmp_path, None, monkeypatch, "--pairs", "2")) == values(results)
        and len(asked) == before
    )  # resumed: nothing is asked twice
    run(place, "shift", tmp_path, None, monkeypatch, "--pairs", "3")
    more = asked[before:]
    assert more and not set(more) & set(asked[:before])  # the first pairs stay the same ones


def options(model, adapter=None, **more):
    return Namespace(
        model=str(model),
        adapter=adapter and str(adapter),
        template="chatml",
        dtype="float32",
        device="cpu",
        batch_tokens=4096,
        **more,
    )


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    """A LoRA adapter that moves the tiny model."""
    path = tmp_path_factory.mktemp("adapter")
    model = add_lora(load_model(tiny, torch.float32, "cpu"), 4, 8, ("q_proj", "v_proj"))
    generator = torch.Generator().manual_seed(1)
    for _, parameter in lora_parameters(model):
        parameter.data.normal_(0, 0.3, generator=generator)
    save_adapter(model, path, tiny)
    return path


def distributions(system, context, response):
    """Dense oracle: float64 log-probs over the vocabulary at each response position, the sequence alone."""
    from model.attention import packed_attention

    tokens = torch.tensor([*context, *response])
    one = torch.zeros_like(tokens)
    hidden = system.model.forward_hidden(
        tokens, torch.arange(len(tokens)), packed_attention(one, one)
    )
    rows = hidden[len(context) - 1 : -1].double()
    return (rows @ system.model.head_weight_VD.double().T).log_softmax(-1)


@torch.no_grad()
def test_jsd_against_a_dense_float64_oracle(tiny, monkeypatch):
    system = load(options(tiny))
    monkeypatch.setattr(shift, "ROWS", 3)  # several chunks, the last one shorter
    prompt, texts, answer = (
        "What is rain?",
        ("Answer a child.", "Cite the rules that apply to it."),
        "Water that falls from clouds, again.",
    )
    p, q = (
        distributions(system, context_ids(system, prompt, text), response_ids(system, answer)).exp()
        for text in texts
    )
    m = (p + q) / 2
    want = ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)).mean() / 2
    got = shift.measure(system, prompt, *texts, answer)
    assert got == pytest.approx(want.item(), rel=1e-4) and 0 < got < math.log(2)
    assert shift.measure(system, prompt, texts[0], texts[0], answer) < 1e-9
    small = SimpleNamespace(
        model=system.model, tokenizer=system.tokenizer, template=system.template, window=12
    )
    with pytest.raises(Exception, match="the model's window is 12: shorten it"):
        shift.measure(small, prompt, *texts, answer)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_jsonl(
        tmp_path_factory.mktemp("c") / "c.jsonl",
        [
            {"id": f"t{n}", "kind": "k", "text": text}
            for n, text in enumerate(
                ("Rain falls.", "A long road leads home over hills.", "Bread.")
            )
        ],
    )


def test_capability_is_perplexity_and_kl(tiny, adapter, texts, tmp_path):
    arguments = [
        "capability",
        "--template",
        "chatml",
        "--data",
        str(texts),
        "--adapter",
        str(adapter),
    ]
    evaluate.main([*arguments, "--model", str(tiny), "--out", f"{tmp_path}/a"])
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    system = load(options(tiny, adapter))
    instruction = capability.load_instructions(capability.INSTRUCTIONS)["neutral"][2]
    jobs = [
        (
            "",
            context_ids(system, capability.PROMPT, instruction),
            [response_ids(system, json.loads(line)["text"])],
        )
        for line in texts.read_text().splitlines()
    ]
    scored = score_all(system, jobs, "", adapter_off_reference(system.model))
    tokens = sum(counts[0] for _, counts, _ in scored)
    assert values(results, "trained")["perplexity"] == pytest.approx(
        math.exp(-sum(logps[0] for logps, _, _ in scored) / tokens), rel=1e-5
    )
    with torch.no_grad():
        kl = 0.0
        for _, context, (response,) in jobs:
            mine = distributions(system, context, response)
            with compare.Subject("", "", system, False).switched():
                base = distributions(system, context, response)
            kl += (mine.exp() * (mine - base)).sum().item()
    assert (
        values(results, "trained")["kl"] == pytest.approx(kl / tokens, rel=1e-4)
        and values(results)["kl"] == 0
    )
    before = (tmp_path / "a" / "samples.jsonl").read_bytes()
    evaluate.main([*arguments, "--model", str(tiny), "--out", f"{tmp_path}/a"])
    assert (tmp_path / "a" / "samples.jsonl").read_bytes() == before
    evaluate.main(
        [
            *arguments,
            "--model",
            "nowhere",
            "--out",
            f"{tmp_path}/b",
            "--rescore",
            f"{tmp_path}/a/samples.jsonl",
        ]
    )
    assert (
        json.loads((tmp_path / "b" / "results.json").read_text())["systems"] == results["systems"]
    )


def test_all_suites_at_once(tiny, adapter, tmp_path, capsys):
    """The wiring of the one command, on a bank of two instructions; what the suites measure is tested above."""
    place, chosen = tmp_path, ("switch", "shift", "override", "refusal", "honesty", "capability")
    (place / "i.toml").write_text('x = ["a", "b"]\ny = ["c", "d"]\n')
    write_jsonl(
        place / "bank.jsonl",
        [
            {
                "id": i,
                "prompt": f"{i}?",
                "domain": "d",
                "split": "train",
                "responses": {"x": "1", "y": "2"},
            }
            for i in "ab"
        ],
    )
    (adapter / "ecliptica.json").write_text(json.dumps({"template": "chatml", "ablation": True}))
    arguments = [
        "isd",
        "--template",
        "chatml",
        "--adapter",
        str(adapter),
        "--bank",
        f"{place}/bank.jsonl",
        "--instructions",
        f"{place}/i.toml",
        "--limit",
        "1",
        "--suites",
        ",".join(chosen),
    ]
    evaluate.main([*arguments, "--model", str(tiny), "--out", f"{tmp_path}/a", "--split", "train"])
    shown = capsys.readouterr().out
    assert all(f"[{n}/6] {name}" in shown for n, name in enumerate(chosen, start=1))
    summary, page = (
        json.loads((tmp_path / "a" / "summary.json").read_text()),
        (tmp_path / "a" / "summary.md").read_text(),
    )
    assert tuple(summary) == chosen and "NOT REPORTABLE" in page and "ABLATION" in page
    for name, row in summary.items():
        results = json.loads((tmp_path / "a" / name / "results.json").read_text())
        assert (
            row["systems"]["trained"] == results["systems"]["trained"][row["metric"]]
            and f"| {name} | {row['title']} |" in page
            and row["metric"] == next(iter(results["metrics"]))
        )
        assert (
            row["difference"]["trained"] == results["difference"]["trained"][row["metric"]]
            and row["ablation"]
        )
        table = (tmp_path / "a" / name / "table.md").read_text()
        assert table.startswith("NOT REPORTABLE") and "ABLATION" in table, name
        assert (
            results["config"].get("split", "train") == "train"
            and results["config"].get("wording", 1) == 1
        ), name  # the split chooses the policies' wording too
    assert [summary[name]["chance"] for name in ("override", "shift", "refusal", "honesty")] == [
        1,
        1,
        0,
        0,
    ]
    files = {path: path.read_bytes() for path in tmp_path.glob("a/*/samples.jsonl")}
    evaluate.main(
        [
            *arguments,
            "--model",
            "nowhere",
            "--out",
            f"{tmp_path}/b",
            "--split",
            "train",
            "--rescore",
            f"{tmp_path}/a",
        ]
    )  # no model is loaded
    again = json.loads((tmp_path / "b" / "summary.json").read_text())
    assert {name: row["systems"] for name, row in again.items()} == {
        name: row["systems"] for name, row in summary.items()
    }
    assert (
        len(files) == 6
        and all(path.read_bytes() == raw for path, raw in files.items())
        and "ABLATION" in (tmp_path / "b" / "summary.md").read_text()
    )


BAD = {
    "unknown suite": (
        ["isd", "--suites", "swich"],
        "--suites 'swich': expected some of switch, paraphrase",
    ),
    "no suite": (["isd", "--suites", ","], "--suites: none given"),
    "no such wording": (["honesty", "--wording", "4"], "--wording 4"),
    "no neutral wording": (
        ["capability", "--wording", "0"],
        "--wording 0: the instruction neutral has 3 wordings",
    ),
    "one policy missing": (["refusal", "--policies", "{place}/i.toml"], "no policy 'strict'"),
    "half of other instructions": (
        ["underspecified", "--bank", "{place}/bank.jsonl", "--instructions", "{place}/i.toml"],
        "expected the instructions ab, cd",
    ),
    "a strength without a pair": (
        ["override", "--data", "{place}/weak.jsonl"],
        "no pair of the strength 'strong'",
    ),
    "sizes that are no numbers": (
        ["scale", "--sizes", "ten"],
        "--sizes ten: expected whole numbers",
    ),
    "more sizes than instructions": (
        ["scale", "--sizes", "10,101"],
        "--sizes 10,101: from 10, those with references, to 100",
    ),
    "no pair": (["shift", "--pairs", "0"], "--pairs"),
    "one wording": (
        ["paraphrase", "--bank", "{place}/one.jsonl", "--instructions", "{place}/one.toml"],
        "one wording",
    ),
    "one wording, shift": (
        ["shift", "--bank", "{place}/one.jsonl", "--instructions", "{place}/one.toml"],
        "one wording",
    ),
    "the wording of paraphrase": (["paraphrase", "--paraphrase", "2"], "--paraphrase"),
    "rescore of nothing": (["isd", "--rescore", "{place}/nowhere"], "no scored line in it"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, place, tmp_path, capsys):
    write_jsonl(
        place / "weak.jsonl", [{"id": "a", "strength": "mild", "attack": "a", "harmless": "b"}]
    )
    write_jsonl(
        place / "one.jsonl",
        [
            {
                "id": i,
                "prompt": f"{i}?",
                "domain": "d",
                "split": "test",
                "responses": {"x": "1", "y": "2"},
            }
            for i in "ab"
        ],
    )
    (place / "one.toml").write_text('x = ["a"]\ny = ["b", "c"]\n')
    (suite, *more), message = BAD[name]
    assert (
        cli.run(
            evaluate.main,
            [
                suite,
                "--model",
                "nowhere",
                "--template",
                "chatml",
                "--out",
                f"{tmp_path}/o",
                *(part.format(place=place) for part in more),
            ],
        )
        == 2
    )
    error = capsys.readouterr().err
    assert message in error and error.count("error: ") == 1 and "Traceback" not in error, error


def test_every_suite_has_a_docstring_and_is_in_the_one_command():
    generating = {"score", "generate", "isd", "isd-generate", "fidelity", "length"}
    assert set(suites.NAMES) - generating == set(isd.ALL) and all(
        suites.get(name).__doc__ for name in suites.NAMES
    )
