"""The results of a suite: typed, with every unit's value, intervals, and differences to the
control. Written to results.json and read from it; rendered by report/; seeds pooled here."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ecliptica.evaluation import statistics
from ecliptica.evaluation.measured import (
    Change,
    Column,
    Interval,
    Made,
    Measured,
    Values,
    changes,
    detectable,
    intervals,
    listed,
)
from ecliptica.evaluation.report import tables
from ecliptica.evaluation.report.tables import Table
from ecliptica.files import read_json, write_json
from model.errors import InputError

PER_SEED = "bootstrap over seeds, then units within them"


@dataclass(frozen=True)
class Results:
    """Dictionaries of systems are {label: ...}, the control first."""

    suite: str
    reportable: bool
    units: int
    unit: str  # what they are called: prompts, requests, texts
    headline: str  # the metric that stands for the suite, first in its table
    metrics: dict[str, Column]
    systems: dict[str, dict[str, Interval]]
    difference: dict[str, dict[str, Change]]  # of every system but the control
    per_unit: dict[str, dict[str, Values]]
    bootstrap: dict[str, Any]
    config: dict[str, Any]
    versions: dict[str, str]
    made: dict[str, Any] = field(default_factory=dict)  # the trained model's record
    parts: dict[str, dict[str, Values]] = field(default_factory=dict)  # that `derived` reads
    derived: dict[str, Made] = field(default_factory=dict)
    by_instruction: dict[str, dict[str, dict[str, Interval]]] = field(default_factory=dict)
    controls: dict[str, dict[str, dict[str, Interval]]] = field(default_factory=dict)
    # The smallest difference that the table could have shown: measured.detectable.
    detectable: dict[str, dict[str, float | None]] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)  # what a suite says beside, as JSON

    @property
    def control(self) -> str:
        return next(iter(self.systems))

    def __str__(self) -> str:
        """The tables and notes, as Markdown."""
        return tables.of(self)

    # In and out

    def to_json(self) -> dict[str, Any]:
        plain = asdict(self)
        details = plain.pop("details")
        for name in ("tables", "parts", "derived", "by_instruction", "difference", "detectable"):
            if not plain[name]:
                del plain[name]
        return plain | details

    def write(self, directory: str | Path) -> None:
        """results.json, whole or not at all."""
        write_json(Path(directory) / "results.json", self.to_json())

    @classmethod
    def read(cls, path: str | Path) -> "Results":
        """From a results.json. Raises InputError for one that no suite of today wrote."""
        return cls.from_json(read_json(path), str(path))

    @classmethod
    def from_json(cls, plain: dict[str, Any], where: str) -> "Results":
        needed = ("suite", "reportable", "units", "unit", "metrics", "systems", "bootstrap")
        for name in (*needed, "config"):
            if name not in plain:
                raise InputError(
                    f"{where}: no {name!r} in it; expected what eval.py writes: run the suite "
                    "again (its samples.jsonl is used where it fits)"
                )
        try:
            return _typed(cls, plain)
        except (TypeError, KeyError, AttributeError, StopIteration) as error:
            raise InputError(
                f"{where}: not the results of a suite ({error}); run the suite again"
            ) from error

    # Seeds

    @classmethod
    def pooled(cls, seeds: Sequence["Results"]) -> "Results":
        """Results of several seeds as one: a value is the mean over seeds and units; intervals
        and p resample seeds first, then units within each.

        The seeds are results of one suite with the same systems' labels and metrics, such as
        {"prompting-only": ..., "trained": ...} of three trainings. Raises InputError otherwise.
        """
        return _pooled(cls, list(seeds))


def versions() -> dict[str, str]:
    python = sys.version.split()[0]
    return {"python": python} | {name: metadata.version(name) for name in ("torch", "numpy")}


# From JSON


def _typed(cls, plain: dict[str, Any]) -> Results:
    def interval(cell: dict) -> Interval:
        return Interval(cell["value"], cell["low"], cell["high"])

    def nested(table: dict, kind, depth: int) -> dict:
        if depth == 0:
            return kind(table)
        return {key: nested(value, kind, depth - 1) for key, value in table.items()}

    def cell(value):
        return interval(value) if isinstance(value, dict) else value

    def second(table: dict) -> Table:
        rows = [[cell(value) for value in row] for row in table["rows"]]
        return Table(table["title"], table["head"], rows)

    # Notes of earlier results hold tables as text; the numbers of these are typed now.
    notes = [text.strip() for text in plain.get("notes", ()) if not text.startswith("|")]
    known = {
        "metrics": nested(plain["metrics"], lambda it: Column(it["title"], it["chance"]), 1),
        "systems": nested(plain["systems"], interval, 2),
        "difference": nested(plain.get("difference", {}), lambda it: Change(**it), 2),
        "per_unit": plain.get("per_unit", {}),
        "parts": plain.get("parts", {}),
        "derived": nested(plain.get("derived", {}), lambda it: Made(tuple(it["of"]), it["how"]), 1),
        "by_instruction": nested(plain.get("by_instruction", {}), interval, 3),
        "controls": nested(plain.get("controls", {}), interval, 3),
        "detectable": plain.get("detectable", {}),
        "tables": tuple(second(table) for table in plain.get("tables", ())),
        "notes": tuple(text for text in notes if text),
        "headline": plain.get("headline", next(iter(plain["metrics"]))),
        "versions": plain.get("versions", {}),
        "made": plain.get("made", {}),
    }
    same = ("suite", "reportable", "units", "unit", "bootstrap", "config")
    known |= {name: plain[name] for name in same}
    details = {name: value for name, value in plain.items() if name not in known}
    return cls(**known, details=details)


# Seeds


def _pooled(cls, seeds: list[Results]) -> Results:
    if not seeds:
        raise InputError("no results to pool; expected those of at least one seed")
    first = seeds[0]
    shape = (first.suite, first.units, list(first.metrics), list(first.systems))
    for other in seeds[1:]:
        theirs = (other.suite, other.units, list(other.metrics), list(other.systems))
        if theirs != shape:
            raise InputError(
                f"pooled results must be of one suite, with the same metrics and systems: {shape} "
                f"and {theirs}"
            )
    measured = Measured(
        first.metrics,
        _seed_after_seed([results.per_unit for results in seeds]),
        _seed_after_seed([results.parts for results in seeds]),
        first.derived,
    )
    drawn = statistics.seeded_draws(len(seeds), first.units)
    if len(seeds) == 1:
        drawn = statistics.draws(first.units)
    resampled = f"seeds, then {first.unit}" if len(seeds) > 1 else first.unit
    bootstrap = {"draws": statistics.DRAWS, "resampled": resampled, "level": statistics.LEVEL}
    if len(seeds) > 1:
        bootstrap["test"] = PER_SEED
    return cls(
        suite=first.suite,
        reportable=all(results.reportable for results in seeds),
        units=first.units,
        unit=first.unit,
        headline=first.headline,
        metrics=first.metrics,
        systems=intervals(measured, drawn),
        difference=changes(measured, drawn, len(seeds)),
        detectable=detectable(measured, drawn),
        per_unit=_listed(measured.per_unit),
        parts=_listed(measured.parts),
        derived=first.derived,
        bootstrap=bootstrap,
        config=first.config,
        versions=first.versions,
        made=next((r.made for r in seeds if r.made.get("ablation")), first.made),
        notes=(f"Pooled over {len(seeds)} seeds.",),
        details={"seeds": [_seed_row(results) for results in seeds]},
    )


def _seed_after_seed(each: list[dict]) -> dict[str, dict[str, np.ndarray]]:
    """{label: {metric: values of all units of seed 1, then of seed 2, ...}}, None as NaN."""
    labels = each[0]
    return {
        label: {
            name: np.array([value for seed in each for value in seed[label][name]], dtype=float)
            for name in labels[label]
        }
        for label in labels
    }


def _listed(table: dict) -> dict[str, dict[str, Values]]:
    return {
        label: {name: listed(values) for name, values in by_name.items()}
        for label, by_name in table.items()
    }


def _seed_row(results: Results) -> dict[str, dict[str, float | None]]:
    """Every seed's own value: {label: {metric: value}}."""
    return {
        label: {name: cell.value for name, cell in by_name.items()}
        for label, by_name in results.systems.items()
    }
