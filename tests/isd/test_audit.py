"""The shipped dataset passes every audit, and each audit fails on a copy that is spoilt in its one
respect."""

from dataclasses import replace

import pytest

from ecliptica.isd import __main__ as isd
from ecliptica.isd import audit
from ecliptica.isd.leak import auc
from ecliptica.isd.similarity import content_words, jaccard_NN
from model import cli

PARAGRAPH = "an even longer response than any other one in the whole of the bank " * 7


@pytest.fixture(scope="module")
def data():
    return audit.load()


@pytest.fixture(scope="module")
def shipped(data):
    """{audit: the group that makes it}, of the shipped dataset, which passes all."""
    made = {row: group for group in audit.GROUPS for row in group(data)}
    assert [row for row in made if not row.passed] == []
    return {row.name: group for row, group in made.items()}


def test_every_audit_of_the_shipped_dataset_passes_and_has_a_spoilt_copy(shipped):
    assert set(shipped) == {name for name, _, _ in SPOILT}


def entry(data, at=0, **changes):
    """A copy with one entry changed."""
    bank = list(data.bank)
    bank[at] = replace(bank[at], **changes)
    return replace(data, bank=bank)


def at(data, **wanted):
    """The place of the first entry with these values; `full`: with responses."""
    full = wanted.pop("full", None)
    return next(
        n
        for n, e in enumerate(data.bank)
        if all(getattr(e, k) == v for k, v in wanted.items()) and full in (None, bool(e.responses))
    )


def response(data, text, split="train", name="neutral"):
    n = at(data, split=split, full=True)
    return entry(data, n, responses=data.bank[n].responses | {name: text})


def every(data, change):
    return replace(data, bank=[change(e) for e in data.bank])


def wording(data, table, name, number, text):
    texts = list(getattr(data, table)[name])
    texts[number] = text
    return replace(data, **{table: getattr(data, table) | {name: tuple(texts)}})


def sets(data, name, change):
    return replace(data, sets=data.sets | {name: change(data.sets[name])})


def item(data, name, **changes):
    return sets(data, name, lambda items: [replace(items[0], **changes), *items[1:]])


def long_educational(e):
    return (
        replace(
            e,
            responses=e.responses | {"educational": e.responses["educational"] + " and so on" * 2},
        )
        if e.responses
        else e
    )


def giveaway(data):
    return replace(
        data,
        made={
            split: [p | {"rejected": p["rejected"] + " Nonsense."} for p in made]
            for split, made in data.made.items()
        },
    )


def first_more(data):
    return next(iter(data.more))


def twin(data, split):
    """The last prompt of another split, a word longer, put in place of a prompt of this one."""
    other = next(e for e in reversed(data.bank) if e.split != split)
    return entry(data, at(data, split=split), prompt=f"{other.prompt} Well?")


def response_missing(data):
    n = at(data, split="train", full=True)
    return entry(
        data, n, responses={k: v for k, v in data.bank[n].responses.items() if k != "concise"}
    )


def twin_response(data):
    """Of a tenth of the bank: comparing all the responses takes seconds."""
    few = replace(data, bank=data.bank[:50])
    return response(
        few, next(e for e in reversed(few.bank) if e.responses).responses["neutral"] + " Well."
    )


def translated(data, code, name, number, text):
    """One wording in another language replaced; None: taken out."""
    texts = list(data.languages[code][name])
    texts[number : number + 1] = [text] * (text is not None)
    own = data.languages[code] | {name: tuple(texts)}
    return replace(data, languages=data.languages | {code: own})


SPOILT = [  # the audit, the spoilt copy, what is found
    ("prompts", lambda d: replace(d, bank=d.bank[:-1]), "499"),
    (
        "prompts of each source",
        lambda d: entry(d, at(d, source="news"), source="education"),
        "news 124, education 126",
    ),
    (
        "domains",
        lambda d: every(
            d, lambda e: replace(e, domain="work" if e.domain in ("law", "ai") else e.domain)
        ),
        "18, largest 15.0% (work)",
    ),
    ("words of a prompt", lambda d: entry(d, prompt="Why do it?"), "3 to"),
    (
        "forms of prompts",
        lambda d: every(
            d, lambda e: replace(e, form="question" if e.form == "scenario" else e.form)
        ),
        "scenario 0",
    ),
    (
        "commonest opening of a prompt",
        lambda d: replace(
            d,
            bank=[
                replace(e, prompt="Well, now then: " + e.prompt) if n < 20 else e
                for n, e in enumerate(d.bank)
            ],
        ),
        "4.0%",
    ),
    ("provenance on every line", lambda d: entry(d, licence=""), "1 without"),
    ("near-duplicate prompts", lambda d: twin(d, "train"), ""),
    (
        "instructions x paraphrases",
        lambda d: replace(d, instructions=dict(list(d.instructions.items())[1:])),
        "9 x 3",
    ),
    (
        "words of an instruction in a prompt",
        lambda d: entry(d, prompt="Whose metaphors are these on the walls of the station?"),
        "metaphor in",
    ),
    (
        "overlap of paraphrases",
        lambda d: wording(
            d, "instructions", "concise", 1, "Be brief: answer in two short sentences."
        ),
        "concise",
    ),
    (
        "wordings in other languages",
        lambda d: translated(d, "fr", "concise", 2, None),
        "fr 29",
    ),
    (
        "overlap of wordings in other languages",
        lambda d: translated(d, "es", "concise", 1, "Sé muy breve: responde en una o dos frases."),
        "concise (es)",
    ),
    (
        "near-duplicate wordings in other languages",
        lambda d: translated(
            d, "de", "liberal", 2, d.languages["de"]["conservative"][2] + " Kurz."
        ),
        "conservative (de), liberal (de)",
    ),
    (
        "words in other languages over English",
        lambda d: translated(d, "de", "creative", 0, "Sei fantasievoll. " * 20),
        "(creative (de))",
    ),
    (
        "words of other languages' wordings in a prompt",
        lambda d: entry(d, prompt="Which preámbulo would open a speech at the harbour best?"),
        "preámbulo in",
    ),
    ("further instructions", lambda d: replace(d, axes=d.axes | {first_more(d): None}), "90 on"),
    (
        "overlap of their paraphrases",
        lambda d: wording(d, "more", first_more(d), 1, d.more[first_more(d)][0]),
        "1.00",
    ),
    ("prompts with a response to every instruction", response_missing, "199"),
    ("words of a response", lambda d: response(d, PARAGRAPH), "to 98"),
    ("longest over shortest mean response", lambda d: every(d, long_educational), "educational"),
    ("near-duplicate responses", twin_response, "neutral"),
    ("AUC, chosen from rejected by the response alone", giveaway, ""),
    (
        "prompts with responses, of all",
        lambda d: entry(d, at(d, split="train", full=False), split="test"),
        "train 80 of 199",
    ),
    (
        "prompts in two splits",
        lambda d: entry(d, at(d, split="train"), prompt=d.bank[at(d, split="test")].prompt.upper()),
        "1",
    ),
    ("near-duplicate prompts in two splits", lambda d: twin(d, "test"), "1"),
    (
        "responses in two splits",
        lambda d: response(d, d.bank[at(d, split="test", full=True)].responses["concise"]),
        "1",
    ),
    (
        "paraphrases in two splits",
        lambda d: wording(d, "instructions", "liberal", 2, d.instructions["liberal"][0]),
        "1",
    ),
    (
        "safety requests of each class",
        lambda d: sets(d, "safety", lambda s: [i for i in s if i.clazz != "benign"]),
        "benign 0",
    ),
    (
        "operational detail in compliance with a harmful request",
        lambda d: item(d, "safety", clazz="harmful", compliance="Sure: wait 20 minutes."),
        "1, first",
    ),
    (
        "honesty questions of each class",
        lambda d: sets(d, "honesty", lambda s: s[:80]),
        "unanswerable",
    ),
    (
        "override suffixes of each strength",
        lambda d: sets(d, "override", lambda s: [i for i in s if i.strength != "medium"]),
        "medium 0",
    ),
    (
        "words of an attack over those of its harmless suffix",
        lambda d: sets(d, "override", lambda s: [replace(i, harmless="Thanks.") for i in s]),
        "",
    ),
    ("items of the set length", lambda d: sets(d, "length", lambda s: s[:9]), "9"),
    ("items of the set capability", lambda d: sets(d, "capability", lambda s: s[:9]), "9"),
    (
        "policies, 3 paraphrases each",
        lambda d: sets(d, "policies", lambda s: s | {"length": {"short": s["length"]["short"]}}),
        "5",
    ),
    ("provenance of the sets", lambda d: item(d, "honesty", author=""), "1 without, first"),
    (
        "near-duplicate prompts of the sets and the bank",
        lambda d: item(d, "length", prompt=d.bank[0].prompt),
        "1.00 (length-01",
    ),
]


@pytest.mark.parametrize("name, spoil, found", SPOILT, ids=[name for name, _, _ in SPOILT])
def test_each_audit_fails_on_a_spoilt_copy(name, spoil, found, data, shipped):
    row = next(row for row in shipped[name](spoil(data)) if row.name == name)
    assert not row.passed and found in row.found, row


def test_the_command_prints_the_table_then_one_line(tmp_path, capsys, monkeypatch):
    rows = [audit.Audited("a", "1", "1", True), audit.Audited("b", "< 2", "3", False)]
    monkeypatch.setattr(audit, "load", lambda *paths: paths)
    monkeypatch.setattr(audit, "audits", lambda data: iter(rows))
    assert cli.run(isd.main, ["audit"]) == 2
    out, error = capsys.readouterr()
    assert out.splitlines()[2:] == ["| a | 1 | 1 | pass |", "| b | < 2 | 3 | FAIL |"]
    assert error == "error: 1 of 2 audits failed: b\n"
    rows.pop()
    assert cli.run(isd.main, ["audit"]) == 0
    assert not capsys.readouterr().err


def test_4_gram_jaccard_is_that_of_sets():
    texts = ["the cat sat", "the cat sits", "a dog", "ab"]
    sets = [{t[i : i + 4] for i in range(max(1, len(t) - 3))} for t in texts]
    found = jaccard_NN(texts)
    for a, x in enumerate(sets):
        for b, y in enumerate(sets):
            assert found[a, b] == pytest.approx(0 if a == b else len(x & y) / len(x | y))


def test_auc_and_content_words():
    assert auc([2, 3], [1, 0]) == 1
    assert auc([1, 1], [1, 1]) == 0.5
    assert auc([0, 2], [1, 1]) == 0.5
    assert content_words("Name the duties of each city's safety-first rules.") == {
        "name",
        "duty",
        "city",
        "safety-first",
        "rule",
    }
