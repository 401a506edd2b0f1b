"""The switching metrics on synthetic models whose true value is known, and whom they compare."""

import numpy as np
import pytest

from ecliptica.evaluation.banks import grid_metrics
from ecliptica.evaluation.grid import (
    DISTRACTORS,
    MEANT,
    NO_INSTRUCTION,
    RIVAL_PROMPTS,
    SCRAMBLED,
    Grid,
    dealt_wrongly,
    distractors,
    interaction,
)
from ecliptica.evaluation.metrics import (
    column_accuracy,
    joint,
    level,
    preference,
    strict_switch,
    switch,
    top_share,
)
from ecliptica.isd.bank import Entry

NAMES = tuple("abcdefghij")
K, N = len(NAMES), DISTRACTORS
BANK = [
    Entry(f"x{n}", f"prompt {n}", "de"[n % 2], "test", {k: f"{k} of x{n}" for k in NAMES})
    for n in range(40)
]
ID_OF = {entry.prompt: entry.id for entry in BANK}
RNG = np.random.default_rng(0)
# Length and fluency of each response; eighths, so that ties stay ties.
PRIOR = {(entry.id, k): round(160 * RNG.standard_normal()) / 8 for entry in BANK for k in NAMES}
CHANCE = 1 / (1 + (K - 1) + 2 * RIVAL_PROMPTS)


class Synthetic:
    """Answers of a model that is a formula of (prompt id, instruction id, owner id, response)."""

    def __init__(self, formula):
        self.formula = formula

    def __getitem__(self, question):
        names = question.names
        owner, k = names["response_to"], names["response"]
        if names["condition"] == "content-free":
            return self.formula(None, None, owner, k)
        j = names["instruction"] if question.instruction else None
        return self.formula(ID_OF[question.prompt], j, owner, k)


def measure(formula, condition=MEANT):
    """({metric: mean}, {metric: chance level}, {metric: mean of each instruction})."""
    wording = {name: f"Do {name}." for name in NAMES}
    crosses = Grid(BANK, BANK, wording, condition).crosses
    answers = Synthetic(formula)
    means, chances, parts = {}, {}, {}
    for name, metric in grid_metrics().items():
        values_P = [metric.value(cross, answers) for cross in crosses]
        means[name] = float(np.mean(values_P))
        chances[name] = level(metric.null, crosses, [answers])
        if metric.parts:
            parts_PJ = np.array([metric.parts(cross, answers) for cross in crosses])
            assert parts_PJ.mean(1) == pytest.approx(values_P), f"{name} is no mean of its parts"
            parts[name] = parts_PJ.mean(0)
    return means, chances, parts


def perfect(x, j, owner, k):
    return PRIOR[owner, k] + 5 * (j == k) + 5 * (x == owner)


def test_a_perfect_model_scores_1_under_a_large_prior():
    """PMI, switch and column accuracy see through length and prior; strict switch, which does not
    cancel them, falls."""
    means, chances, _ = measure(perfect)
    assert means.pop("strict_switch") < 0.2
    assert means == dict.fromkeys(means, 1), means
    strict = chances.pop("strict_switch")
    assert chances == {
        "joint": pytest.approx(CHANCE),
        "column_accuracy": 1 / K,
        "prompt_match": pytest.approx(1 / (N + 1)),
        "switch": 0.5,
    }
    assert 0 < strict < 0.25
    means, _, _ = measure(lambda x, j, owner, k: perfect(x, j, owner, k) - PRIOR[owner, k])
    assert means["strict_switch"] == 1, "without a prior nothing is in its way"


def test_a_model_that_ignores_the_prompt():
    """The same whatever the prompt: at chance among the four responses to other prompts under the
    same instruction."""
    means, _, _ = measure(lambda x, j, owner, k: PRIOR[owner, k] + 5 * (j == k))
    assert means["joint"] == pytest.approx(1 / (1 + RIVAL_PROMPTS))
    assert means["prompt_match"] == pytest.approx(1 / (N + 1))
    assert means["column_accuracy"] == 1


def test_a_model_that_ignores_the_instruction():
    """At chance among the responses to the same prompt."""
    means, _, _ = measure(lambda x, j, owner, k: PRIOR[owner, k] + 5 * (x == owner))
    assert means["joint"] == pytest.approx(1 / K)
    assert means["column_accuracy"] == pytest.approx(1 / K)
    assert means["switch"] == 0.5
    assert means["prompt_match"] == 1
    assert means["strict_switch"] == 0


def test_a_model_that_only_likes_short_answers():
    means, _, _ = measure(lambda x, j, owner, k: PRIOR[owner, k])
    assert means["joint"] == pytest.approx(CHANCE)
    assert means["column_accuracy"] == pytest.approx(1 / K)
    assert means["switch"] == 0.5


def test_a_random_model_is_at_chance():
    noise, generator = {}, np.random.default_rng(1)
    means, chances, _ = measure(lambda *asked: noise.setdefault(asked, generator.standard_normal()))
    assert means == pytest.approx(chances, abs=0.05)
    assert chances["strict_switch"] == pytest.approx(0.25, abs=0.03)


def test_a_model_that_obeys_one_instruction_is_seen_by_instruction():
    _, _, parts = measure(
        lambda x, j, owner, k: PRIOR[owner, k] + 5 * (j == k == "c") + 5 * (x == owner)
    )
    at = NAMES.index("c")
    for name, by_instruction in parts.items():
        assert by_instruction[at] == 1, name
        assert np.delete(by_instruction, at) == pytest.approx(1 / K), name


def test_the_controls_take_away_what_they_say():
    means, _, _ = measure(perfect, NO_INSTRUCTION)
    assert means["joint"] == pytest.approx(1 / K)
    assert means["column_accuracy"] == pytest.approx(1 / K)
    assert means["prompt_match"] == 1

    means, _, _ = measure(perfect, SCRAMBLED)
    assert means["prompt_match"] < 0.3
    assert means["joint"] <= 1 / (1 + RIVAL_PROMPTS) + 1e-9
    assert means["column_accuracy"] == 1

    dealt = dealt_wrongly(BANK)
    assert sorted(dealt.values()) == sorted(entry.prompt for entry in BANK)
    assert [e.id for e in BANK if dealt[e.id] == e.prompt] == [], "these kept their own"


def test_a_wrong_way_switcher_scores_below_chance():
    wrong = -np.eye(K)
    for metric in (switch, column_accuracy, strict_switch):
        assert metric.value(wrong) == 0, metric.__name__
    means, _, _ = measure(lambda x, j, owner, k: PRIOR[owner, k] - 5 * (j == k) + 2 * (x == owner))
    assert means["joint"] == 0


@pytest.mark.parametrize("metric", [switch, column_accuracy, strict_switch])
def test_a_nan_is_no_wrong_answer(metric):
    """A score that is none leaves no value: not 0, which would be a wrong answer."""
    s_JK = np.eye(K)
    s_JK[2, 3] = np.nan
    assert np.isnan(metric.value(s_JK)), f"{metric.__name__} counts a NaN as wrong"


def test_what_all_metrics_share_passes_a_nan_on():
    assert np.isnan(top_share([np.nan, 1.0], 0))
    assert np.isnan(top_share([1.0, np.nan], 0))
    assert np.isnan(preference(np.nan, 1.0))
    assert np.isnan(joint.value([1.0], [[np.nan, 0.0]]))


def test_a_response_beats_rivals_to_other_instructions_other_prompts_and_both():
    """By hand, for three instructions: after b comes c, then around to a, past b itself."""
    wording = {name: f"Do {name}." for name in "abc"}
    cross = Grid(BANK, BANK, wording).crosses[0]
    prompts = [entry.id for entry in cross.rival_prompts]
    assert prompts == ["x2", "x4", "x6", "x8"], "the nearest of its domain"
    rivals = [(owner.id, k) for owner, k in joint.rivals(cross, "b")]
    assert rivals == [
        *[("x0", "a"), ("x0", "c")],
        *[("x2", "b"), ("x4", "b"), ("x6", "b"), ("x8", "b")],
        *[("x2", "c"), ("x4", "a"), ("x6", "c"), ("x8", "a")],
    ]


def test_interaction_takes_both_means_out():
    noise = RNG.standard_normal((1, K)) + np.arange(K)[:, None]
    rest = interaction(noise + 3 * np.eye(K))
    assert rest.sum(0) == pytest.approx(np.zeros(K))
    assert rest.sum(1) == pytest.approx(np.zeros(K))
    assert np.diag(rest) == pytest.approx(np.full(K, 2.7))


def test_distractors_come_from_the_same_domain_first():
    bank = [Entry(str(n), "p", "ab"[n % 2], "test" if n < 6 else "train", {}) for n in range(30)]
    nearest = distractors(bank[0], bank)
    assert len(nearest) == N
    assert {entry.domain for entry in nearest} == {"a"}
    assert [entry.id for entry in nearest[:2]] == ["2", "4"], "its own split first"
    assert bank[0] not in nearest
    assert len(distractors(bank[0], bank[:4])) == 3
