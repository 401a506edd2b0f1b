"""The shipped ablations: every one reads, every cell has a config, every suite its options.

Some name objectives or options that are made elsewhere. AWAITED says which; whoever is there is no
longer waited for, and then the ablation has to load.
"""

import re

import pytest

from ecliptica import objectives
from ecliptica.data.formats import isd
from ecliptica.evaluation.suites import switch
from ecliptica.experiments import ablation, cells, measuring
from ecliptica.recipe import Config
from model.errors import InputError

NAMES = sorted(path.stem for path in ablation.SHIPPED.glob("*.toml"))
WANTED = (
    "paper",
    "methods",
    "sft_plus",
    "lambda",
    "beta",
    "beta_lambda",
    "kl",
    "negatives",
    "length",
    "annealing",
    "start",
    "wordings",
    "types",
    "instruction_in",
)


def has(kind, name):
    return name in kind.__dataclass_fields__


def rewards():
    """The names of the rewards; none where there is no such room."""
    folder = ablation.SHIPPED.parent.parent / "rewards"
    return {path.stem for path in folder.glob("*.py")}


AWAITED = {
    **{
        f"got '{name}'": lambda name=name: name in objectives.configs()
        for name in ("simpo", "ipo", "orpo", "kto", "grpo")
    },
    "reward.name: expected one of": lambda: "classifier" in rewards(),
    "data.isd_negatives": lambda: has(isd.Config, "isd_negatives"),
    "data.isd_hold_out": lambda: has(isd.Config, "isd_hold_out"),
    "data.instruction_in": lambda: has(isd.Config, "instruction_in"),
    "unknown key rollout": lambda: has(Config, "rollout"),
    "unknown key reward": lambda: has(Config, "reward"),
    "no option responses_per_prompt": lambda: has(switch.Options, "responses_per_prompt"),
}


def test_each_is_there_in_both_sizes():
    assert NAMES == sorted([*WANTED, *(f"{name}_8b" for name in WANTED)])


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_ablation_loads_or_waits_for_what_is_not_there(name, tmp_path):
    spec = ablation.read(name)
    failed = []
    for part in (lambda: all_cells(spec, tmp_path), lambda: suites_of(spec)):
        try:
            part()
        except InputError as error:
            failed.append(str(error))
    for said in failed:
        waiting = [word for word, there in AWAITED.items() if word in said and not there()]
        assert waiting, said


def all_cells(spec, place):
    cells.write_recipes(spec, place / "recipes", [])
    grid = cells.grid(spec, place / "out", place / "recipes")
    assert len(grid.cells) > len(spec.seeds)


def suites_of(spec):
    for suite in spec.suites:
        measuring.check(suite)


def test_the_two_sizes_compare_the_same_arms():
    for name in WANTED:
        small, large = ablation.read(name), ablation.read(f"{name}_8b")
        assert [arm.name for arm in small.arms] == [arm.name for arm in large.arms]
        assert (small.axes, small.start, small.compare) == (large.axes, large.start, large.compare)
        assert small.recipe == "ablation_cpu" and large.recipe == "ablation_8b"
        assert [s.name for s in small.starts] == [s.name for s in large.starts]


def test_methods_of_one_table_have_equal_budgets():
    """Arms set no steps of their own, but where the comment says why."""
    free = {"sft-as-long", "grpo"}
    for name in WANTED:
        for arm in ablation.read(name).arms:
            assert "training.max_steps" not in arm.set or arm.name in free, f"{name}: {arm.name}"


def test_the_makefile_runs_what_is_shipped():
    text = (ablation.SHIPPED.parent.parent.parent / "Makefile").read_text()
    listed = re.search(r"^ABLATIONS := (.*)$", text, re.M)[1].split()
    assert set(listed) <= set(WANTED)
