"""The contrastive pairs are balanced, of the kinds they say, and the same for the same seed; hard
negatives are the best permutation."""

import json
from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from ecliptica.data.formats import isd as isd_format
from ecliptica.isd import __main__ as isd
from ecliptica.isd.bank import (
    Entry,
    load_bank,
    load_families,
    load_instructions,
    own_wording,
    referenced,
)
from ecliptica.isd.hard import assignment, hardest, read_scores
from ecliptica.isd.pairs import Pairing, pairs
from model import cli
from model.errors import InputError
from tests.conftest import write_jsonl

NAMES = ["x", "y", "z"]
INSTRUCTIONS = {name: (f"{name} 1", f"{name} 2", f"{name} 3") for name in NAMES}
SMALL = [
    Entry(f"p{n}", f"prompt {n}", "d", "train", {name: f"{name} of {n}" for name in NAMES})
    for n in range(4)
] + [Entry("bare", "b", "d", "train")]


@pytest.fixture(scope="module")
def bank():
    return load_bank(instructions=load_instructions())


def cells(entries, system="trained", seed=0):
    """Scores as eval.py switch writes them, with one at a distractor prompt, which is not read."""
    generator = np.random.default_rng(seed)
    own = [
        {
            "system": system,
            "prompt": e.id,
            "instruction": j,
            "response_to": e.id,
            "response": k,
            "logp": float(generator.normal()) - 40,
            "tokens": 9,
        }
        for e in entries
        for j in e.responses
        for k in e.responses
    ]
    return own + [own[0] | {"response_to": "p3", "logp": 1e6}]


def kinds(made):
    return Counter(p["id"].split("/")[2].split("-")[0] for p in made)


@pytest.mark.parametrize("hard", [False, True])
def test_every_response_is_chosen_as_often_as_rejected_and_nothing_leaks(bank, hard, tmp_path):
    instructions = load_instructions()
    entries = [entry for entry in referenced(bank) if entry.split == "train"]
    scores = (
        read_scores(write_jsonl(tmp_path / "s.jsonl", cells(entries)), list(instructions))[0]
        if hard
        else None
    )
    made = pairs(bank, instructions, "train", Pairing(rounds=2), scores)
    each = 80 * 10 * 2
    assert kinds(made) == {"sibling": each, "prompt": each} | ({"hard": each} if hard else {})
    chosen, rejected = Counter(p["chosen"] for p in made), Counter(p["rejected"] for p in made)
    assert len(chosen) == 800
    assert set(chosen.values()) == {6 if hard else 4}
    assert chosen == rejected
    of_id, owner = (
        {entry.id: entry for entry in entries},
        {text: (entry.id, name) for entry in bank for name, text in entry.responses.items()},
    )
    for p in made:
        prompt_id, name, kind = p["id"].split("/")
        assert p["instruction"] == own_wording("train", instructions[name])
        assert p["prompt"] == of_id[prompt_id].prompt
        assert owner[p["chosen"]] == (prompt_id, name)
        other_id, other_name = owner[p["rejected"]]
        assert (
            (other_id != prompt_id and other_name == name)
            if kind.startswith("prompt")
            else (other_id == prompt_id and other_name != name)
        )
    assert (
        pairs(bank, instructions, "train", Pairing(rounds=2), scores)
        == made
        != pairs(bank, instructions, "train", Pairing(seed=1, rounds=2), scores)
    )


def test_dev_pairs_have_their_own_prompts_and_wording(bank):
    made = pairs(bank, load_instructions(), "dev")
    assert {p["instruction"] for p in made} == {texts[1] for texts in load_instructions().values()}
    assert {p["prompt"] for p in made} == {
        entry.prompt for entry in referenced(bank) if entry.split == "dev"
    }


@pytest.mark.parametrize("size", range(2, 7))
def test_the_assignment_is_the_best_of_all_permutations(size):
    generator = np.random.default_rng(size)
    for scale in (1e-2, 1.0, 1e3):
        for _ in range(15):
            s_JK = generator.normal(size=(size, size)) * scale
            everyone = list(permutations(range(size)))
            total = {sigma: sum(s_JK[j, k] for j, k in enumerate(sigma)) for sigma in everyone}
            assert total[tuple(assignment(s_JK))] == pytest.approx(min(total.values()))
            found = hardest(s_JK)
            assert total[tuple(found)] == pytest.approx(
                max(total[sigma] for sigma in everyone if all(j != k for j, k in enumerate(sigma)))
            )
            shifted = (
                s_JK
                + generator.normal(size=size) * 50 * scale
                + generator.normal(size=(size, 1)) * 50 * scale
            )
            assert (
                hardest(shifted) == found
            )  # a response's own likelihood, and a context's, decide nothing


def test_hard_pairs_are_those_of_the_scores(tmp_path):
    records = cells(SMALL[:4]) + [c | {"system": "other"} for c in cells(SMALL[:4], seed=1)]
    path = write_jsonl(tmp_path / "s.jsonl", records)
    scores, system = read_scores(path, NAMES)
    assert system == "other"
    assert read_scores(path, NAMES, "trained")[1] == "trained"
    assert scores["p1"][0, 2] == next(
        c["logp"]
        for c in records
        if (c["system"], c["prompt"], c["instruction"], c["response"]) == ("other", "p1", "x", "z")
    )
    made = {p["id"]: p for p in pairs(SMALL, INSTRUCTIONS, "train", scores=scores)}
    for prompt, s_JK in scores.items():
        for j, k in enumerate(hardest(s_JK)):
            assert made[f"{prompt}/{NAMES[j]}/hard-0"]["rejected"] == f"{NAMES[k]} of {prompt[1:]}"


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda c: c[:4] + c[5:], "p0 has no score of the response 'y' under the instruction 'y'"),
        (
            lambda c: [r for r in c if r["prompt"] != "p2"],
            "the scores have no cell of the prompt p2",
        ),
        (
            lambda c: [c[0] | {"logp": "low"}] + c,
            r"s.jsonl:1: 'logp' must be a finite number, got 'low'",
        ),
        (
            lambda c: [{k: v for k, v in c[0].items() if k != "response"}],
            r"s.jsonl:1: the field 'response' is missing",
        ),
    ],
)
def test_bad_scores_are_named(spoil, message, tmp_path):
    path = write_jsonl(tmp_path / "s.jsonl", spoil(cells(SMALL[:4])))
    with pytest.raises(InputError, match=message):
        pairs(SMALL, INSTRUCTIONS, "train", scores=read_scores(path, NAMES)[0])


def test_too_little_to_contrast_is_named():
    for entries, message in (
        (SMALL[:1], "1 prompts with reference responses"),
        ([Entry("q", "q", "d", "train", {"x": "1"})], "q: no response to the instruction 'y'"),
    ):
        with pytest.raises(InputError, match=message):
            pairs(entries, INSTRUCTIONS, "train")


def test_build_says_whether_there_are_hard_negatives(bank, tmp_path, capsys):
    out, scores = (
        tmp_path / "p.jsonl",
        write_jsonl(tmp_path / "s.jsonl", cells([e for e in referenced(bank) if e.split == "dev"])),
    )
    assert cli.run(isd.main, ["build", "--split", "dev", "--out", str(out)]) == 0
    assert "without hard negatives" in capsys.readouterr().out
    assert len(out.read_text().splitlines()) == 400
    assert (
        cli.run(isd.main, ["build", "--split", "dev", "--out", str(out), "--scores", str(scores)])
        == 0
    )
    assert "hard negatives by the scores of 'trained'" in capsys.readouterr().out
    assert kinds([json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]) == {
        "sibling": 200,
        "prompt": 200,
        "hard": 200,
    }
    for arguments, message in (
        (["--scores", str(scores), "--system", "nobody"], "no system 'nobody'; it has 'trained'"),
        (["--rounds", "0"], "--rounds: expected > 0, got 0"),
        (["--split", "train", "--scores", str(scores)], "the scores have no cell of the prompt"),
    ):
        assert cli.run(isd.main, ["build", "--split", "dev", "--out", str(out), *arguments]) == 2
        assert message in capsys.readouterr().err


def test_random_negatives_are_of_any_other_prompt_and_balanced(bank):
    instructions = load_instructions()
    made = pairs(bank, instructions, "train", Pairing(negatives=("random",)))
    assert kinds(made) == {"random": 800}
    assert Counter(p["chosen"] for p in made) == Counter(p["rejected"] for p in made)
    owner = {text: (e.id, name) for e in bank for name, text in e.responses.items()}
    names = Counter()
    for p in made:
        prompt, name, _ = p["id"].split("/")
        other_prompt, other_name = owner[p["rejected"]]
        assert other_prompt != prompt
        names[other_name == name] += 1
    assert 0.05 < names[True] / 800 < 0.15, "one in ten has the same instruction by chance"

    # What is asked for beside it is paired as without it.
    both = pairs(bank, instructions, "train", Pairing(negatives=("sibling", "prompt", "random")))
    plain = pairs(bank, instructions, "train")
    without_it = {p["id"]: p for p in both if "/random-" not in p["id"]}
    assert without_it == {p["id"]: p for p in plain}


def test_an_instruction_is_drawn_from_each_family(bank):
    instructions = load_instructions()
    families = load_families(instructions=instructions)
    assert sorted(name for ids in families.values() for name in ids) == sorted(instructions)
    pairing = Pairing(families=families, rounds=3)
    made = pairs(bank, instructions, "train", pairing)
    assert kinds(made) == {"sibling": 3 * 80 * 4, "prompt": 3 * 80 * 4}
    assert made == pairs(bank, instructions, "train", pairing)
    family_of = {name: family for family, ids in families.items() for name in ids}
    owner = {text: (e.id, name) for e in bank for name, text in e.responses.items()}
    for p in made:
        prompt, name, kind = p["id"].split("/")
        other_prompt, other = owner[p["rejected"]]
        if kind.startswith("sibling"):
            assert other_prompt == prompt and family_of[other] != family_of[name]
        else:
            assert other_prompt != prompt and family_of[other] == family_of[name]
    drawn = Counter(p["id"].split("/")[1] for p in made)
    assert set(drawn) == set(instructions), "every member is drawn by and by"
    assert Counter(p["chosen"] for p in made) == Counter(p["rejected"] for p in made)


def test_held_out_instructions_are_in_no_pair_of_a_run(bank):
    config = isd_format.Config(format="isd", isd_hold_out=("concise", "creative"))
    made = isd_format.read_file("", config, "train")
    assert len(made) == 80 * 8 * 2
    instructions = load_instructions()
    texts = {text for name in ("concise", "creative") for text in instructions[name]}
    responses = {e.responses[n] for e in referenced(bank) for n in ("concise", "creative")}
    for p in made:
        assert p.instruction not in texts and not responses & set(p.responses)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"isd_hold_out": ("brief",)}, "data.isd_hold_out: no instruction 'brief'; there are"),
        ({"isd_hold_out": ("liberal",), "isd_families": "shipped"}, "of the family open"),
        ({"isd_families": "nowhere.toml"}, "nowhere.toml"),
    ],
)
def test_bad_data_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        isd_format.read_file("", isd_format.Config(format="isd", **options), "train")


def test_bad_negatives_and_families_are_named(tmp_path):
    for negatives, message in (
        (("sister",), "negatives: expected some of sibling, hard, prompt, random, got 'sister'"),
        (("hard",), "negatives: hard ones are chosen by a model's scores"),
        ((), "negatives: none"),
    ):
        with pytest.raises(InputError, match=message):
            pairs(SMALL, INSTRUCTIONS, "train", Pairing(negatives=negatives))
    path = tmp_path / "f.toml"
    for text, message in (
        ('a = ["x"]\nb = ["q"]', "b: no instruction 'q'; there are x, y, z"),
        ('a = ["x"]\nb = ["x"]', "x is in two families, a and b"),
        ('a = ["x"]', "1 families"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            load_families(path, INSTRUCTIONS)
