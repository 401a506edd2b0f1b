"""The shipped bank keeps its promises; the contrastive pairs are balanced."""

import json
from collections import Counter
from itertools import combinations

import pytest

from ecliptica.isd.bank import BANK, PARAPHRASE, SAFETY, SECOND_BANK, load_bank, load_instructions, pairs


@pytest.fixture(scope="module")
def bank():
    return load_bank(BANK, load_instructions())


def words(text):
    return set("".join(c if c.isalnum() else " " for c in text.lower()).split())


def test_size_and_splits(bank):
    assert Counter(entry.split for entry in bank) == {"train": 28, "dev": 4, "test": 8}
    instructions = load_instructions()
    assert len(instructions) == 10 and all(len(paraphrases) == 3 for paraphrases in instructions.values())
    assert all(set(entry.responses) == set(instructions) for entry in bank)
    assert min(Counter(entry.domain for entry in bank).values()) == 10  # nine distractors of the same domain


def test_responses_are_20_to_60_words_all_different_and_length_does_not_tell_the_instruction(bank):
    texts = [text for entry in bank for text in entry.responses.values()]
    assert len(set(texts)) == len(texts) == 400 and all(20 <= len(text.split()) <= 60 and "\n" not in text for text in texts)
    mean = {name: sum(len(entry.responses[name].split()) for entry in bank) / len(bank) for name in load_instructions()}
    others = [length for name, length in mean.items() if name != "concise"]
    assert mean["concise"] < min(others) and max(others) / min(others) < 1.1


def test_paraphrases_share_few_words_and_no_response_quotes_its_instruction(bank):
    for name, paraphrases in load_instructions().items():
        for a, b in combinations(map(words, paraphrases), 2):
            assert len(a & b) / len(a | b) < 0.4, name
        for entry in bank:
            assert all(text.lower() not in entry.responses[name].lower() for text in paraphrases)


def test_prompts_are_distinct_across_splits(bank):
    def grams(text):
        return {text[i : i + 4] for i in range(len(text) - 3)}

    for a, b in combinations(bank, 2):
        x, y = grams(a.prompt.lower()), grams(b.prompt.lower())
        assert len(x & y) / len(x | y) < 0.6, (a.id, b.id)


def test_the_second_bank_shares_nothing_with_the_first(bank):
    instructions = load_instructions()
    second = load_bank(SECOND_BANK, instructions)
    assert Counter(entry.split for entry in second) == {"train": 21, "dev": 3, "test": 6}
    texts = [text for entry in second for text in entry.responses.values()]
    assert all(set(entry.responses) == set(instructions) for entry in second) and len(set(texts)) == 300
    assert all(20 <= len(text.split()) <= 60 and "\n" not in text for text in texts)
    assert not {e.domain for e in bank} & {e.domain for e in second} and not {e.prompt for e in bank} & {e.prompt for e in second}
    assert not set(texts) & {text for entry in bank for text in entry.responses.values()}


def test_every_response_is_chosen_as_often_as_rejected_and_nothing_leaks(bank):
    instructions = load_instructions()
    made = pairs(bank, instructions, "train", rounds=2)
    chosen, rejected = Counter(p["chosen"] for p in made), Counter(p["rejected"] for p in made)
    assert len(made) == 28 * 10 * 2 * 2 and set(chosen.values()) == {4} and chosen == rejected
    assert Counter(p["id"].split("/")[2].split("-")[0] for p in made) == {"sibling": 560, "prompt": 560}
    train = {entry.prompt: entry for entry in bank if entry.split == "train"}
    own = {text: (entry.id, name) for entry in bank for name, text in entry.responses.items()}
    for p in made:
        prompt_id, name, kind = p["id"].split("/")
        assert p["instruction"] == instructions[name][PARAPHRASE["train"]] and train[p["prompt"]].id == prompt_id
        assert own[p["chosen"]] == (prompt_id, name)
        other_id, other_name = own[p["rejected"]]
        assert (other_id == prompt_id and other_name != name) if kind.startswith("sibling") else (other_id != prompt_id and other_name == name)
    assert pairs(bank, instructions, "train", rounds=2) == made != pairs(bank, instructions, "train", seed=1, rounds=2)


def test_safety_preferences():
    rows = [json.loads(line) for line in SAFETY.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 60 and len({row["id"] for row in rows}) == 60
    assert set(Counter(row["kind"] for row in rows).values()) == {3} and len({row["kind"] for row in rows}) == 20
    for name in ("harmful", "borderline", "benign"):
        assert Counter(row["policy"] for row in rows if row["class"] == name) == {"strict": 10, "permissive": 10}
    assert len({row["instruction"] for row in rows}) == len({row["prompt"] for row in rows}) == 60
    assert all(row["chosen"] != row["rejected"] and len(row["rejected"].split()) <= 40 for row in rows)
