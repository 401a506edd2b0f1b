"""One file, one suite. A file that is dropped in is there: it has a docstring, whose first line is
its help; Options, a frozen dataclass whose fields are its flags; and SUITE, a Suite.

The file's name, with - for _, is the suite's on the command line: python eval.py NAME.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ecliptica.evaluation.ledger import Answering
from ecliptica.evaluation.measured import Measured
from ecliptica.evaluation.metrics import Answers, Derived, Metric, Unit
from ecliptica.evaluation.questions import Question
from ecliptica.evaluation.report.tables import Table
from ecliptica.registry import Folder

FOLDER = Folder(__name__, __path__, "suite")


@dataclass(frozen=True)
class Details:
    """What a suite says beside its table: keys of results.json, notes, second tables."""

    more: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Asked:
    """What a run has when all questions are answered: {label: answers}, the control first; the
    numbers of every unit; and the draws of the bootstrap."""

    answers: Mapping[str, Answers]
    measured: Measured
    drawn: Any

    @property
    def control(self) -> str:
        return next(iter(self.answers))


def no_details(asked: Asked) -> Details:
    return Details()


def no_more_questions(number: int, system: Answering, control: Answering) -> Sequence[Question]:
    return ()


@dataclass(frozen=True)
class Study:
    """What one run of a suite asks, of which units, measured how: made of its options alone,
    before a model is looked for."""

    units: Sequence[Unit]
    metrics: Sequence[Metric | Derived]
    unit: str = "prompts"  # what the units are called
    headline: str = ""  # the metric that stands for the suite; "": the first of the table
    part_names: Sequence[str] = ()  # of the metrics that fall apart: the instructions
    controls: Mapping[str, Sequence[Unit]] = field(default_factory=dict)  # {condition: units}
    controls_of_control: bool = True  # False: the conditions are asked of the other systems only
    details: Callable[[Asked], Details] = no_details
    # Questions that only some systems are asked: (number in the table, system, control).
    more_questions: Callable[[int, Answering, Answering], Sequence[Question]] = no_more_questions
    # {label: answers} from a file that the options name; None: systems are asked.
    recorded: Mapping[str, Answers] | None = None
    record: Mapping[str, Any] = field(default_factory=dict)  # how the recorded systems were made

    def plain_metrics(self, with_control: bool) -> list[Metric]:
        return [m for m in self.metrics if isinstance(m, Metric) and _applies(m, with_control)]

    def derived(self, with_control: bool) -> list[Derived]:
        return [m for m in self.metrics if isinstance(m, Derived) and _applies(m, with_control)]

    def controls_of(self, number: int, systems: int) -> Mapping[str, Sequence[Unit]]:
        """{condition: units} that one of so many systems is asked, number 0 the control."""
        if number == 0 and systems > 1 and not self.controls_of_control:
            return {}
        return self.controls

    def questions(self, units: Sequence[Unit], with_control: bool) -> Iterator[Question]:
        """Everything that the metrics read, unit by unit."""
        metrics = self.plain_metrics(with_control)
        for unit in units:
            for metric in metrics:
                yield from metric.questions(unit)


def _applies(metric: Metric | Derived, with_control: bool) -> bool:
    return with_control or not metric.against_control


@dataclass(frozen=True)
class Suite:
    """One evaluation as a value: its options, what it asks, what it measures."""

    name: str
    Options: type
    prepare: Callable[[Any], Study]
    metrics: Callable[[], Sequence[Metric | Derived]]  # with the options' defaults: for the help
    asks_systems: bool = True  # False: its options name a file of answers


def names() -> tuple[str, ...]:
    return FOLDER.names()


def get(name: str) -> Suite:
    """Raises InputError for a suite that there is not."""
    return FOLDER.get(name).SUITE


def about(name: str) -> str:
    """The docstring of a suite's file."""
    return FOLDER.about(name)
