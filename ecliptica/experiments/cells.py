"""The cells of an ablation: differences x seeds. What each is called, where it begins, and the
config of its run."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from ecliptica.config import as_toml, literal, load, put, recipe_path, to_toml
from ecliptica.experiments.ablation import BASE, START, Ablation, Set, Start
from ecliptica.files import read_toml, replace_text
from ecliptica.recipe import Config
from model.errors import InputError

CONTROL = "prompting-only"  # the cell that trains nothing
CONTRAST = "contrastive-decoding"  # nothing is trained here either
RECIPE = "recipe"  # the cell without differences
LONGEST = 100  # characters of a cell's name, which is a directory's


@dataclass(frozen=True)
class Cell:
    """One run with its results. seed None: nothing is trained."""

    arm: str  # its differences in words: cells that differ in the seed alone share it
    seed: int | None
    changes: tuple[tuple[str, object], ...] = ()  # keys of the recipe
    start: str = BASE
    recipe: str = RECIPE  # the file in recipes/, without .toml
    is_start: bool = False  # others begin from it

    @property
    def name(self) -> str:
        """Of its directory."""
        return self.arm if self.seed is None else f"{self.arm},seed={self.seed}"


# Names


def shortest(keys: Iterable[str]) -> dict[str, str]:
    """{key: its last word}; the whole key where two end alike."""
    keys = list(keys)
    leaves = [key.rpartition(".")[2] for key in keys]
    return {
        key: leaf if leaves.count(leaf) == 1 else key
        for key, leaf in zip(keys, leaves, strict=True)
    }


def shown(value: object) -> str:
    if isinstance(value, list):
        return "+".join(map(shown, value))
    text = value if isinstance(value, str) else to_toml(value)
    return text


def as_name(text: str) -> str:
    """A text as the name of a directory: letters, digits and .,=+- ; a long one is cut, and its
    digest stands for what is missing."""
    plain = re.sub(r"[^\w.,=+-]+", "_", text).strip("._") or "_"
    if plain == text and len(plain) <= LONGEST:
        return plain
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{plain[:LONGEST]}-{digest}"


# Differences


@dataclass(frozen=True)
class Difference:
    """What an arm changes of the recipe."""

    name: str
    changes: tuple[tuple[str, object], ...]
    start: str


def differences(ablation: Ablation) -> list[Difference]:
    """Every arm of the table, as the mode crosses axes; without the recipe itself."""
    names = shortest(ablation.axes)
    arms = [("", {}, ablation.start)]
    if ablation.arms:
        arms = [(arm.name, arm.set, arm.start or ablation.start) for arm in ablation.arms]
    together = []
    for name, changes, start in arms:
        for point in points(ablation):
            words = [f"{names[key]}={shown(value)}" for key, value in point.items()]
            own = dict(point)
            begins = own.pop(START, start)
            whole = ",".join(filter(None, [name, *words]))
            if whole:
                together.append(Difference(as_name(whole), tuple((changes | own).items()), begins))
    return together


def points(ablation: Ablation) -> list[Set]:
    """The settings of the axes: all combinations, or one axis at a time and none at all."""
    axes = ablation.axes
    if not axes:
        return [{}]
    if ablation.mode == "grid":
        return [dict(zip(axes, values)) for values in product(*axes.values())]
    alone = [{key: value} for key, values in axes.items() for value in values]
    return [{}, *alone] if ablation.arms else alone


# Recipes as files, so that `train.py FILE key=value` is a cell's run


def write_recipes(ablation: Ablation, directory: Path, overrides: Sequence[str]) -> None:
    """recipes/NAME.toml: the recipe with [set] and the command line's keys, and those of the
    starts. A file that says the same already is left alone."""
    directory.mkdir(parents=True, exist_ok=True)
    tables = {RECIPE: merged(ablation.recipe, ablation.set, overrides)}
    for start in ablation.starts:
        own = ablation.set | start.set
        tables[start_recipe(start)] = merged(start.recipe or ablation.recipe, own, overrides)
    for name, table in tables.items():
        path, text = directory / f"{name}.toml", tables_as_toml(table)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            replace_text(path, text)


def start_recipe(start: Start) -> str:
    return as_name(f"start-{start.name}")


def merged(recipe: str, changes: Set, overrides: Sequence[str]) -> dict:
    """A recipe's tables with keys of the ablation, then of the command line."""
    path = recipe_path(recipe)
    table = read_toml(path, "a TOML recipe")
    for override in (*as_overrides(changes.items()), *overrides):
        put(table, override, str(path))
    _variants_of_the_changes(table, changes, overrides)
    return table


def _variants_of_the_changes(table: dict, changes: Set, overrides: Sequence[str]) -> None:
    """Where the changes name another objective or format, keys that the recipe wrote for its own
    fall away: `load` knows which, from the same two pieces."""
    names = {key for key, _ in _pairs(changes, overrides)}
    for section, key in (("objective", "objective.name"), ("data", "data.format")):
        if key not in names or not isinstance(table.get(section), dict):
            continue
        kind = Config.__dataclass_fields__[section].metadata["variants"]
        own = kind.types().get(table[section].get(kind.key))
        if own is None:
            continue
        for name in set(table[section]) - set(own.__dataclass_fields__):
            if f"{section}.{name}" not in names:
                del table[section][name]


def _pairs(changes: Set, overrides: Sequence[str]) -> list[tuple[str, object]]:
    given = [override.partition("=")[::2] for override in overrides]
    return [*changes.items(), *((key, literal(value)) for key, value in given)]


def as_overrides(changes: Iterable[tuple[str, object]]) -> list[str]:
    return [f"{key}={to_toml(value)}" for key, value in changes]


def tables_as_toml(table: dict) -> str:
    """Nested tables, one level deep, as TOML."""
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    lines = [f"{key} = {to_toml(value)}" for key, value in plain.items()]
    for section, own in table.items():
        if isinstance(own, dict):
            lines += [f"[{section}]", *(f"{key} = {to_toml(value)}" for key, value in own.items())]
    return "\n".join(lines) + "\n"


# Cells


@dataclass(frozen=True)
class Grid:
    """An ablation's cells in the order of its table, and where they live."""

    ablation: Ablation
    out: Path
    recipes: Path
    cells: tuple[Cell, ...]

    def cell(self, name: str) -> Cell:
        return next(cell for cell in self.cells if cell.name == name)

    def directory(self, cell: Cell) -> Path:
        return self.out / "cells" / cell.name

    def plan(self, cell: Cell) -> Path:
        """The file that tells the cell's process what to do; its log and lock are beside it."""
        return self.out / "work" / f"{cell.name}.json"

    def begins_from(self, cell: Cell) -> Cell | None:
        """The cell whose export it starts from; None: the base, or an adapter from elsewhere."""
        start = self.ablation.start_named(cell.start)
        if start is None:
            return None
        return start_cell(self.ablation, start, cell.seed)

    def overrides(self, cell: Cell) -> list[str]:
        """What stands behind the recipe on the cell's command line."""
        changes = [*cell.changes, ("training.seed", cell.seed)]
        first = self.begins_from(cell)
        if first is not None:
            changes.append(("model.adapter", str(self.directory(first) / "final")))
        elif cell.start != BASE:
            changes.append(("model.adapter", cell.start))
        changes.append(("run.dir", str(self.directory(cell))))
        return as_overrides(changes)

    def config(self, cell: Cell) -> Config:
        """The config of the cell's run. Of the control: the recipe's, which is not trained."""
        seeded = cell if cell.seed is not None else replace(cell, seed=self.ablation.seeds[0])
        try:
            return load(Config, self.recipes / f"{cell.recipe}.toml", self.overrides(seeded))
        except InputError as error:
            raise InputError(f"cell {cell.name}: {error}") from error

    def command(self, cell: Cell) -> list[str]:
        """The same as a command line."""
        return ["train.py", str(self.recipes / f"{cell.recipe}.toml"), *self.overrides(cell)]

    def identity(self, cell: Cell) -> str:
        """The cell's settings as TOML, whatever directory they are in: two cells with the same are
        one."""
        config = self.config(cell)
        start = cell.start if self.begins_from(cell) or cell.start == BASE else config.model.adapter
        plain = replace(
            config,
            model=replace(config.model, adapter=start),
            run=replace(config.run, dir=""),
        )
        return as_toml(plain, leave_out=("plan",))


def start_cell(ablation: Ablation, start: Start, seed: int | None) -> Cell:
    """The cell of a start that a cell with this seed begins from."""
    if start.shared or seed is None:
        seed = ablation.seeds[0]
    return Cell(
        arm=as_name(start.name),
        seed=seed,
        start=start.start,
        recipe=start_recipe(start),
        is_start=True,
    )


def grid(ablation: Ablation, out: Path, recipes: Path, contrast: bool = False) -> Grid:
    """All cells: prompting only, contrastive decoding where there is such a thing, the starts, the
    recipe itself, then the arms.

    The config of each is read once, so that whatever is wrong with one is said before anything
    runs. Raises InputError.
    """
    check_starts(ablation)
    cells = [Cell(CONTROL, None)]
    if contrast:
        cells.append(Cell(CONTRAST, None))
    for start in in_order(ablation):
        seeds = ablation.seeds[:1] if start.shared else ablation.seeds
        cells += [start_cell(ablation, start, seed) for seed in seeds]

    # The recipe first: if it fails, so does everything. An arm that is the recipe stands for it.
    arms = differences(ablation)
    bare = Difference(RECIPE, (), ablation.start)
    probe = Grid(ablation, out, recipes, ())

    def identity(arm: Difference) -> str:
        return probe.identity(Cell(arm.name, ablation.seeds[0], arm.changes, arm.start))

    own = identity(bare)
    same = [arm for arm in arms if identity(arm) == own]
    named = [arm for arm in same if arm.name in {as_name(arm.name) for arm in ablation.arms}]
    first = named or same[:1] or [bare]
    if ablation.mode == "one-at-a-time" and not named:
        first = [bare]
    order = [*first, *(arm for arm in arms if arm not in same)]
    for arm in order:
        cells += [Cell(arm.name, seed, arm.changes, arm.start) for seed in ablation.seeds]
    names = [cell.name for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{ablation.name}: two cells called {twice[0]}; give the arms other names")
    known = {cell.arm for cell in cells}
    for pair in ablation.compare:
        for name in pair:
            if name not in known:
                raise InputError(
                    f"{ablation.name}: compare: no arm {name!r}; expected some of "
                    f"{', '.join(sorted(known))}"
                )
    whole = Grid(ablation, out, recipes, tuple(cells))
    for cell in whole.cells:
        whole.config(cell)
    return whole


def in_order(ablation: Ablation) -> list[Start]:
    """The starts, each behind the one that it begins from. Raises InputError for a circle."""
    ordered: list[Start] = []

    def add(start: Start, above: tuple[str, ...]) -> None:
        if start.name in above:
            raise InputError(f"{ablation.name}: starts: a circle: {' <- '.join(above)}")
        first = ablation.start_named(start.start)
        if first is not None:
            add(first, (*above, start.name))
        if start not in ordered:
            ordered.append(start)

    for start in ablation.starts:
        add(start, ())
    return ordered


def check_starts(ablation: Ablation) -> None:
    """A start is one of [[starts]], base, or a directory with an adapter."""
    given = [ablation.start, *(arm.start for arm in ablation.arms if arm.start)]
    given += [start.start for start in ablation.starts]
    given += ablation.axes.get(START, [])
    names = [start.name for start in ablation.starts]
    for start in given:
        if start == BASE or start in names or (Path(start) / "adapter_config.json").exists():
            continue
        raise InputError(
            f"{ablation.name}: start: expected {BASE}, one of [[starts]] "
            f"({', '.join(names) or 'none there'}) or a directory with an adapter, got {start!r}"
        )
