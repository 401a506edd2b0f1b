"""The suite `correction` on models whose true value is known, and the histories that training data
gets of it."""

import pytest

from ecliptica.data.corrections import IN_TESTS, IN_TRAINING
from ecliptica.data.histories import Source, with_histories
from ecliptica.evaluation.suites.correction import dealt
from ecliptica.isd.bank import load_bank, load_instructions, own_wording
from ecliptica.schema import Preference
from tests.conftest import write_jsonl
from tests.evaluation.conftest import BASE, Formula, results_of, values

NAMES = ("ab", "cd", "ef", "gh")
CHANCE = 0.25
ALL = ("bare", "complaint", "again", "other", "after_1", "after_2", "after_3")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Four instructions in three wordings, six test prompts and three to train on."""
    path = tmp_path_factory.mktemp("correction")
    wordings = [f'{k} = ["do {k} one", "do {k} two", "do {k} three"]\n' for k in NAMES]
    (path / "i.toml").write_text("".join(wordings))
    entries = []
    for n in range(9):
        responses = {k: f"{k} x{n}" for k in NAMES}
        split = "test" if n < 6 else "train"
        entry = {"id": f"x{n}", "prompt": f"x{n} ?", "domain": "d", "split": split}
        entries.append(entry | {"responses": responses})
    write_jsonl(path / "bank.jsonl", entries)
    return path


class Spoken(Formula):
    """formula(instructions named by the user so far, words of the last turns) -> the k it obeys."""

    def number(self, question):
        k, _ = question.response.split()
        said = [user for user, _ in question.turns]
        named = [word for user in said for word in user.split() if word in NAMES]
        prior = 3.0 * NAMES.index(k)
        return prior + 5.0 * (bool(said) and k == self.formula(named, said))


def measured(place, formula):
    files = {"bank": f"{place}/bank.jsonl", "instructions": f"{place}/i.toml"}
    results = results_of("correction", formula, kind=Spoken, prompts=6, **files)
    return values(results), results


def test_always_the_newest(place):
    got, _ = measured(place, lambda named, said: named[-1])
    assert {name: got[name] for name in ALL} == dict.fromkeys(ALL, 1.0)
    assert got["newest"] == 1 and got["stays"] == 0
    assert got["undone"] == 0, "it does not know what taking back means"


def test_always_the_oldest(place):
    got, _ = measured(place, lambda named, said: named[0])
    assert {name: got[name] for name in ALL} == dict.fromkeys(ALL, 0.0)
    assert got["newest"] == 0 and got["stays"] == 1 and got["undone"] == 1


def test_neither(place):
    """Every response gains alike: ties, each an equal part of a hit."""
    got, _ = measured(place, lambda named, said: None)
    assert set(got.values()) == {CHANCE}


def test_one_that_knows_what_taking_back_means(place):
    got, _ = measured(place, lambda named, said: named[0 if IN_TESTS.undo in said else -1])
    assert got["newest"] == 1 and got["undone"] == 1


def test_without_the_correction_the_first_instruction_decides(place):
    """The control: of the same conversations without it, even the newest is the old one."""
    _, results = measured(place, lambda named, said: named[-1])
    control = results.controls[BASE]["no correction"]
    assert control["newest"].value == 0 and control["stays"].value == 1


def test_each_instruction_is_old_and_new_equally_often():
    pairs = [dealt(number, 10) for number in range(90)]
    assert len(set(pairs)) == 90 and all(old != new for old, new in pairs)
    for side in (0, 1):
        counts = [sum(pair[side] == k for pair in pairs) for k in range(10)]
        assert counts == [9] * 10


# Training data


def corrected(place, share):
    """(preferences, the same with histories) of the train prompts."""
    bank = load_bank(place / "bank.jsonl")
    instructions = load_instructions(place / "i.toml")
    entries = [entry for entry in bank if entry.split == "train"]
    texts = {name: own_wording("train", wordings) for name, wordings in instructions.items()}
    plain = []
    for entry in entries:
        for new, old in zip(NAMES, NAMES[1:] + NAMES[:1]):
            responses = (entry.responses[new], entry.responses[old])
            name = f"{entry.id}-{new}"
            plain.append(Preference(name, entry.prompt, responses, texts[new]))
    return plain, with_histories(plain, Source(entries, texts), share, "0 train"), texts


def test_so_many_preferences_get_a_history_that_their_own_instruction_ends(place):
    plain, made, texts = corrected(place, 0.5)
    changed = [(old, new) for old, new in zip(plain, made) if old is not new]
    assert len(changed) == len(plain) // 2
    for old, new in changed:
        assert new.responses == old.responses and new.prompt == old.prompt
        assert new.instruction is None and new.turns
        said = [user for user, _ in new.turns]
        standing = [text for user in said for text in texts.values() if text in user]
        decides = standing[0 if IN_TRAINING.undo in said else -1]
        assert decides == old.instruction, new
        assert (old.prompt, old.responses[0]) not in new.turns


def test_a_history_is_a_function_of_the_seed(place):
    assert corrected(place, 0.5)[1] == corrected(place, 0.5)[1]
    assert corrected(place, 0.0)[0] == corrected(place, 0.0)[1]
