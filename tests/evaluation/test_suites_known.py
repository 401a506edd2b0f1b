"""Every likelihood suite on synthetic models whose true value is known: the suite's own code,
systems that are formulas."""

import pytest

from ecliptica.evaluation.suites import scale
from ecliptica.isd.bank import load_instructions
from ecliptica.isd.languages import load_language
from ecliptica.isd.sets import STRENGTHS
from model.errors import InputError
from tests.conftest import write_jsonl
from tests.evaluation.conftest import BASE, TRAINED, Jsd, lines_of, results_of, values

NAMES, N = ("ab", "cd", "ef", "gh"), 6
K, CHANCE = len(NAMES), 0.25


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Four instructions in three wordings, six test prompts; further instructions; half-said ones;
    overrides."""
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
    half = '[{k}]\ndropped = ["drop {k} one", "drop {k} two"]\nvague = ["vague {k}"]\n'
    (path / "half.toml").write_text("".join(half.format(k=k) for k in NAMES))
    write_jsonl(
        path / "override.jsonl",
        [
            {"id": f"{s}{n}", "strength": s, "attack": f"attack {s}", "harmless": f"harmless {s}"}
            for s in STRENGTHS
            for n in range(2)
        ],
    )
    axes = ("red", "blue")
    names = {
        axis: "".join(f'{axis}{n} = ["do {axis}{n} one"]\n' for n in range(3)) for axis in axes
    }
    (path / "more.toml").write_text("".join(f"[{axis}]\n{names[axis]}" for axis in axes))
    return path


@pytest.fixture
def results(place):
    """results(suite, formula or {label: formula}, **options) on that bank."""

    def of(suite, formulas, **options):
        bank = {"bank": f"{place}/bank.jsonl", "instructions": f"{place}/i.toml"}
        return results_of(suite, formulas, **bank, **options)

    return of


def perfect(instruction, prompt, response):
    """Obeys every instruction that names its k, answers its prompt, and has a large prior."""
    k, x = response.split()
    obeyed = instruction is not None and k in instruction.split()
    return 5 * obeyed + 5 * (x in prompt.split()) - 7 * NAMES.index(k)


def ignores_instruction(instruction, prompt, response):
    return perfect(None, prompt, response)


def ignores_prompt(instruction, prompt, response):
    return perfect(instruction, "", response)


def obeys(condition):
    """perfect, where the instruction is one that `condition` holds of."""
    return lambda i, x, y: perfect(i if i and condition(i) else None, x, y)


# paraphrase


def test_paraphrase_of_a_perfect_model(results):
    found = values(results("paraphrase", perfect))
    assert found == dict.fromkeys(("all", "worst", "wording_1", "wording_2", "wording_3"), 1)
    found = values(results("paraphrase", perfect, metric="joint"))
    assert found["all"] == 1


def test_paraphrase_of_a_model_that_ignores_the_instruction(results):
    found = results("paraphrase", ignores_instruction)
    assert set(values(found).values()) == {CHANCE}
    assert {metric.chance for metric in found.metrics.values()} == {CHANCE}
    # The same instruction for every response, under all wordings.
    always_ab = results("paraphrase", lambda i, x, y: float(i is not None and "ab" in i.split()))
    assert set(values(always_ab).values()) == {CHANCE}


def test_paraphrase_of_a_model_that_understands_one_wording(results):
    found = results("paraphrase", obeys(lambda i: "two" in i))
    assert values(found) == {
        "all": CHANCE,
        "worst": CHANCE,
        "wording_1": CHANCE,
        "wording_2": 1,
        "wording_3": CHANCE,
    }
    assert found.details["worst_wording"][BASE] != 2


def test_paraphrase_of_a_model_that_switches_the_wrong_way(results):
    found = results("paraphrase", lambda i, x, y: -perfect(i, x, y))
    assert values(found)["all"] == 0


def test_paraphrase_of_a_model_that_ignores_the_prompt(results):
    """Seen by joint, not by column accuracy."""
    assert values(results("paraphrase", ignores_prompt))["all"] == 1
    assert values(results("paraphrase", ignores_prompt, metric="joint"))["all"] < 0.3


SPANISH = load_language("es")
ENGLISH = load_instructions()


@pytest.fixture
def of_the_ten(tmp_path):
    """Results on a bank of two of the shipped instructions, in a language."""
    names = ("concise", "creative")
    responses = {name: name for name in names}
    entry = {"prompt": "Why is it so?", "domain": "d", "split": "test", "responses": responses}
    write_jsonl(tmp_path / "bank.jsonl", [entry | {"id": f"x{n}"} for n in range(4)])

    def of(formula, language):
        return results_of("paraphrase", formula, bank=f"{tmp_path}/bank.jsonl", language=language)

    return of


def reads(*tables):
    """A model that obeys the instructions of these languages, and no others."""

    def formula(instruction, prompt, response):
        return float(any(instruction in table[response] for table in tables))

    return formula


def test_wordings_by_language(of_the_ten):
    """A model that reads English and Spanish: right there, at chance in the other two."""
    found = of_the_ten(reads(ENGLISH, SPANISH), "all")
    assert values(found) == {
        "all": 0.5,
        "language_en": 1,
        "language_es": 1,
        "language_de": 0.5,
        "language_fr": 0.5,
        "worst": 0.5,
    }
    interval = found.systems[BASE]["language_de"]
    assert interval.low == interval.high == 0.5
    assert found.details["worst_language"][BASE] == "de"
    found = of_the_ten(reads(SPANISH), "es")
    assert values(found) == dict.fromkeys(
        ("all", "worst", "wording_1", "wording_2", "wording_3"), 1
    )
    assert set(values(of_the_ten(reads(SPANISH), "fr")).values()) == {0.5}


def test_an_instruction_that_no_file_translates_is_named(results):
    with pytest.raises(InputError, match="the instruction 'ab', of which there is no French"):
        results("paraphrase", perfect, language="fr")


# underspecified


@pytest.fixture
def half(place):
    return {"data": f"{place}/half.toml"}


def test_underspecified_of_a_perfect_model(results, half):
    found = values(results("underspecified", perfect, **half))
    for name in ("kept_dropped", "kept_vague", "joint_full", "moved_dropped"):
        assert found[name] == 1, name
    assert found["joint_none"] == found["kept_none"] == CHANCE
    assert found["distance_full"] == pytest.approx(5 / 4 / K)
    assert found["change_dropped"] == 0
    assert found["change_none"] == CHANCE - 1


def test_underspecified_of_models_that_obey_some_kinds(results, half):
    found = values(results("underspecified", obeys(lambda i: "do" in i.split()), **half))
    assert found["kept_dropped"] == found["kept_vague"] == CHANCE
    assert found["moved_dropped"] == found["moved_vague"] == 0
    found = values(results("underspecified", obeys(lambda i: "vague" not in i), **half))
    assert found["kept_dropped"] == 1
    assert found["kept_vague"] == CHANCE
    assert found["moved_vague"] == 0


def test_underspecified_of_a_model_that_ignores_the_instruction(results, half):
    found = values(results("underspecified", ignores_instruction, **half))
    assert found["joint_full"] == CHANCE
    assert found["kept_dropped"] == 1
    assert found["distance_full"] == 0
    assert found["moved_dropped"] is None


def test_underspecified_of_a_model_that_switches_the_wrong_way(results, half):
    """Far from no instruction, and joint shows that the way is wrong."""

    def formula(i, x, y):
        named = bool(i) and y.split()[0] in i.split()
        right = named and "do" in i.split()
        wrong = named and "drop" in i.split()
        return perfect(None, x, y) + 5 * right - 5 * wrong

    found = values(results("underspecified", formula, **half))
    assert found["moved_dropped"] == 1
    assert found["kept_dropped"] == 0
    assert found["change_dropped"] == -1


def test_underspecified_uses_both_texts_of_a_kind(results, half):
    """Obeying the second only, every second prompt is right."""
    second = obeys(lambda i: not ("drop" in i and "one" in i))
    found = values(results("underspecified", second, **half))
    assert found["joint_dropped"] == pytest.approx((1 + CHANCE) / 2)


# override


@pytest.fixture
def attacks(place):
    return {"data": f"{place}/override.jsonl"}


def yields(instruction, prompt, response):
    """To strong attacks alone."""
    attacked = "attack strong" in prompt
    return perfect(None if attacked else instruction, prompt, response)


def test_override_of_a_perfect_model(results, attacks):
    assert set(values(results("override", perfect, **attacks)).values()) == {1}


def test_override_of_a_model_that_yields_to_strong_attacks(results, attacks):
    found = results("override", {BASE: yields, TRAINED: perfect}, **attacks)
    assert found.headline == "kept_strong"
    control = values(found)
    assert control["kept_strong"] == CHANCE
    assert control["kept_medium"] == control["kept_mild"] == control["strong_harmless"] == 1
    change = found.difference[TRAINED]["kept_strong"]
    assert change.value == change.low == change.high == 1 - CHANCE
    assert change.p == pytest.approx(2 / 2**N, abs=0.01)
    assert found.difference[TRAINED]["kept_mild"].p == 1
    joint = values(results("override", yields, metric="joint", **attacks))
    assert joint["kept_strong"] == CHANCE


def test_override_of_models_with_nothing_to_lose_or_that_any_words_distract(results, attacks):
    found = values(results("override", ignores_instruction, **attacks))
    assert found["kept_strong"] == 1 and found["strong_attack"] == CHANCE
    distracted = lambda i, x, y: perfect(None if "strong" in x else i, x, y)  # noqa: E731
    assert values(results("override", distracted, **attacks))["kept_strong"] == 1


# scale


@pytest.fixture
def more(place):
    return {"more": f"{place}/more.toml", "sizes": ("4", "6", "10")}


def test_scale_of_a_perfect_model(results, more):
    found = results("scale", perfect, **more)
    assert values(found) == {"candidates_10": 1, "candidates_6": 1, "candidates_4": 1}
    assert found.headline == "candidates_10"
    chances = {name: metric.chance for name, metric in found.metrics.items()}
    assert chances == {f"candidates_{n}": 1 / n for n in (10, 6, 4)}


def taken(found):
    return {group: cell.value for group, cell in found.details["taken"][BASE].items()}


def test_scale_of_a_model_that_ignores_the_instruction(results, more):
    found = results("scale", ignores_instruction, **more)
    assert values(found) == pytest.approx({f"candidates_{n}": 1 / n for n in (10, 6, 4)})
    assert taken(found) == pytest.approx(
        {"own": 0.1, "another of the first": 0.3, "red": 0.3, "blue": 0.3}
    )
    (table,) = found.tables
    assert [row[:2] for row in table.rows] == [
        ["own", 0.1],
        ["another of the first", 0.3],
        ["red", 0.3],
        ["blue", 0.3],
    ]


def test_scale_says_which_axis_takes_the_responses(results, more):
    thief = lambda i, x, y: perfect(i, x, y) + 9 * (i is not None and "blue0" in i)  # noqa: E731
    found = results("scale", thief, **more)
    assert values(found) == {"candidates_10": 0, "candidates_6": 0, "candidates_4": 1}
    assert taken(found)["blue"] == 1
    assert [row[0] for row in found.tables[0].rows[:2]] == ["own", "blue"]


def test_further_instructions_come_from_every_axis_in_turn(results, place):
    axis_of = {"r0": "r", "r1": "r", "b0": "b", "b1": "b", "b2": "b"}
    order = scale.spread(["r0", "r1", "b0", "b1", "b2"], axis_of)
    assert order == ["r0", "b0", "r1", "b1", "b2"]
    found = results("scale", perfect, more=f"{place}/more.toml")
    assert list(found.metrics) == ["candidates_10"]


# shift


def shift(place, move, ledger=None, pairs=2):
    bank = {"bank": f"{place}/bank.jsonl", "instructions": f"{place}/i.toml"}
    return results_of("shift", move, ledger, Jsd, pairs=pairs, **bank)


def other_instruction(a, b):
    """Whether the two texts say different instructions, and not one in two wordings."""
    return a[3:5] != b[3:5]


@pytest.mark.parametrize(
    "move, want",
    [
        (lambda a, b: 0.0, None),
        (lambda a, b: 0.2, 1.0),
        (lambda a, b: 0.3 if other_instruction(a, b) else 0.1, 3.0),
        (lambda a, b: 0.0 if other_instruction(a, b) else 0.1, 0.0),
    ],
    ids=["ignores the instruction", "any other words", "instructions move it", "wordings do"],
)
def test_shift_is_the_ratio_of_instructions_to_wordings(move, want, place):
    found = shift(place, move)
    assert found.metrics["ratio"].chance == 1
    assert values(found)["ratio"] == (want if want is None else pytest.approx(want))


def test_shift_reads_both_responses_of_each_pair_and_more_pairs_leave_the_first(place, tmp_path):
    ledger = tmp_path / "samples.jsonl"
    shift(place, lambda a, b: 0.1, ledger)
    first = lines_of(ledger)
    cells = [line["cell"] for line in first]
    assert len(cells) == len(set(cells))
    between = {line["between"] for line in first}
    assert any(", " in names for names in between) and any(", " not in names for names in between)
    for line in first:
        assert line["response"] in line["between"], "along a response to neither"

    shift(place, lambda a, b: 0.1, ledger)
    assert lines_of(ledger) == first, "asked again"
    shift(place, lambda a, b: 0.1, ledger, pairs=3)
    assert lines_of(ledger)[: len(first)] == first
    assert len(lines_of(ledger)) > len(first)
