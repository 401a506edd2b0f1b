"""Run a suite: questions, ledger, metrics, results.

results = run(suites.get("switch"), options, {"prompting-only": base, "trained": trained})
"""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ecliptica.evaluation import statistics
from ecliptica.evaluation.ledger import Answering, Ledger
from ecliptica.evaluation.measured import (
    Column,
    Interval,
    Made,
    Measured,
    changes,
    detectable,
    intervals,
)
from ecliptica.evaluation.measured import listed as as_json
from ecliptica.evaluation.metrics import Answers, level
from ecliptica.evaluation.results import Results, versions
from ecliptica.evaluation.suites import Asked, Study, Suite

Label = str


def run(
    suite: Suite,
    options: Any,
    systems: Mapping[Label, Answering] | None = None,
    ledger: str | Path | Ledger | None = None,
) -> Results:
    """The results of a suite for systems side by side, {label: system}, the control first.

    ledger: a file or a directory where answers are kept, so that nothing is asked twice, also by
    another run; None: nowhere. systems None: for a suite whose options name a file of answers.
    Raises InputError for options that contradict each other or the data.
    """
    study = suite.prepare(options)
    if ledger is None:
        with tempfile.TemporaryDirectory() as place:
            return run_study(suite, study, options, systems, Ledger(place))
    if not isinstance(ledger, Ledger):
        ledger = Ledger(ledger)
        ledger.check_writable("ledger")
    return run_study(suite, study, options, systems, ledger)


def run_study(
    suite: Suite,
    study: Study,
    options: Any,
    systems: Mapping[Label, Answering] | None,
    ledger: Ledger,
    config: Mapping[str, Any] | None = None,
) -> Results:
    """The same for options that are a study already. config: what the results say of how they were
    made, beside the options."""
    answers = study.recorded
    record = dict(study.record)
    if answers is None:
        answers = ask(study, systems, ledger)
        record |= record_of(systems)
    measured = measure(study, answers)
    drawn = statistics.draws(len(study.units))
    details = study.details(Asked(answers, measured, drawn))
    return Results(
        suite=suite.name,
        reportable=getattr(options, "limit", None) is None,
        units=len(study.units),
        unit=study.unit,
        headline=next(iter(measured.rows)),
        metrics=measured.rows,
        systems=intervals(measured, drawn),
        difference=changes(measured, drawn),
        detectable=detectable(measured, drawn),
        per_unit=_listed(measured.per_unit),
        parts=_listed(measured.parts),
        derived=measured.derived,
        by_instruction=by_instruction(study, answers, drawn),
        controls=of_controls(study, answers, drawn),
        tables=tuple(details.tables),
        notes=tuple(details.notes),
        bootstrap={
            "draws": statistics.DRAWS,
            "resampled": study.unit,
            "level": statistics.LEVEL,
        },
        config={"suite": suite.name, **(config or {}), **asdict(options)},
        versions=versions(),
        made=record,
        details=dict(details.more),
    )


# Asking


def ask(study: Study, systems: Mapping[Label, Answering], ledger: Ledger) -> dict[Label, Answers]:
    """{label: answers}: of every system what the metrics read, under every condition."""
    control = next(iter(systems.values()))
    with_control = len(systems) > 1
    answers = {}
    for number, (label, system) in enumerate(systems.items()):
        for units in (study.units, *study.controls_of(number, len(systems)).values()):
            questions = study.questions(units, with_control)
            answers[label] = ledger.ask(system, label, questions, control)
        ledger.ask(system, label, study.more_questions(number, system, control), control)
    return answers


def record_of(systems: Mapping[Label, Any]) -> dict[str, Any]:
    """How a trained one of these was made. An ablation goes before the others, so that no other
    system takes its stamp away."""
    records = [system.record for system in systems.values()]
    return max(records, key=lambda record: (bool(record.get("ablation")), bool(record)))


# Measuring


def measure(study: Study, answers: Mapping[Label, Answers]) -> Measured:
    """Every metric of every unit of every system; the headline first, derived before others."""
    with_control = len(answers) > 1
    plain = study.plain_metrics(with_control)
    derived = study.derived(with_control)
    per_unit, parts = {}, {}
    for label, own in answers.items():
        per_unit[label], parts[label] = {}, {}
        for metric in plain:
            values = [float(metric.value(unit, own)) for unit in study.units]
            (per_unit if metric.shown else parts)[label][metric.name] = values

    everyone = list(answers.values())
    rows = {}
    for metric in (*derived, *(metric for metric in plain if metric.shown)):
        rows[metric.name] = Column(metric.title, level(metric.null, study.units, everyone))
    headline = study.headline or next(iter(rows))
    ordered = {name: rows[name] for name in sorted(rows, key=lambda name: name != headline)}
    made = {metric.name: Made(metric.of, metric.how) for metric in derived}
    return Measured(ordered, per_unit, parts, made)


def by_instruction(
    study: Study, answers: Mapping[Label, Answers], drawn: np.ndarray
) -> dict[Label, dict[str, dict[str, Interval]]]:
    """{label: {metric: {instruction: interval}}} of the metrics that fall apart by instruction."""
    falling_apart = [metric for metric in study.plain_metrics(True) if metric.parts]
    if not study.part_names or not falling_apart:
        return {}
    table = {}
    for label, own in answers.items():
        table[label] = {}
        for metric in falling_apart:
            parts_PJ = np.array([metric.parts(unit, own) for unit in study.units])
            table[label][metric.name] = {
                name: Interval(**statistics.summary(column_P, drawn))
                for name, column_P in zip(study.part_names, parts_PJ.T, strict=True)
            }
    return table


def of_controls(
    study: Study, answers: Mapping[Label, Answers], drawn: np.ndarray
) -> dict[Label, dict[str, dict[str, Interval]]]:
    """{label: {condition: {metric: interval}}} on the same draws as the table; a condition under
    which a system has no value at all is left out."""
    table = {}
    for number, (label, own) in enumerate(answers.items()):
        for condition, units in study.controls_of(number, len(answers)).items():
            row = {}
            for metric in study.plain_metrics(len(answers) > 1):
                values = [metric.value(unit, own) for unit in units]
                row[metric.name] = Interval(**statistics.summary(values, drawn))
            if any(cell.value is not None for cell in row.values()):
                table.setdefault(label, {})[condition] = row
    return table


def _listed(table: dict) -> dict:
    return {
        label: {name: as_json(values) for name, values in by_name.items()}
        for label, by_name in table.items()
    }
