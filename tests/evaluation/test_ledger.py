"""The ledger: what a question is known by, resume after a cut anywhere, shared between runs, lines
that are none."""

import hashlib
import json

import pytest

from ecliptica.evaluation import run as run_suite
from ecliptica.evaluation import suites, systems
from ecliptica.evaluation.answers import seed_of
from ecliptica.evaluation.ledger import Ledger
from ecliptica.evaluation.questions import Question, Sampling
from ecliptica.evaluation.rescoring import recorded
from ecliptica.isd.hard import read_scores
from model.errors import InputError
from tests.conftest import write_jsonl
from tests.evaluation.conftest import Formula, lines_of, small_bank

NAMES = {"condition": "instruction", "prompt": "x", "instruction": "j", "wording": 2}


def sha(*parts):
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()[:24]


def test_a_question_is_known_by_what_samples_of_earlier_versions_hold():
    """Written out by hand; one as a literal, from an earlier version."""
    asked = Question("p", "i", "r", names={"prompt": "any"})
    assert asked.digest == sha("i", "p", "r")
    jsd = Question("p", "i", "r", asked="jsd", other_instruction="i2")
    assert jsd.digest == sha("jsd", "p", "i", "i2", "r")
    answer = Question("p", "i", asked="answer", sampling=Sampling(8), names=NAMES)
    assert answer.digest == sha("instruction", "x", "j", 2, "p", "i")
    assert Question("x", None, "y").digest == "7c4d1199eb91481f8cda837a"
    assert seed_of(answer) == int(
        hashlib.sha256(f"0 {answer.digest}".encode()).hexdigest()[:15], 16
    )


def test_two_questions_are_equal_if_what_is_asked_is():
    asked = Question("p", "i", "r", names={"prompt": "a"})
    assert asked == Question("p", "i", "r", names={"prompt": "b"})
    assert asked != Question("p", None, "r")
    assert asked != Question("p", "i", "r", asked="kl")
    answer = Question("p", "i", asked="answer", sampling=Sampling(8), names=NAMES)
    assert answer != Question("p", "i", asked="answer", sampling=Sampling(9), names=NAMES)


def test_only_what_is_missing_is_asked_and_a_cut_line_is_asked_again(tmp_path):
    questions = [Question(f"p{n}", "i", "r") for n in range(3)]
    system = Formula(lambda i, x, y: int(x[1:]))
    Ledger(tmp_path).ask(system, "base", questions[:2])
    raw = (tmp_path / "samples.jsonl").read_bytes()
    (tmp_path / "samples.jsonl").write_bytes(raw[:-3])
    answers = Ledger(tmp_path).ask(system, "base", questions)
    assert [answers[question] for question in questions] == [0, 1, 2]
    assert system.asked == [*questions[:2], *questions[1:]]
    assert len(lines_of(tmp_path / "samples.jsonl")) == 3


def test_one_system_is_never_taken_for_another(tmp_path):
    question = Question("p", "i", "r")
    ledger = Ledger(tmp_path)
    ledger.ask(Formula(lambda *_: 1, "one"), "trained", [question])
    other = Formula(lambda *_: 2, "two")
    assert not ledger.answers(other).knows(question)
    assert ledger.ask(other, "trained", [question])[question] == 2
    with pytest.raises(KeyError, match="not asked: logp of 'q'"):
        ledger.answers(other)[Question("q", None, "r")]


def test_a_kl_depends_on_the_control_and_is_0_of_the_control_itself(tmp_path):
    question = Question("p", "i", "r", asked="kl")
    ledger = Ledger(tmp_path)
    first, second, trained = (Formula(lambda *_: 3, name) for name in ("one", "two", "three"))
    assert ledger.ask(first, "base", [question], first)[question] == 0
    assert ledger.ask(trained, "trained", [question], first)[question] == 3
    assert not ledger.answers(trained, second).knows(question)
    assert [line["cell"] for line in ledger.lines()] == [f"{question.digest}/one"]


def test_runs_share_a_ledger_and_read_what_another_one_wrote_meanwhile(tmp_path):
    questions = [Question(f"p{n}", "i", "r") for n in range(4)]
    mine, theirs = Ledger(tmp_path / "l"), Ledger(tmp_path / "l")
    (tmp_path / "l").mkdir()
    base = Formula(lambda *_: 1, "base")
    mine.ask(base, "base", questions[:3])
    theirs.ask(base, "base", questions)
    assert base.asked == questions, "the second run asked again"


def test_the_base_model_is_scored_once_for_two_suites(tmp_path):
    """Override reads what switch asked, as far as it asks the same."""
    small_bank(tmp_path)
    bank = {"bank": f"{tmp_path}/bank.jsonl", "instructions": f"{tmp_path}/i.toml"}
    base = Formula(lambda i, x, y: len(y) - len(i or ""), "base")
    suite = suites.get("switch")
    options = suite.Options(**bank, controls=())
    first = run_suite(suite, options, {"prompting-only": base}, tmp_path / "shared")
    count = len(base.asked)
    again = run_suite(suite, options, {"another name": base}, tmp_path / "shared")
    assert len(base.asked) == count
    assert again.systems["another name"] == first.systems["prompting-only"]
    paraphrase = suites.get("paraphrase")
    run_suite(paraphrase, paraphrase.Options(**bank), {"b": base}, tmp_path / "shared")
    asked_again = set(base.asked[:count]) & set(base.asked[count:])
    assert not asked_again and len(base.asked) > count


@pytest.mark.parametrize(
    "line, message",
    [
        ("not json", "not valid JSON"),
        ('{"key": ["k"], "cell": "c"}', "'key' must be a string, got ['k']"),
        ('{"key": "k", "cell": "c", "logp": NaN}', "a number that is none (NaN is"),
        ('{"key": "k", "cell": "c", "logp": "-1"}', "'logp' must be a finite number, got '-1'"),
        ('{"key": "k", "cell": "c", "tokens": 2.5}', "'tokens' must be a whole number, got 2.5"),
    ],
)
def test_a_bad_line_is_named(line, message, tmp_path):
    good = '{"key": "k", "cell": "c", "logp": -1.0, "tokens": 2}'
    (tmp_path / "samples.jsonl").write_text(f'{good}\n{line}\n{{"half')
    with pytest.raises(InputError) as error:
        Ledger(tmp_path)
    assert f"samples.jsonl:2: {message}" in str(error.value)


def test_hard_negatives_read_a_ledger_that_holds_more_than_scores(tmp_path):
    names = {"prompt": "x", "response_to": "x"}
    questions = [
        Question("p", f"do {j}", f"r{k}", names=names | {"instruction": j, "response": k})
        for j in "ab"
        for k in "ab"
    ]
    kls = [Question("p", "do a", "ra", asked="kl", names=names | {"instruction": "a"})]
    system = Formula(lambda i, x, y: i[-1] == y[-1], "one")
    control = Formula(None, "control")
    Ledger(tmp_path).ask(system, "trained", questions + kls, control)
    scores, label = read_scores(tmp_path / "samples.jsonl", ["a", "b"])
    assert label == "trained"
    assert scores["x"].tolist() == [[1, 0], [0, 1]]


def test_a_cut_run_goes_on_and_asks_every_question_once(tiny, tmp_path):
    small_bank(tmp_path)
    suite = suites.get("switch")
    options = suite.Options(
        bank=f"{tmp_path}/bank.jsonl", instructions=f"{tmp_path}/i.toml", controls=()
    )
    loaded = {"prompting-only": systems.load(tiny, template="chatml")}
    whole = tmp_path / "whole.jsonl"
    want = run_suite(suite, options, loaded, whole)
    raw = whole.read_bytes()
    cells = sorted((line["key"], line["cell"]) for line in lines_of(whole))
    assert len(cells) == len(set(cells))

    first = raw.index(b"\n") + 1
    for at in (7, first, len(raw) // 2, len(raw) - 1):
        cut = tmp_path / f"{at}.jsonl"
        cut.write_bytes(raw[:at])
        got = run_suite(suite, options, loaded, cut)
        assert got.systems == want.systems, f"cut at byte {at}"
        kept = raw[: raw[:at].rfind(b"\n") + 1]
        assert cut.read_bytes().startswith(kept), f"cut at byte {at}: what was there is gone"
        again = sorted((line["key"], line["cell"]) for line in lines_of(cut))
        assert again == cells, f"cut at byte {at}"


def test_recorded_systems_are_those_of_the_file_the_control_first(tmp_path):
    write_jsonl(
        tmp_path / "samples.jsonl",
        [
            {"system": "trained", "key": "t", "cell": "c", "logp": -1.0, "tokens": 2},
            {"system": "prompting-only", "key": "b", "cell": "c", "logp": -1.0, "tokens": 2},
            {"system": "trained", "key": "a", "cell": "d", "r": "text", "tokens": 2},
        ],
    )
    by_label = recorded(Ledger(tmp_path))
    assert {label: (it.digest, it.answers_key) for label, it in by_label.items()} == {
        "prompting-only": ("b", ""),
        "trained": ("t", "a"),
    }
    assert list(by_label) == ["prompting-only", "trained"]
