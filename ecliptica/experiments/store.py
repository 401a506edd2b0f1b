"""What an ablation keeps, small enough to commit: a row a cell and metric, a record a cell, and
every unit's value. A cell whose rows are there is done, also where its run is not.

    results.csv     cell, arm, seed, system, suite, metric, value, low, high, units, note
    cells.jsonl     claim, machine, versions, training and its cost, a line a cell
    units/NAME/     LABEL.json: the results of a suite with every unit's value

Lines are added and never changed, but for the row of a cell that failed and is then done. All is
written whole or not at all, under a lock: several processes may share the directory.
"""

import csv
import fcntl
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ecliptica.evaluation.results import Results
from ecliptica.files import journal, naming, replace_text, to_line, write_text
from model.errors import InputError

COLUMNS = (
    "cell",
    "arm",
    "seed",
    "system",
    "suite",
    "metric",
    "value",
    "low",
    "high",
    "units",
    "note",
)
FAILED = "failed"  # the metric of a cell that crashed; its note is the last line it wrote
Row = dict[str, str]


class Store:
    """The kept files of one ablation."""

    def __init__(self, out: Path):
        self.out = out
        self.table = out / "results.csv"
        self.records_path = out / "cells.jsonl"
        self.units = out / "units"

    # Reading

    def rows(self) -> list[Row]:
        """Every row of results.csv. Raises InputError for a file that is no such table."""
        if not self.table.exists():
            return []
        text = self.table.read_text(encoding="utf-8")
        reader = csv.DictReader(io.StringIO(text))
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise InputError(
                f"{self.table}: its columns are {reader.fieldnames}; expected "
                f"{', '.join(COLUMNS)}: choose another --out"
            )
        return list(reader)

    def done(self) -> set[str]:
        """The names of the cells whose rows are there."""
        return {row["cell"] for row in self.rows() if row["metric"] != FAILED}

    def failures(self) -> dict[str, str]:
        """{cell: the last line of it}."""
        return {row["cell"]: row["note"] for row in self.rows() if row["metric"] == FAILED}

    def records(self) -> dict[str, dict[str, Any]]:
        """{cell: its newest record}."""
        return {record["cell"]: record for record in journal(self.records_path)}

    def results(self, name: str, label: str) -> Results | None:
        """The results of one suite of a cell that is done."""
        path = self.units / name / f"{label}.json"
        return Results.read(path) if path.exists() else None

    # Writing

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Inside the block no other process writes."""
        self.out.mkdir(parents=True, exist_ok=True)
        with open(self.out / ".lock", "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def add(self, name: str, rows: Sequence[Row], record: dict[str, Any]) -> None:
        """A cell is done: its record, then its rows. Nothing if it was done already."""
        with self.locked():
            if name in self.done():
                return
            # The record first: rows without one would be done, and nobody could say by what.
            if self.records().get(name) != record:
                records = [*journal(self.records_path), record]
                write_text(self.records_path, "".join(map(to_line, records)))
            self._write([*self._without(name), *rows])

    def add_failure(self, name: str, arm: str, seed: int | None, note: str) -> None:
        """A cell that crashed is a row."""
        with self.locked():
            if name in self.done():
                return
            row = as_row(name, arm, seed, {"metric": FAILED, "note": " ".join(note.split())})
            self._write([*self._without(name), row])

    def put_in_order(self, names: Sequence[str]) -> None:
        """Rows in the order of the cells, whichever ended first. Rows of other cells stay, last."""
        with self.locked():
            rows = self.rows()
            place = {name: number for number, name in enumerate(names)}
            ordered = sorted(rows, key=lambda row: place.get(row["cell"], len(place)))
            if ordered != rows:
                self._write(ordered)

    def _without(self, name: str) -> list[Row]:
        return [row for row in self.rows() if row["cell"] != name]

    def _write(self, rows: Sequence[Row]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        with naming(self.table):
            replace_text(self.table, text.getvalue())

    def keep_units(self, name: str, label: str, results: Results) -> None:
        """Every unit's value, without the paths of this machine."""
        path = self.units / name / f"{label}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        plain = {key: value for key, value in results.config.items() if is_no_path(value)}
        made = {"ablation": True} if results.made.get("ablation") else {}
        kept = replace(
            results, config=plain, made=made, by_instruction={}, tables=(), notes=(), details={}
        )
        text = json.dumps(kept.to_json(), ensure_ascii=False, allow_nan=False)
        write_text(path, text + "\n")


def is_no_path(value: Any) -> bool:
    texts = value if isinstance(value, list | tuple) else [value]
    return not any(isinstance(text, str) and "/" in text for text in texts)


def as_row(name: str, arm: str, seed: int | None, cells: Mapping[str, Any]) -> Row:
    """One row as texts."""
    row = dict.fromkeys(COLUMNS, "")
    row |= {"cell": name, "arm": arm, "seed": "" if seed is None else str(seed)}
    for key, value in cells.items():
        row[key] = as_text(value)
    return row


def as_text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def rows_of(name: str, arm: str, seed: int | None, label: str, results: Results) -> list[Row]:
    """A row a metric of the cell's own systems: those that are not the control; of the cell that
    has no other, its own. Conditions, such as the instruction removed, are systems of their own."""
    systems = list(results.systems)
    own = systems[1:] or systems
    rows = []

    def add(system: str, by_name: Mapping[str, Any]) -> None:
        for metric, cell in by_name.items():
            values = {
                "system": system,
                "suite": label,
                "metric": metric,
                "value": cell.value,
                "low": cell.low,
                "high": cell.high,
                "units": results.units,
            }
            rows.append(as_row(name, arm, seed, values))

    for system in own:
        add(system, results.systems[system])
        for condition, by_name in results.controls.get(system, {}).items():
            add(f"{system}, {condition}", by_name)
    return rows
