"""The numbers of an ablation as typed tables: arms pooled over seeds, every seed, cost, pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ecliptica.evaluation import pooling
from ecliptica.evaluation.measured import Change
from ecliptica.evaluation.report.tables import Table
from ecliptica.evaluation.results import Results
from ecliptica.experiments.ablation import Ablation
from ecliptica.experiments.cells import CONTROL, Cell
from ecliptica.experiments.store import Store

# The largest budget over the smallest from which a table says so. A clock is noisier than a count.
UNEQUAL = {"preferences": 1.1, "seconds of training": 1.5}


@dataclass(frozen=True)
class Kept:
    """What is there of an ablation: cells that are done, in the order of the table."""

    ablation: Ablation
    cells: tuple[Cell, ...]
    store: Store

    @cached_property
    def done(self) -> list[Cell]:
        names = self.store.done()
        return [cell for cell in self.cells if cell.name in names]

    @cached_property
    def records(self) -> dict[str, dict[str, Any]]:
        return self.store.records()

    @property
    def arms(self) -> dict[str, list[Cell]]:
        """{arm: its cells that are done, a seed each}."""
        arms: dict[str, list[Cell]] = {}
        for cell in self.done:
            if cell.name != CONTROL:
                arms.setdefault(cell.arm, []).append(cell)
        return arms

    def results(self, label: str) -> dict[str, list[Results]]:
        """{arm: the results of a suite, a seed each}; arms without any are left out."""
        table = {}
        for arm, cells in self.arms.items():
            own = [self.store.results(cell.name, label) for cell in cells]
            if own and all(results is not None for results in own):
                table[arm] = own
        return table

    def control(self, label: str) -> Results | None:
        """Of the cell that trains nothing."""
        return self.store.results(CONTROL, label)


# A suite


def of_suite(kept: Kept, label: str) -> list[Table]:
    """Values with differences and KL; pairs of arms; every seed by itself."""
    arms = kept.results(label)
    control = kept.control(label)
    if control is None:
        return []
    if not arms:
        return [alone(control)]
    metrics = shared_metrics(control, arms)
    pooled = pooling.table(arms, metrics)
    tables = [values(kept, control, arms, pooled, metrics), changes(control, arms, pooled, metrics)]
    tables += pairs(kept.ablation, arms, metrics, control)
    return [*tables, every_seed(kept, arms, pooled, metrics, control)]


def shared_metrics(control: Results, arms: dict[str, list[Results]]) -> list[str]:
    """Those of the control that every arm has too, in its order."""
    each = [results.metrics for seeds in arms.values() for results in seeds]
    return [name for name in control.metrics if all(name in metrics for metrics in each)]


def alone(control: Results) -> Table:
    """The control by itself: nothing is trained yet."""
    rows = [system_row(control, system, list(control.metrics)) for system in control.systems]
    titles = [column.title for column in control.metrics.values()]
    return Table("", ["arm", *titles], rows)


def system_row(control: Results, system: str, metrics: Sequence[str]) -> list:
    return [system, *(control.systems[system][name] for name in metrics)]


def values(kept: Kept, control: Results, arms, pooled, metrics: Sequence[str]) -> Table:
    """A row an arm: each metric, KL spent, and what could have been seen of the headline."""
    titles = [control.metrics[name].title for name in metrics]
    known = any(map(pooling.has_kl, arms.values()))
    head = ["arm", "seeds", *titles, *(["KL, nats a token"] if known else [])]
    rows = []
    for system in control.systems:
        own = system_row(control, system, metrics)
        rows.append([own[0], "-", *own[1:]])
    for arm in arms:
        rows.append([arm, seeds_of(kept, arm), *(pooled[arm][name].value for name in metrics)])
    if known:
        spent = [None] * len(control.systems) + [pooling.kl(seeds) for seeds in arms.values()]
        rows = [[*row, cell] for row, cell in zip(rows, spent, strict=True)]
    return Table("", head, rows)


def changes(control: Results, arms, pooled, metrics: Sequence[str]) -> Table:
    """A row an arm: difference to prompting only, gain of the headline a nat, smallest difference
    that the table could have shown."""
    headline = headline_of(control, metrics)
    titles = [control.metrics[name].title for name in metrics]
    head = [
        "arm",
        *titles,
        f"gain a nat, {control.metrics[headline].title}",
        "smallest detectable",
    ]
    rows = []
    for arm, seeds in arms.items():
        own = pooled[arm]
        rows.append(
            [
                arm,
                *(own[name].change for name in metrics),
                own[headline].gain_per_nat,
                detectable(seeds, headline),
            ]
        )
    return Table(f"Differences to {CONTROL}", head, rows)


def seeds_of(kept: Kept, arm: str) -> str:
    """How many; none of an arm that trains nothing."""
    trained = [cell for cell in kept.arms[arm] if cell.seed is not None]
    return str(len(trained)) if trained else "-"


def headline_of(control: Results, metrics: Sequence[str]) -> str:
    return control.headline if control.headline in metrics else metrics[0]


def detectable(seeds: Sequence[Results], name: str) -> float | None:
    """Of one arm, from its own spread; None of a ratio of means, which has no value of a unit."""
    if name in seeds[0].derived:
        return None
    of_units, of_seeds = pooling.spreads(seeds, name)
    return pooling.smallest_difference(of_units, seeds[0].units, of_seeds, len(seeds))


def pairs(ablation: Ablation, arms, metrics: Sequence[str], control: Results) -> list[Table]:
    """The arms that the ablation sets against one another; Holm over all of them."""
    found: dict[str, Change] = {}
    shown = []
    for first, second in ablation.compare:
        if first not in arms or second not in arms or len(arms[first]) != len(arms[second]):
            continue
        shown.append((first, second))
        for name in metrics:
            found[f"{first} {second} {name}"] = pooling.against(arms[first], arms[second], name)
    if not shown:
        return []
    found = pooling.adjusted(found)
    rows = []
    for first, second in shown:
        cells = [found[f"{first} {second} {name}"] for name in metrics]
        rows.append([f"{first} - {second}", *cells])
    titles = [control.metrics[name].title for name in metrics]
    return [Table("Arm against arm, paired by seed and unit", ["pair", *titles], rows)]


def every_seed(kept: Kept, arms, pooled, metrics: Sequence[str], control: Results) -> Table:
    """A row a cell."""
    titles = [control.metrics[name].title for name in metrics]
    rows = []
    for arm in arms:
        for number, cell in enumerate(kept.arms[arm]):
            rows.append([arm, seed_of(cell), *(pooled[arm][n].seeds[number] for n in metrics)])
    return Table("Every seed", ["arm", "seed", *titles], rows)


def seed_of(cell: Cell) -> str:
    return "-" if cell.seed is None else str(cell.seed)


def conditions(kept: Kept, label: str) -> list[Table]:
    """The headline with the instruction removed and the prompt scrambled, where it was asked: with
    arms trained without the instruction that is the 2 x 2."""
    control = kept.control(label)
    if control is None:
        return []
    headline = control.headline
    rows = []
    for system, by_condition in control.controls.items():
        for condition, by_name in by_condition.items():
            rows.append([system, "-", condition, by_name.get(headline)])
    for arm, cells in kept.arms.items():
        for cell in cells:
            results = kept.store.results(cell.name, label)
            if results is None or len(results.systems) < 2:
                continue
            for condition, by_name in results.controls.get(pooling.trained(results), {}).items():
                rows.append([arm, seed_of(cell), condition, by_name.get(headline)])
    if not rows:
        return []
    title = control.metrics[headline].title
    return [Table("Conditions", ["arm", "seed", "condition", title], rows)]


# Cost


def cost(kept: Kept) -> Table:
    """What training took, a row a cell."""
    head = [
        "cell",
        "steps",
        "preferences",
        "training s",
        "tokens/s",
        "peak GiB",
        "log-prob of chosen, change",
        "of rejected",
        "evaluation s",
    ]
    names = (
        "steps",
        "preferences",
        "seconds",
        "tokens_per_second",
        "peak_memory_gib",
        "chosen_change",
        "rejected_change",
    )
    rows = []
    for cell in kept.done:
        record = kept.records.get(cell.name, {})
        training = record.get("training") or {}
        own = [training.get(name) for name in names]
        rows.append([cell.name, *map(number, own), number(record.get("evaluation_seconds"))])
    return Table("Cost", head, rows)


def number(value: float | None) -> str | None:
    if value is None:
        return None
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def unequal_budgets(kept: Kept) -> str:
    """A warning where arms were trained on different numbers of preferences, or for other times;
    "" where they were not. What they begin from is not counted."""
    by_arm = {}
    starts = {cell.arm for cell in kept.cells if cell.is_start}
    for arm, cells in kept.arms.items():
        own = [(kept.records.get(cell.name, {}).get("training") or {}) for cell in cells]
        if arm not in starts and all(own):
            count = len(own)
            by_arm[arm] = (
                sum(one["preferences"] for one in own) / count,
                sum(one["seconds"] for one in own) / count,
            )
    if len(by_arm) < 2:
        return ""
    sentences = []
    for place, (what, largest) in enumerate(UNEQUAL.items()):
        ordered = sorted(by_arm, key=lambda arm: by_arm[arm][place])
        least, most = ordered[0], ordered[-1]
        low, high = by_arm[least][place], by_arm[most][place]
        if high > largest * low:
            sentences.append(f"{what}: {high:.0f} ({most}) against {low:.0f} ({least})")
    return f"UNEQUAL BUDGETS: {'; '.join(sentences)}." if sentences else ""
