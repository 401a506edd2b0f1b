"""How many instructions can the model tell apart? Column accuracy of the references with 10, 20,
50 and 100 candidate instructions.

The further instructions have no references of their own: they compete for those of the first ones.
Chance 1/candidates. A second table says, axis by axis, which of them the responses go to
(metrics/scale.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ecliptica.config import option
from ecliptica.evaluation import statistics
from ecliptica.evaluation.banks import WordedOptions, in_one_wording, load_crossed, numbers
from ecliptica.evaluation.measured import Interval
from ecliptica.evaluation.metrics import scale
from ecliptica.evaluation.questions import Question
from ecliptica.evaluation.report.tables import Table
from ecliptica.evaluation.suites import Asked, Details, Study, Suite
from ecliptica.isd.bank import MORE_INSTRUCTIONS, Entry, load_axes, load_instructions
from model.errors import InputError


@dataclass(frozen=True)
class Options(WordedOptions):
    more: str = option(
        str(MORE_INSTRUCTIONS),
        "TOML of further instructions, a table an axis",
        default_text="the shipped ones",
    )
    sizes: tuple[str, ...] = option(
        (),
        "numbers of candidate instructions, comma-separated",
        default_text=f"those of {', '.join(map(str, scale.SIZES))} that there are",
    )


@dataclass(frozen=True)
class Contested:
    """A unit: one prompt, its responses, and the candidates that compete for them."""

    questions_JK: Sequence[Sequence[Question]]


def prepare(options: Options) -> Study:
    crossed = load_crossed(options)
    own = in_one_wording(options, crossed.instructions)
    more = in_one_wording(options, load_instructions(options.more))
    axes = load_axes(options.more)
    both = set(own) & set(more)
    if both:
        raise InputError(
            f"{options.more}: {min(both)} is in {options.instructions} too; ids must differ"
        )

    # The candidates, those with references first, then of every axis in turn.
    ordered = own | {name: more[name] for name in spread(more, axes)}
    sizes = sizes_of(options, len(own), len(ordered))
    candidates = {name: ordered[name] for name in list(ordered)[: sizes[0]]}
    groups = [None if name in own else axes[name] or "no axis" for name in candidates]
    units = [contested(entry, candidates, list(own)) for entry in crossed.entries]
    return Study(
        units=units,
        metrics=scale.metrics(sizes),
        details=partial(details, units, groups, len(own)),
    )


def contested(entry: Entry, candidates: dict[str, str], responses: Sequence[str]) -> Contested:
    def question(j: str, k: str) -> Question:
        names = {"prompt": entry.id, "instruction": j, "response_to": entry.id, "response": k}
        return Question(entry.prompt, candidates[j], entry.responses[k], names=names)

    return Contested([[question(j, k) for k in responses] for j in candidates])


def spread(more: Sequence[str], axes: dict[str, str | None]) -> list[str]:
    """Ids of the further instructions, one of each axis in turn, so that a cut at any number takes
    from all axes."""
    by_axis = {}
    for name in more:
        by_axis.setdefault(axes[name], []).append(name)
    most = max(map(len, by_axis.values()))
    return [names[n] for n in range(most) for names in by_axis.values() if n < len(names)]


def sizes_of(options: Options, least: int, most: int) -> list[int]:
    """Numbers of candidates, largest first: from those with references to all there are."""
    if not options.sizes:
        return [n for n in reversed(scale.SIZES) if least <= n <= most] or [most]
    sizes = sorted(set(numbers(options.sizes, "--sizes")), reverse=True)
    if sizes[-1] < least or sizes[0] > most:
        raise InputError(
            f"--sizes {','.join(map(str, options.sizes))}: from {least}, those with references, "
            f"to {most}, all there are"
        )
    return sizes


def details(
    units: Sequence[Contested], groups: Sequence[str | None], own: int, asked: Asked
) -> Details:
    """The second table: what takes the responses, most of the control's first."""
    taken = {}
    for label, answers in asked.answers.items():
        rows = [scale.shares(scale.read_scores(unit, answers), groups) for unit in units]
        taken[label] = {
            group: Interval(**statistics.summary([row[group] for row in rows], asked.drawn))
            for group in rows[0]
        }
    of_control = taken[asked.control]
    ordered = sorted(of_control, key=lambda group: (group != scale.OWN, -of_control[group].value))
    members = {scale.OWN: 1, scale.OTHER: own - 1}
    for group in filter(None, groups):
        members[group] = groups.count(group)
    table = Table(
        f"Where the responses go with {len(groups)} candidates; chance: the group's share of the "
        "candidates",
        ["taken by", "chance", *taken],
        [
            [group, members[group] / len(groups), *(taken[label][group] for label in taken)]
            for group in ordered
        ],
    )
    return Details({"taken": taken}, tables=[table])


SUITE = Suite("scale", Options, prepare, lambda: scale.METRICS)
