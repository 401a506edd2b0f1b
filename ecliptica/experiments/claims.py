"""Whose a cell is: one config, one set of data and weights, one code. Kept in work/NAME.json
while it is worked on, and in cells.jsonl when its rows are there."""

import hashlib
import os
import platform
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ecliptica
import kernels
import model
from ecliptica.evaluation.results import versions
from ecliptica.experiments.ablation import Measurement
from ecliptica.experiments.cells import Cell, Grid
from ecliptica.files import sample_digest
from ecliptica.running.run_directory import data_files, model_files
from model.errors import InputError

# Rooms that no number of a cell depends on.
BESIDE = ("experiments", "planning", "evaluation/report", "ablate.py", "keys.py")


@dataclass(frozen=True)
class Claim:
    """What a cell's numbers depend on. `config` is text, so that a change can be named."""

    config: str
    suites: list[dict[str, Any]]
    data: str
    code: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def claim(grid: Grid, cell: Cell) -> Claim:
    """The claim of a cell as things are now."""
    config = grid.config(cell)
    identity = grid.identity(cell)
    if cell.seed is None:
        # Nothing is trained: only the model and the template count.
        identity = f'path = "{config.model.path}"\ntemplate = "{config.data.template}"\n'
    files = model_files(config.model) if grid.begins_from(cell) is None else base_files(config)
    return Claim(
        config=identity,
        suites=[suite_identity(suite) for suite in grid.ablation.suites],
        data=digest_of([*data_files(config.data), *files]),
        code=code_digest(),
    )


def base_files(config: Any) -> list[Path]:
    """The base model's files: an adapter of another cell has a claim of its own."""
    directory = Path(config.model.path)
    return [path for path in model_files(config.model) if path.parent == directory]


def suite_identity(suite: Measurement) -> dict[str, Any]:
    return {"label": suite.label, "suite": suite.suite, **suite.options}


def digest_of(files: Iterable[Path]) -> str:
    """16 hex digits of the files' bytes in their order, whatever directory they are in."""
    sha256 = hashlib.sha256()
    for path in files:
        if path.is_file():
            size, text = _digest(path, path.stat().st_mtime_ns)
            sha256.update(f"{path.name} {size} {text}\n".encode())
    return sha256.hexdigest()[:16]


@cache
def _digest(path: Path, changed: int) -> tuple[int, str]:
    return tuple(sample_digest(path))


@cache
def code_digest() -> str:
    """16 hex digits of the source that numbers depend on."""
    sha256 = hashlib.sha256()
    for package in (ecliptica, kernels, model):
        root = Path(package.__file__).parent
        for path in sorted(root.rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if package is ecliptica and name.startswith(BESIDE):
                continue
            sha256.update(f"{package.__name__}/{name}\n".encode())
            sha256.update(path.read_bytes())
    return sha256.hexdigest()[:16]


def machine() -> dict[str, Any]:
    """What the cell ran on, without the machine's name."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.system(),
        "versions": versions(),
    }


def processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


# Refusing


def check(cell: Cell, stored: dict[str, Any], now: Claim, any_code: bool) -> None:
    """InputError unless a cell that was begun, or is done, is this one. any_code: other code is no
    reason."""
    advice = f"choose another --out, or move cells/{cell.name} and its rows away"
    if stored["config"] != now.config:
        raise InputError(
            f"cell {cell.name}: was made with another config "
            f"({difference(stored['config'], now.config)}); {advice}"
        )
    if stored["suites"] != now.suites:
        raise InputError(
            f"cell {cell.name}: was measured by other suites "
            f"({suites_difference(stored['suites'], now.suites)}); {advice}"
        )
    if stored["data"] != now.data:
        raise InputError(
            f"cell {cell.name}: was made with other data or weights (their bytes changed since); "
            f"put the files back, or {advice}"
        )
    if stored["code"] != now.code and not any_code:
        raise InputError(
            f"cell {cell.name}: was made by other code ({stored['code']}, now {now.code}); "
            f"--any-code goes on and says so in the table, or {advice}"
        )


def difference(old: str, new: str) -> str:
    """The first key whose value is another."""
    before, now = tomllib.loads(old), tomllib.loads(new)
    for section in now | before:
        was, own = before.get(section), now.get(section)
        if was == own:
            continue
        if not isinstance(was, dict) or not isinstance(own, dict):
            return f"{section} was {was!r}, now {own!r}"
        key = next(key for key in own | was if own.get(key) != was.get(key))
        return f"{section}.{key} was {was.get(key)!r}, now {own.get(key)!r}"
    return "written in another way"


def suites_difference(old: list[dict], new: list[dict]) -> str:
    by_label = [{one["label"]: one for one in suites} for suites in (old, new)]
    for label in by_label[0] | by_label[1]:
        was, own = (suites.get(label) for suites in by_label)
        if was == own:
            continue
        if was is None or own is None:
            return f"{label}: {'not there before' if was is None else 'not there now'}"
        key = next(key for key in was | own if was.get(key) != own.get(key))
        return f"{label}: {key} was {was.get(key)!r}, now {own.get(key)!r}"
    return "in another order"
