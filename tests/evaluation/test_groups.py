"""Values by family and of held-out instructions: means over the group's instructions, by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from ecliptica.evaluation import groups, statistics
from ecliptica.evaluation.suites import switch
from model.errors import InputError

NAMES = ["a", "b", "c"]


def test_a_group_is_the_mean_of_its_instructions():
    parts = {0: [1.0, 0.0, 0.5], 1: [0.0, 0.0, 1.0]}
    metric = SimpleNamespace(parts=lambda unit, answers: parts[unit])
    asked = SimpleNamespace(answers={"base": None}, drawn=statistics.draws(2))
    members = groups.apart(["c"], NAMES)
    assert members == {groups.TRAINED: ["a", "b"], groups.HELD_OUT: ["c"]}
    values = groups.measured(members, metric, [0, 1], NAMES, asked)["base"]
    assert values[groups.TRAINED].value == pytest.approx(0.25)
    assert values[groups.HELD_OUT].value == pytest.approx(0.75)
    assert values[groups.HELD_OUT].low <= 0.75 <= values[groups.HELD_OUT].high
    table = groups.table("t", {"base": values})
    assert [row[0] for row in table.rows] == [groups.TRAINED, groups.HELD_OUT]


def test_what_is_no_group_is_refused():
    with pytest.raises(InputError, match="--hold-out: no instruction 'd'; there are a, b, c"):
        groups.apart(["d"], NAMES)
    with pytest.raises(InputError, match="leaves no instruction"):
        groups.apart(NAMES, NAMES)


def test_the_switching_suite_reports_both():
    options = switch.Options(limit=2, families="shipped", hold_out=("concise",), controls=())
    study = switch.prepare(options)
    by_group = study.details.args[1]
    assert list(by_group) == ["by family", "held out and trained"]
    drawn = np.array([[0, 1]])
    flat = {label: _Constant() for label in ("base",)}
    asked = SimpleNamespace(answers=flat, drawn=drawn)
    metric = next(m for m in study.metrics if m.name == "column_accuracy")
    values = groups.measured(by_group["by family"], metric, study.units, study.part_names, asked)
    assert set(values["base"]) == {"strict", "educational", "neutral", "open"}


class _Constant:
    """Answers that are one number whatever is asked."""

    def __getitem__(self, question):
        return -1.0

    def tokens(self, question):
        return 1
