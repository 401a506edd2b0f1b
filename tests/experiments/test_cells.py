"""Which cells an ablation has, what each is called, and what is refused before anything runs."""

import pytest

from ecliptica import config
from ecliptica.experiments import ablation, cells, claims
from ecliptica.recipe import Config
from model.errors import InputError

RECIPE = """
[model]
path = "models/none"
[data]
format = "isd"
[objective]
name = "cita"
beta = 0.1
kl_weight_end = 0.2
"""
SUITES = '[[suites]]\nname = "switch"\nlimit = 2\n'


@pytest.fixture
def grid_of(tmp_path):
    """grid_of(text, *overrides) -> Grid of an ablation with that text behind its recipe."""
    (tmp_path / "recipe.toml").write_text(RECIPE)

    def build(text, *overrides, suites=SUITES):
        path = tmp_path / "a.toml"
        path.write_text(f'recipe = "{tmp_path}/recipe.toml"\n{text}\n{suites}')
        spec = ablation.read(path)
        cells.write_recipes(spec, tmp_path / "recipes", overrides)
        return cells.grid(spec, tmp_path / "out", tmp_path / "recipes")

    return build


def names(grid):
    return [cell.name for cell in grid.cells]


def test_a_grid_crosses_axes_and_seeds_and_the_recipe_stands_once(grid_of):
    grid = grid_of(
        "seeds = [0, 1]\n[axes]\n"
        '"objective.beta" = [0.05, 0.1]\n"objective.kl_weight_end" = [0.2, 0.3]\n'
    )
    # beta 0.1 with 0.2 is the recipe: it goes first, under its own differences.
    arms = [
        "beta=0.1,kl_weight_end=0.2",
        "beta=0.05,kl_weight_end=0.2",
        "beta=0.05,kl_weight_end=0.3",
        "beta=0.1,kl_weight_end=0.3",
    ]
    assert names(grid) == [
        "prompting-only",
        *(f"{arm},seed={seed}" for arm in arms for seed in (0, 1)),
    ]
    one = grid.config(grid.cell("beta=0.05,kl_weight_end=0.3,seed=1"))
    assert (one.objective.beta, one.objective.kl_weight_end, one.training.seed) == (0.05, 0.3, 1)


def test_one_at_a_time_goes_around_the_recipe(grid_of):
    grid = grid_of(
        'mode = "one-at-a-time"\n[axes]\n"objective.beta" = [0.05, 0.1]\n"lora.rank" = [4]\n'
    )
    assert names(grid) == ["prompting-only", "recipe,seed=0", "beta=0.05,seed=0", "rank=4,seed=0"]


def test_arms_cross_with_axes_and_drop_keys_of_another_objective(grid_of):
    grid = grid_of(
        '[set]\n"training.max_steps" = 2\n[axes]\n"lora.rank" = [2, 4]\n'
        '[[arms]]\nname = "dpo"\nset = { "objective.name" = "dpo" }\n[[arms]]\nname = "cita"\n'
    )
    assert names(grid)[1:] == [
        "recipe,seed=0",
        "dpo,rank=2,seed=0",
        "dpo,rank=4,seed=0",
        "cita,rank=2,seed=0",
        "cita,rank=4,seed=0",
    ]
    dpo = grid.config(grid.cell("dpo,rank=4,seed=0"))
    assert (dpo.objective.name, dpo.objective.beta, dpo.training.max_steps) == ("dpo", 0.1, 2)


def test_cells_begin_from_one_and_the_same_start(grid_of):
    grid = grid_of(
        'seeds = [3, 4]\nstart = "sft"\n[[arms]]\nname = "from-base"\nstart = "base"\n'
        '[[starts]]\nname = "sft"\nset = { "objective.name" = "sft" }\n'
    )
    assert names(grid)[1:4] == ["sft,seed=3", "recipe,seed=3", "recipe,seed=4"]
    sft = grid.cell("sft,seed=3")
    assert grid.config(sft).objective.name == "sft" and not grid.config(sft).model.adapter
    for seed in (3, 4):
        cell = grid.cell(f"recipe,seed={seed}")
        assert grid.begins_from(cell) == sft
        assert grid.config(cell).model.adapter == str(grid.directory(sft) / "final")
    assert not grid.config(grid.cell("from-base,seed=3")).model.adapter


def test_the_command_line_of_a_cell_is_its_config(grid_of):
    grid = grid_of('[axes]\n"objective.beta" = [0.05]\n', "training.lr=0.5")
    cell = grid.cell("beta=0.05,seed=0")
    script, recipe, *overrides = grid.command(cell)
    assert script == "train.py"
    assert config.load(Config, recipe, overrides) == grid.config(cell)
    assert grid.config(cell).training.lr == 0.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed = [0]", "unknown key seed (did you mean seeds?)"),
        ("seeds = [-1]", "seeds: expected a list of whole numbers from 0, got [-1]"),
        ("seeds = [1, 1]", "seeds: expected different seeds"),
        ('mode = "cross"', "mode: expected one of grid, one-at-a-time, got 'cross'"),
        ('[axes]\n"objective.beta" = 0.1', "axes.objective.beta: expected a list of values"),
        ("[axes.objective]\nbeta = [0.1]", "write a dotted key in quotes"),
        ('[axes]\n"objective.betta" = [0.1]', "unknown key objective.betta (did you mean beta?)"),
        ('start = "sft"', "start: expected base, one of [[starts]] (none there)"),
        ('compare = [["a", "recipe"]]', "compare: no arm 'a'"),
        ('[[arms]]\nname = "a"\n[[arms]]\nname = "a"', "arms.name: expected different names"),
        ('like = "a"', "like: a circle of files"),
        (
            'start = "a"\n[[starts]]\nname = "a"\nstart = "b"\n[[starts]]\nname = "b"\nstart = "a"',
            "starts: a circle",
        ),
    ],
)
def test_a_wrong_file_is_one_line(grid_of, text, said):
    with pytest.raises(InputError) as error:
        grid_of(text)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_suites_are_named_and_labelled(grid_of):
    with pytest.raises(InputError, match="at least one"):
        grid_of("", suites="")
    with pytest.raises(InputError, match="give each its own `label`"):
        grid_of("", suites=SUITES + SUITES)


def test_a_changed_cell_is_refused_and_the_change_is_named(grid_of):
    grid = grid_of('[axes]\n"objective.beta" = [0.05]\n')
    cell = grid.cell("beta=0.05,seed=0")
    now = claims.claim(grid, cell)
    stored = now.to_json()
    claims.check(cell, stored, now, any_code=False)

    other = grid_of('[set]\n"training.lr" = 0.5\n[axes]\n"objective.beta" = [0.05]\n')
    with pytest.raises(InputError, match=r"training.lr was 2e-05, now 0.5"):
        claims.check(cell, stored, claims.claim(other, cell), any_code=True)
    with pytest.raises(InputError, match="other data or weights"):
        claims.check(cell, stored | {"data": "x"}, now, any_code=True)
    with pytest.raises(InputError, match="switch: limit was 1, now 2"):
        suites = [{"label": "switch", "suite": "switch", "limit": 1}]
        claims.check(cell, stored | {"suites": suites}, now, any_code=True)
    with pytest.raises(InputError, match="--any-code"):
        claims.check(cell, stored | {"code": "x"}, now, any_code=False)
    claims.check(cell, stored | {"code": "x"}, now, any_code=True)


def test_names_are_names_of_directories():
    assert cells.as_name("beta=0.05,kl=none") == "beta=0.05,kl=none"
    assert "/" not in cells.as_name("adapter=a/b") and cells.as_name("a/b") != cells.as_name("a_b")
    assert len(cells.as_name("x" * 500)) < 120
