"""The tables of results: typed rows, and their Markdown. page.py renders the same rows as HTML."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ecliptica import markdown

ABLATION = "ABLATION: the KL of the trained model was lifted or was no KL."
NOT_REPORTABLE = "NOT REPORTABLE: made with --limit."


@dataclass(frozen=True)
class Table:
    """A cell is a text, a number (a chance level), an Interval, a Change, or None: no value."""

    title: str  # "" for the first
    head: Sequence[str]
    rows: Sequence[Sequence]


# Of results


def of_results(results) -> list[Table]:
    """The table of values and differences, then the second ones."""
    return [values(results, with_differences=True), *second(results)]


def values(results, with_differences: bool) -> Table:
    """A row a metric: chance level, every system's value, differences to the control."""
    differences = results.difference if with_differences else {}
    head = ["metric", "chance", *results.systems, *_minus(results.control, differences)]
    rows = []
    for name, metric in results.metrics.items():
        own = [by_name[name] for by_name in results.systems.values()]
        changes = [by_name[name] for by_name in differences.values()]
        rows.append([metric.title, metric.chance, *own, *changes])
    return Table("", head, rows)


def differences(results) -> Table:
    """A row a metric: every system's difference to the control."""
    rows = []
    for name, metric in results.metrics.items():
        changes = [by_name[name] for by_name in results.difference.values()]
        rows.append([metric.title, *changes])
    head = ["metric", *_minus(results.control, results.difference)]
    return Table(f"Differences to {results.control}", head, rows)


def second(results) -> list[Table]:
    """The controls as a table, and whatever tables a suite has of its own."""
    tables = []
    if results.controls:
        head = ["system, condition", *(metric.title for metric in results.metrics.values())]
        rows = []
        for label, by_condition in results.controls.items():
            for condition, by_name in by_condition.items():
                cells = [by_name[name] for name in results.metrics]
                rows.append([f"{label}, {condition}", *cells])
        tables.append(Table("Controls", head, rows))
    return [*tables, *results.tables]


def summary(all_results: dict) -> Table:
    """A row a suite: the headline of each, {suite: results}."""
    first = next(iter(all_results.values()))
    minus = _minus(first.control, first.difference)
    head = ["suite", "headline", "chance", *first.systems, *minus, "n"]
    rows = []
    for name, results in all_results.items():
        metric = results.metrics[results.headline]
        own = [by_name[results.headline] for by_name in results.systems.values()]
        changes = [by_name[results.headline] for by_name in results.difference.values()]
        units = f"{results.units} {results.unit}"
        rows.append([name, metric.title, metric.chance, *own, *changes, units])
    return Table("", head, rows)


def _minus(control: str, labels: Iterable[str]) -> list[str]:
    return [f"{label} - {control}" for label in labels]


# As Markdown


def to_markdown(table: Table) -> str:
    return markdown.table(table.head, [[shown(cell) for cell in row] for row in table.rows])


def of(results) -> str:
    """All of results as Markdown: stamps, tables, notes."""
    first, *others = of_results(results)
    lines = [f"{stamp}\n" for stamp in stamps([results])]
    lines += [to_markdown(first), f"\n{foot(results)}"]
    for table in others:
        lines += [f"\n{table.title}.\n", to_markdown(table)]
    lines += [f"\n{note}" for note in results.notes]
    return "\n".join(lines) + "\n"


def summary_of(all_results: dict) -> str:
    """The headlines of several suites as Markdown."""
    each = list(all_results.values())
    lines = [f"{stamp}\n" for stamp in stamps(each)]
    p = ""
    if each[0].difference:
        p = "; p: Holm over each suite's own table, not over this one"
    foot = f"95 % intervals, units resampled{p}. A table with all metrics is in each suite's"
    lines += [to_markdown(summary(all_results)), f"\n{foot} directory."]
    return "\n".join(lines) + "\n"


def stamps(each: Sequence) -> list[str]:
    """What a reader has to know before any number."""
    limited = any(not results.reportable for results in each)
    ablated = any(results.made.get("ablation") for results in each)
    texts = [NOT_REPORTABLE] if limited else []
    return [*texts, ABLATION] if ablated else texts


def foot(results) -> str:
    """What the intervals and the p of the first table are."""
    bootstrap = results.bootstrap
    text = (
        f"{results.units} {results.unit}; 95 % intervals, {bootstrap['draws']} draws, "
        f"{bootstrap['resampled']} resampled, the same draws for every system"
    )
    if results.difference:
        test = bootstrap.get(
            "test", "paired sign-flip test (of a ratio: systems swapped within units)"
        )
        text += f"; p: {test}, Holm over this table"
    return f"{text}. {could_be_seen(results)}".rstrip()


def could_be_seen(results) -> str:
    """The smallest difference that the table could have shown; "" where nothing is known of it."""
    parts = []
    for label, by_name in results.detectable.items():
        known = [
            f"{results.metrics[name].title} {value:.3f}"
            for name, value in by_name.items()
            if value is not None
        ]
        if known:
            whose = f"{label}: " if len(results.detectable) > 1 else ""
            parts.append(whose + ", ".join(known))
    if not parts:
        return ""
    what = "difference" if results.difference else "distance from a fixed value"
    return (
        f"Smallest {what} detectable with 80 % power, two-sided 5 %, from this table's own spread "
        f"between {results.unit}: {'; '.join(parts)}."
    )


def shown(cell) -> str:
    """One cell as text."""
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int | float):
        return f"{cell:.3g}"
    if cell.value is None:
        text = "n/a"
    else:
        text = f"{cell.value:.3f} [{cell.low:.3f}, {cell.high:.3f}]"
    p = getattr(cell, "p_holm", None)
    return text if p is None else f"{text} p={p:.2g}"
