"""Values of groups of instructions: families, or those that training left out and the others."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ecliptica.evaluation import statistics
from ecliptica.evaluation.measured import Interval
from ecliptica.evaluation.metrics import Metric
from ecliptica.evaluation.report.tables import Table
from ecliptica.isd.bank import FAMILIES, load_families
from model.errors import InputError

Groups = Mapping[str, Sequence[str]]  # {group: ids of its instructions}
TRAINED, HELD_OUT = "trained types", "held-out types"


def families(path: str, names: Sequence[str]) -> Groups:
    """The families of a file, or of the shipped one. Raises InputError."""
    place = path
    if path == "shipped":
        place = str(FAMILIES)
    return load_families(place, names)


def apart(held_out: Sequence[str], names: Sequence[str]) -> Groups:
    """The instructions that training left out, and the others. Raises InputError for an unknown
    one."""
    for name in held_out:
        if name not in names:
            raise InputError(f"--hold-out: no instruction {name!r}; there are {', '.join(names)}")
    trained = [name for name in names if name not in held_out]
    if not trained:
        raise InputError("--hold-out: leaves no instruction that was trained")
    return {TRAINED: trained, HELD_OUT: list(dict.fromkeys(held_out))}


def measured(
    groups: Groups, metric: Metric, units: Sequence[Any], names: Sequence[str], asked: Any
) -> dict[str, dict[str, Interval]]:
    """{system: {group: interval}} of a metric that falls apart by instruction: of each unit the
    mean over the instructions of the group."""
    values = {}
    for label, answers in asked.answers.items():
        parts_PJ = np.array([metric.parts(unit, answers) for unit in units], dtype=float)
        values[label] = {}
        for group, members in groups.items():
            own = [names.index(name) for name in members]
            per_unit = parts_PJ[:, own].mean(1)
            values[label][group] = Interval(**statistics.summary(per_unit, asked.drawn))
    return values


def table(title: str, values: Mapping[str, Mapping[str, Interval]]) -> Table:
    """A row a group, a column a system."""
    labels = list(values)
    rows = []
    for group in values[labels[0]]:
        rows.append([group, *(values[label][group] for label in labels)])
    return Table(title, ["instructions", *labels], rows)
