"""ABLATION.md, the figures and report.html of an ablation, from what its store has."""

import importlib.util
from collections import Counter
from pathlib import Path

from ecliptica.evaluation.report import tables as rendering
from ecliptica.evaluation.report.html import Page, details, escape, of_table, paragraph, small
from ecliptica.evaluation.report.tables import Table
from ecliptica.experiments import figures, tables
from ecliptica.experiments.cells import CONTROL, RECIPE, Grid
from ecliptica.experiments.claims import code_digest
from ecliptica.experiments.store import Store
from ecliptica.experiments.tables import Kept
from ecliptica.files import write_text

WARNING = " class=warn"


def write(grid: Grid, store: Store) -> None:
    """All of it, as far as cells are done."""
    kept = Kept(grid.ablation, grid.cells, store)
    write_text(store.out / "ABLATION.md", markdown(grid, kept))
    if importlib.util.find_spec("matplotlib") is None:
        print(f"{store.out / 'report.html'}: not written, its figures need matplotlib")
        return
    page = Page(store.out)
    fill(page, grid, kept)
    write_text(store.out / "report.html", page.whole(f"Ablation {grid.ablation.name}"))


# What both say


def opening(grid: Grid, kept: Kept) -> list[str]:
    """What was compared, and how far it is."""
    ablation = grid.ablation
    seeds = ", ".join(map(str, ablation.seeds))
    lines = [ablation.about] if ablation.about else []
    lines.append(
        f"Recipe {Path(ablation.recipe).stem}, seeds {seeds}, mode {ablation.mode}; "
        f"{len(kept.done)} of {len(grid.cells)} cells are done."
    )
    arms = [cell.arm for cell in grid.cells if cell.seed is not None and not cell.is_start]
    if arms and arms[0] != RECIPE:
        lines.append(f"The arm {arms[0]} is the recipe itself.")
    if ablation.start != "base":
        lines.append(f"Cells begin from {Path(ablation.start).name}.")
    return lines


def warnings(grid: Grid, kept: Kept) -> list[str]:
    """What a reader has to know before any number."""
    texts = []
    failures = kept.store.failures()
    if failures:
        texts.append(f"FAILED: {len(failures)} cells, see Failures.")
    each = []
    for suite in grid.ablation.suites:
        own = [kept.store.results(cell.name, suite.label) for cell in kept.done]
        each += [results for results in own if results is not None]
    if any(not results.reportable for results in each):
        texts.append(rendering.NOT_REPORTABLE)
    lifted = [cell.name for cell in kept.done if kept.records.get(cell.name, {}).get("ablation")]
    if lifted:
        texts.append(f"The KL was lifted or is no KL in: {', '.join(lifted)}.")
    texts.append(tables.unequal_budgets(kept))
    codes = Counter(
        kept.records[cell.name]["code"] for cell in kept.done if cell.name in kept.records
    )
    if len(codes) > 1:
        made = ", ".join(f"{code} ({count} cells)" for code, count in codes.items())
        texts.append(f"Cells were made by different code: {made}.")
    return [text for text in texts if text]


def foot(kept: Kept, label: str) -> str:
    """What the intervals are."""
    control = kept.control(label)
    unit = control.unit if control else "units"
    count = control.units if control else 0
    return (
        f"{count} {unit}; 95 % intervals: seeds are resampled, then {unit} within each; p of the "
        f"differences to {CONTROL} is Holm-adjusted over the table. Gain a nat: difference over "
        "exact KL, nats a token. Smallest detectable: true difference found with 80 % power at 5 %"
        ", from the spread of the arm's own differences between units and between seeds."
    )


def chosen_on_dev(grid: Grid, kept: Kept) -> list[str]:
    """The arm that the dev split chooses, and what it is on the others."""
    sentences = []
    by_split = {suite.label: suite.options.get("split", "test") for suite in grid.ablation.suites}
    for suite in grid.ablation.suites:
        if by_split[suite.label] != "dev":
            continue
        best = best_arm(kept, suite.label)
        if best is None:
            continue
        sentences.append(f"Chosen on {suite.label}: {best}.")
        for other in grid.ablation.suites:
            if other.suite != suite.suite or by_split[other.label] == "dev":
                continue
            arms, control = kept.results(other.label), kept.control(other.label)
            if best in arms and control is not None:
                headline = control.headline
                own = tables.pooling.table({best: arms[best]}, [headline])[best][headline]
                title = control.metrics[headline].title
                sentences.append(f"Its {title} on {other.label}: {rendering.shown(own.value)}.")
    return sentences


def best_arm(kept: Kept, label: str) -> str | None:
    arms, control = kept.results(label), kept.control(label)
    if not arms or control is None:
        return None
    headline = control.headline
    pooled = tables.pooling.table(arms, [headline])
    known = {
        arm: own[headline].value.value
        for arm, own in pooled.items()
        if own[headline].value.value is not None
    }
    return max(known, key=known.get) if known else None


def commands(grid: Grid, kept: Kept) -> list[str]:
    """The exact command of every run that is there."""
    lines = []
    for cell in kept.done:
        command = kept.records.get(cell.name, {}).get("command")
        if command:
            lines.append("python " + " ".join(map(quoted, command)))
    return lines


def quoted(word: str) -> str:
    plain = all(letter.isalnum() or letter in "_-./=,+:" for letter in word)
    return word if plain else "'" + word.replace("'", "'\\''") + "'"


def machines(kept: Kept) -> list[str]:
    """A line a machine: processor, cores, versions, and how many cells it made."""
    seen = Counter()
    for cell in kept.done:
        machine = kept.records.get(cell.name, {}).get("machine")
        if machine:
            versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
            seen[f"{machine['processor']}, {machine['cores']} cores, {versions}"] += 1
    return [f"{line}: {count} cells" for line, count in seen.items()]


# As Markdown


def markdown(grid: Grid, kept: Kept) -> str:
    lines = [f"# Ablation {grid.ablation.name}", "", *opening(grid, kept)]
    lines += ["", *(f"**{text}**\n" for text in warnings(grid, kept))]
    for suite in grid.ablation.suites:
        own = [*tables.of_suite(kept, suite.label), *tables.conditions(kept, suite.label)]
        if not own:
            continue
        lines += [f"## {suite.label}", ""]
        for table in own:
            lines += titled(table)
        lines += [foot(kept, suite.label), ""]
    lines += [*chosen_on_dev(grid, kept), ""]
    lines += ["## Cost", "", rendering.to_markdown(tables.cost(kept)), ""]
    failures = kept.store.failures()
    if failures:
        rows = [[name, note] for name, note in failures.items()]
        table = Table("", ["cell", "last line"], rows)
        lines += ["## Failures", "", rendering.to_markdown(table), ""]
    lines += ["## How it was made", "", f"Code {code_digest()}.", *machines(kept), ""]
    own = commands(grid, kept)
    if own:
        lines += ["```", *own, "```", ""]
    return "\n".join(lines)


def titled(table: Table) -> list[str]:
    title = [f"{table.title}.", ""] if table.title else []
    return [*title, rendering.to_markdown(table), ""]


# As a page


def fill(page: Page, grid: Grid, kept: Kept) -> None:
    page.add(f"<h1>Ablation {escape(grid.ablation.name)}</h1>")
    page.add(paragraph(" ".join(opening(grid, kept)), " class=lead"))
    page.add(*(paragraph(text, WARNING) for text in warnings(grid, kept)))
    for suite in grid.ablation.suites:
        own = [*tables.of_suite(kept, suite.label), *tables.conditions(kept, suite.label)]
        if not own:
            continue
        page.add(f"<h2>{escape(suite.label)}</h2>")
        page.add(*map(of_table, own))
        page.add(small(foot(kept, suite.label)))
        add_figures(page, grid, kept, suite.label)
    page.add(*map(paragraph, chosen_on_dev(grid, kept)))
    page.add(of_table(tables.cost(kept)))
    failures = kept.store.failures()
    if failures:
        rows = [[name, note] for name, note in failures.items()]
        page.add(of_table(Table("Failures", ["cell", "last line"], rows)))
    page.add("<h2>How it was made</h2>", paragraph(f"Code {code_digest()}."))
    page.add(*map(paragraph, machines(kept)))
    text = "\n".join(commands(grid, kept))
    page.add(details("Commands", f"<pre>{escape(text)}</pre>"))


def add_figures(page: Page, grid: Grid, kept: Kept, label: str) -> None:
    """The headline of every arm; the front of metric against KL; sweeps of one axis."""
    arms, control = kept.results(label), kept.control(label)
    if not arms or control is None:
        return
    headline = tables.headline_of(control, tables.shared_metrics(control, arms))
    points = figures.points(grid, arms, headline)
    title = control.metrics[headline].title
    base = control.systems[control.control][headline]
    page.picture(
        f"{label}-arms", f"{title}: every arm, every seed a dot.", figures.arms, points, title, base
    )
    if any(point.kl.value is not None for point in points):
        page.picture(
            f"{label}-front",
            f"{title} against the KL that it cost; cells of one sweep are joined.",
            figures.front,
            points,
            title,
            base,
        )
