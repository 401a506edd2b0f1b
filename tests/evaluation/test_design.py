"""The balanced incomplete design against the full one on synthetic scores; the conditions that the
trained system alone is asked; the smallest difference that a table could have shown."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from ecliptica.evaluation import design, statistics
from ecliptica.evaluation.banks import grid_metrics
from ecliptica.evaluation.grid import Grid
from ecliptica.evaluation.ledger import Ledger
from ecliptica.evaluation.measured import Column, Made, Measured, detectable
from ecliptica.evaluation.suites import get
from ecliptica.isd.bank import Entry
from model.errors import InputError
from tests.evaluation.conftest import BASE, TRAINED, Formula, results_of, small_bank, values

NAMES = tuple("abcdefghij")
EACH = 4
BANK = [
    Entry(f"x{n}", f"prompt {n}", "de"[n % 2], "test", {k: f"{k} of x{n}" for k in NAMES})
    for n in range(20)
]
IDS = [entry.id for entry in BANK]
WORDING = {name: f"Do {name}." for name in NAMES}
FROM_ANSWERS = ("column_accuracy", "switch", "strict_switch", "joint", "prompt_match")


class Noise:
    """A model that follows its instructions now and then: scores drawn once a question."""

    def __init__(self):
        self.generator = np.random.default_rng(5)
        self.scores = {}

    def __getitem__(self, question):
        if question not in self.scores:
            names = question.names
            own = names.get("instruction") == names["response"]
            self.scores[question] = self.generator.standard_normal() + 1.2 * own
        return self.scores[question]


def test_every_response_is_asked_equally_often_and_pairs_nearly():
    for count, each in ((20, 4), (7, 3), (13, 9)):
        drawn = design.drawn(IDS[:count], NAMES, each, seed=3)
        assert all(len(set(asked)) == each for asked in drawn.values())
        asked = Counter(name for names in drawn.values() for name in names)
        assert max(asked.values()) - min(asked[name] for name in NAMES) <= 1, asked
    drawn = design.drawn(IDS, NAMES, 4, seed=3)
    pairs = Counter(pair for names in drawn.values() for pair in combinations(names, 2))
    # 20 prompts of six pairs each over 45 pairs: 2.7 in the mean.
    assert max(pairs.values()) <= 5 and len(pairs) >= 40, pairs


def test_the_first_prompts_have_the_same_responses_whatever_follows():
    whole = design.drawn(IDS, NAMES, EACH, seed=1)
    assert design.drawn(IDS[:5], NAMES, EACH, seed=1) == {name: whole[name] for name in IDS[:5]}
    assert design.drawn(IDS, NAMES, EACH, seed=2) != whole


@pytest.fixture(scope="module")
def full_and_drawn():
    """({metric: mean of the full design}, {metric: that of each of many draws})."""
    answers = Noise()
    metrics = {name: grid_metrics()[name] for name in FROM_ANSWERS}

    def means(asked):
        crosses = Grid(BANK, BANK[:10], WORDING, asked=asked).crosses
        return {
            name: np.mean([metric.value(cross, answers) for cross in crosses])
            for name, metric in metrics.items()
        }

    full = means(None)
    draws = [means(design.drawn(IDS[:10], NAMES, EACH, seed)) for seed in range(30)]
    return full, {name: np.array([draw[name] for draw in draws]) for name in FROM_ANSWERS}


@pytest.mark.parametrize("name", FROM_ANSWERS)
def test_the_mean_over_many_draws_is_the_full_value(full_and_drawn, name):
    full, draws = full_and_drawn
    error = draws[name].std(ddof=1) / len(draws[name]) ** 0.5
    assert error > 0, f"{name}: the draws do not differ"
    assert abs(draws[name].mean() - full[name]) < 3.5 * error, (draws[name].mean(), full[name])


def test_the_interval_covers_the_value_of_all_prompts():
    """Column accuracy of a bank of 2000 prompts, from 20 of them with four responses each: the
    interval has the bank's value about as often as it promises."""
    generator = np.random.default_rng(0)
    # Prompts differ in how well their instructions are followed.
    gain_P = generator.uniform(0, 3, size=2000)
    right_PK = np.empty((2000, 10))
    for number, gain in enumerate(gain_P):
        s_JK = generator.standard_normal((10, 10)) + gain * np.eye(10)
        right_PK[number] = s_JK.argmax(0) == np.arange(10)
    drawn = statistics.draws(20, count=500)
    covered = 0
    for trial in range(300):
        chosen = generator.choice(2000, 20, replace=False)
        asked = design.drawn([str(number) for number in chosen], range(10), EACH, trial)
        values_P = [right_PK[int(number), list(own)].mean() for number, own in asked.items()]
        _, low, high = statistics.interval(values_P, drawn)
        covered += low <= right_PK.mean() <= high
    assert 0.88 <= covered / 300 <= 0.99, covered


def loud_or_quiet(instruction, prompt, response):
    loud = "GREAT" in response
    return 3.0 * (loud == (instruction == "Use capitals.")) if instruction else 0.0


def of_small_bank(path, formulas=loud_or_quiet, ledger=None, **options):
    small_bank(path)
    files = {"bank": f"{path}/bank.jsonl", "instructions": f"{path}/i.toml"}
    return results_of("switch", formulas, ledger, **files, **options)


def test_trained_alone_is_asked_the_conditions(tmp_path):
    formulas = {BASE: loud_or_quiet, TRAINED: loud_or_quiet}
    results = of_small_bank(tmp_path, formulas, Ledger(tmp_path / "a.jsonl"), controls=("trained",))
    assert set(results.controls) == {TRAINED}
    assert set(results.controls[TRAINED]) == {"no instruction", "scrambled prompt"}
    lines = Ledger(tmp_path / "a.jsonl").lines()
    asked = {(line["system"], line["condition"]) for line in lines}
    assert (TRAINED, "scrambled prompt") in asked and (BASE, "scrambled prompt") not in asked
    some = of_small_bank(tmp_path, formulas, controls=("trained", "no instruction"))
    assert {label: list(own) for label, own in some.controls.items()} == {
        TRAINED: ["no instruction"]
    }
    alone = of_small_bank(tmp_path, controls=("trained",))
    assert set(alone.controls) == {BASE}, "of a system that stands alone"


def test_an_incomplete_design_asks_its_columns_under_every_instruction(tmp_path):
    """Four of ten responses, all ten instructions as candidates; the note says so."""
    suite = get("switch")
    options = suite.Options(responses_per_prompt=EACH, metrics=("column_accuracy",), controls=())
    study = suite.prepare(options)
    questions = list(study.questions(study.units[:1], True))
    assert len(questions) == 10 * EACH == len(set(questions))
    assert len({question.names["instruction"] for question in questions}) == 10
    system = Formula(lambda instruction, prompt, response: -len(response) / 7)
    results = results_of(
        "switch",
        system.formula,
        limit=3,
        responses_per_prompt=EACH,
        metrics=("column_accuracy", "switch"),
        controls=(),
    )
    assert values(results)["column_accuracy"] == pytest.approx(0.1), "a tie among ten"
    assert "4 of the 10 responses to each prompt were asked" in str(results)
    assert {len(asked) for asked in results.details["asked"].values()} == {EACH}
    parts = results.by_instruction[BASE]["column_accuracy"]
    shares = [cell.value for cell in parts.values() if cell.value is not None]
    assert len(shares) == 10 and shares == pytest.approx([0.1] * 10), "12 questions for ten columns"


def test_as_many_as_there_are_is_the_full_design_and_more_are_refused(tmp_path):
    full = of_small_bank(tmp_path)
    same = of_small_bank(tmp_path, responses_per_prompt=2)
    assert same.systems == full.systems and not same.details["asked"]
    with pytest.raises(InputError, match="--responses-per-prompt 3: a prompt has 2 responses"):
        of_small_bank(tmp_path, responses_per_prompt=3)


@pytest.mark.parametrize(
    "degrees, at_power, at_level",
    [
        (1, 1.376, 12.706),
        (2, 1.061, 4.303),
        (4, 0.941, 2.776),
        (9, 0.883, 2.262),
        (19, 0.861, 2.093),
    ],
)
def test_quantiles_of_t_against_the_printed_table(degrees, at_power, at_level):
    assert statistics.t_quantile(0.8, degrees) == pytest.approx(at_power, rel=5e-3)
    assert statistics.t_quantile(0.975, degrees) == pytest.approx(at_level, rel=5e-3)


def test_a_difference_of_the_detectable_size_is_seen_four_times_in_five():
    """The paired t test, two-sided 5 %, on 2000 tables of 20 units whose true difference is what
    one of them says it can detect."""
    generator = np.random.default_rng(1)
    base_P, noise_P = generator.standard_normal((2, 20))
    measured = Measured(
        {"m": Column("m", None)}, {BASE: {"m": base_P}, TRAINED: {"m": base_P + noise_P}}, {}, {}
    )
    smallest = detectable(measured, statistics.draws(20))[TRAINED]["m"]
    tables = smallest + noise_P.std(ddof=1) * generator.standard_normal((2000, 20))
    t = tables.mean(1) / (tables.std(1, ddof=1) / 20**0.5)
    assert (abs(t) > 2.093).mean() == pytest.approx(0.8, abs=0.04)  # t_.975 of 19


def test_the_detectable_difference_of_a_ratio_and_of_one_unit():
    ones_P = np.ones(8)
    above_P = np.arange(8.0)
    measured = Measured(
        {"r": Column("r", 1.0)},
        {BASE: {}, TRAINED: {}},
        {BASE: {"a": ones_P, "b": ones_P}, TRAINED: {"a": above_P, "b": ones_P}},
        {"r": Made(("a", "b"), "ratio")},
    )
    # The denominators are 1: the spread is that of the mean of 0 ... 7, t of 7 degrees.
    want = (2.365 + 0.896) * above_P.std(ddof=1) / 8**0.5
    got = detectable(measured, statistics.draws(8))[TRAINED]["r"]
    assert got == pytest.approx(want, rel=0.03)
    single = Measured({"m": Column("m", None)}, {BASE: {"m": [1.0]}}, {}, {})
    assert detectable(single, statistics.draws(1)) == {BASE: {"m": None}}


def test_the_foot_of_a_table_says_what_could_have_been_seen(tmp_path):
    formulas = {BASE: lambda *asked: float(len(asked[2]) % 3), TRAINED: loud_or_quiet}
    results = of_small_bank(tmp_path, formulas, controls=())
    assert "Smallest difference detectable with 80 % power" in str(results)
    alone = of_small_bank(tmp_path, controls=())
    assert "Smallest distance from a fixed value detectable" in str(alone)
