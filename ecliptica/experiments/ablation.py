"""What an ablation's TOML says.

    about = "one sentence"
    recipe = "demo"                     # the training that differences are taken to
    seeds = [0, 1, 2]
    mode = "grid"                       # axes cross; one-at-a-time: each around the recipe
    start = "sft"                       # where cells begin: a name of [[starts]], or an adapter
    compare = [["cita", "sft"]]         # pairs of arms that are set against one another

    [set]                               # keys of every cell
    "training.max_steps" = 32

    [axes]                              # keys, each with its values; `start` may be one
    "objective.beta" = [0.05, 0.1]

    [[arms]]                            # named bundles of keys; they cross with the axes
    name = "dpo"
    set = { "objective.name" = "dpo" }
    start = "base"                      # of this arm alone

    [[starts]]                          # one training, shared by the cells that begin from it
    name = "sft"
    set = { "objective.name" = "sft" }
    shared = true                       # false: one for each seed

    [[suites]]                          # a suite and its options, by the names of their flags
    name = "switch"
    label = "dev"                       # how its results are called; the suite's name if unset
    limit = 20

`like = "methods"` takes everything that the file does not say from another one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecliptica.config import LARGEST_SEED, RECIPES, hint
from ecliptica.files import read_toml
from model.errors import InputError

SHIPPED = RECIPES / "ablations"
MODES = ("grid", "one-at-a-time")
BASE = "base"  # a start: the base model itself
START = "start"  # the axis that is no key of a recipe
Set = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """A named bundle of keys. start None: the ablation's."""

    name: str
    set: Set
    start: str | None = None


@dataclass(frozen=True)
class Start:
    """A training that cells begin from. recipe None: the ablation's."""

    name: str
    set: Set
    recipe: str | None = None
    start: str = BASE
    shared: bool = True


@dataclass(frozen=True)
class Measurement:
    """A suite with its options, by field names."""

    label: str
    suite: str
    options: Set


@dataclass(frozen=True)
class Ablation:
    """An ablation as its file says it, checked for what the file alone shows."""

    name: str
    recipe: str
    seeds: tuple[int, ...]
    set: Set
    axes: dict[str, list]
    arms: tuple[Arm, ...]
    mode: str
    suites: tuple[Measurement, ...]
    starts: tuple[Start, ...]
    start: str
    compare: tuple[tuple[str, str], ...]
    about: str

    def start_named(self, name: str) -> Start | None:
        return next((start for start in self.starts if start.name == name), None)


KEYS = (
    "about",
    "recipe",
    "seeds",
    "set",
    "axes",
    "arms",
    "mode",
    "suites",
    "starts",
    "start",
    "compare",
    "like",
)


def path_of(name: str | Path) -> Path:
    """The file of an ablation: a path, or the name of a shipped one. Raises InputError."""
    path = Path(name)
    if path.suffix == ".toml" or path.exists():
        if not path.exists():
            raise InputError(f"{name}: no such ablation file")
        return path
    shipped = SHIPPED / f"{name}.toml"
    if not shipped.exists():
        names = sorted(path.stem for path in SHIPPED.glob("*.toml"))
        raise InputError(
            f"{name}: no such ablation; expected a TOML path or one of {', '.join(names)}"
            f"{hint(str(name), names)}"
        )
    return shipped


def read(name: str | Path) -> Ablation:
    """The ablation of a file or of a shipped name. Raises InputError naming file and key."""
    path = path_of(name)
    table = _whole_table(path, seen=())
    reader = Reader(str(path))
    reader.known(table, KEYS, "")
    recipe = reader.text(table, "recipe", None)
    if recipe is None:
        raise InputError(f"{path}: recipe: not set; expected a TOML path or a shipped recipe")
    return Ablation(
        name=path.stem,
        recipe=recipe,
        seeds=reader.seeds(table),
        set=reader.table(table, "set"),
        axes=reader.axes(table),
        arms=reader.arms(table),
        mode=reader.one_of(table, "mode", MODES),
        suites=reader.suites(table),
        starts=reader.starts(table),
        start=reader.text(table, "start", BASE),
        compare=reader.compare(table),
        about=reader.text(table, "about", ""),
    )


def _whole_table(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The file's keys over those of the file that it is like."""
    if path in seen:
        raise InputError(f"{path}: like: a circle of files that are like one another")
    table = read_toml(path, "a TOML ablation")
    other = table.pop("like", None)
    if other is None:
        return table
    if not isinstance(other, str):
        raise InputError(f"{path}: like: expected the name of an ablation, got {other!r}")
    beside = path.parent / f"{other}.toml"
    first = beside if beside.exists() else path_of(other)
    return _whole_table(first, (*seen, path)) | table


class Reader:
    """Typed pieces of the table; every error begins with the file."""

    def __init__(self, where: str):
        self.where = where

    def wrong(self, key: str, wanted: str, value: Any) -> InputError:
        return InputError(f"{self.where}: {key}: expected {wanted}, got {value!r}")

    def known(self, table: dict, keys: tuple[str, ...], prefix: str) -> None:
        for key in table:
            if key not in keys:
                raise InputError(
                    f"{self.where}: unknown key {prefix}{key}{hint(key, keys)}; "
                    f"expected some of {', '.join(keys)}"
                )

    def text(self, table: dict, key: str, default: str | None, prefix: str = "") -> str | None:
        value = table.get(key, default)
        if value is not None and not isinstance(value, str):
            raise self.wrong(f"{prefix}{key}", "a text", value)
        return value

    def table(self, table: dict, key: str, prefix: str = "") -> Set:
        """A table of keys of a recipe: "objective.beta" = 0.1."""
        value = table.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(f"{prefix}{key}", "a table of keys and values", value)
        for name, inner in value.items():
            if isinstance(inner, dict):
                raise self.wrong(
                    f"{prefix}{key}.{name}",
                    'a value; write a dotted key in quotes ("a.b" = 1)',
                    inner,
                )
        return dict(value)

    def one_of(self, table: dict, key: str, choices: tuple[str, ...]) -> str:
        value = table.get(key, choices[0])
        if value not in choices:
            raise self.wrong(key, f"one of {', '.join(choices)}", value)
        return value

    def seeds(self, table: dict) -> tuple[int, ...]:
        seeds = table.get("seeds", [0])
        right = isinstance(seeds, list) and bool(seeds)
        if not right or any(type(s) is not int or not 0 <= s <= LARGEST_SEED for s in seeds):
            raise self.wrong("seeds", "a list of whole numbers from 0", seeds)
        if len(set(seeds)) < len(seeds):
            raise self.wrong("seeds", "different seeds", seeds)
        return tuple(seeds)

    def axes(self, table: dict) -> dict[str, list]:
        axes = self.table(table, "axes")
        for key, values in axes.items():
            if not isinstance(values, list) or not values:
                raise self.wrong(f"axes.{key}", "a list of values", values)
            if len({repr(value) for value in values}) < len(values):
                raise self.wrong(f"axes.{key}", "different values", values)
        return axes

    def tables(self, table: dict, key: str) -> list[dict]:
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise self.wrong(key, f"tables, [[{key}]]", value)
        return value

    def named(self, table: dict, key: str, keys: tuple[str, ...]) -> list[tuple[str, dict]]:
        """(name, table) of an array of tables whose names differ."""
        pairs = []
        for one in self.tables(table, key):
            self.known(one, keys, f"{key}.")
            name = self.text(one, "name", None, f"{key}.")
            if not name:
                raise InputError(f"{self.where}: {key}: a table without a name")
            pairs.append((name, one))
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise self.wrong(f"{key}.name", "different names", names)
        return pairs

    def arms(self, table: dict) -> tuple[Arm, ...]:
        arms = []
        for name, one in self.named(table, "arms", ("name", "set", "start")):
            start = self.text(one, "start", None, "arms.")
            arms.append(Arm(name, self.table(one, "set", "arms."), start))
        return tuple(arms)

    def starts(self, table: dict) -> tuple[Start, ...]:
        starts = []
        for name, one in self.named(table, "starts", ("name", "set", "recipe", "start", "shared")):
            shared = one.get("shared", True)
            if not isinstance(shared, bool):
                raise self.wrong("starts.shared", "true or false", shared)
            starts.append(
                Start(
                    name=name,
                    set=self.table(one, "set", "starts."),
                    recipe=self.text(one, "recipe", None, "starts."),
                    start=self.text(one, "start", BASE, "starts."),
                    shared=shared,
                )
            )
        return tuple(starts)

    def suites(self, table: dict) -> tuple[Measurement, ...]:
        suites = []
        for one in self.tables(table, "suites"):
            options = {key.replace("-", "_"): value for key, value in one.items()}
            name = options.pop("name", None)
            if not isinstance(name, str):
                raise self.wrong("suites.name", "the name of a suite", name)
            label = options.pop("label", name)
            if not isinstance(label, str) or not label or "/" in label:
                raise self.wrong("suites.label", "a short name", label)
            suites.append(Measurement(label, name, options))
        labels = [suite.label for suite in suites]
        if not suites:
            raise InputError(f"{self.where}: [[suites]]: none; expected at least one")
        if len(set(labels)) < len(labels):
            raise InputError(
                f"{self.where}: suites: {', '.join(labels)}: give each its own `label`"
            )
        return tuple(suites)

    def compare(self, table: dict) -> tuple[tuple[str, str], ...]:
        pairs = table.get("compare", [])
        right = isinstance(pairs, list) and all(
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(n, str) for n in pair)
            for pair in pairs
        )
        if not right:
            raise self.wrong("compare", 'a list of pairs of arms, [["cita", "sft"]]', pairs)
        return tuple(tuple(pair) for pair in pairs)
