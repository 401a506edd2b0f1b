"""The page: what was found in sentences, every suite with its tables and plots, generations side
by side, training curves, and how it was made."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ecliptica.evaluation.report import generations, tables
from ecliptica.evaluation.report.figures import bars as bar_figures
from ecliptica.evaluation.report.figures import curves, heatmaps, radar
from ecliptica.evaluation.report.html import (
    Page,
    details,
    escape,
    grid,
    interval,
    of_table,
    paragraph,
    small,
)
from ecliptica.evaluation.results import Results
from ecliptica.files import check_writable, journal, read_json, write_text
from model.errors import InputError

TITLE = "Does the instruction switch the behaviour?"
# What may lie in a run's directory, beside results of suites.
LOG, RECIPE, RECORD = "metrics.jsonl", "config.toml", "final/ecliptica.json"
GENERATIONS = {"prompting only": "before.jsonl", "trained": "after.jsonl"}
SHORT_LIST = 12  # instructions up to which their wording is shown at once

Suites = dict[str, Results]


def build(directory: str | Path) -> Path:
    """Write report.html and the plots into `directory`; the HTML's path.

    Raises InputError if nothing is there to report.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(
            f"{directory}: no such directory; expected a run's directory or one with results.json "
            "of a suite"
        )
    suites = read_results(directory)
    files = (LOG, RECIPE, RECORD, *GENERATIONS.values())
    there = {name: directory / name for name in files if (directory / name).exists()}
    if not suites and not there.keys() - {RECIPE, RECORD}:
        raise InputError(
            f"{directory}: nothing to report; expected results.json (of eval.py SUITE --out), "
            "metrics.jsonl (of train.py) or generations in before.jsonl, after.jsonl"
        )
    out = directory / "report.html"
    check_writable(out, "the report's")
    made = record_of(there, suites)

    page = Page(directory)
    add_opening(page, suites, made)
    add_suites(page, suites)
    add_generations(page, there)
    add_training(page, there)
    add_making(page, there, suites, made)
    write_text(out, page.whole("Ecliptica report"))
    return out


# What is there


def read_results(directory: Path) -> Suites:
    """{name: results}, those of `switch` first."""
    suites = {}
    for path in (directory / "results.json", *sorted(directory.glob("*/results.json"))):
        if not path.exists():
            continue
        results = Results.read(path)
        name = results.suite if path.parent == directory else path.parent.name
        suites[name] = results
    return dict(sorted(suites.items(), key=lambda item: item[1].suite != "switch"))


def record_of(there: dict[str, Path], suites: Suites) -> dict[str, Any]:
    """How the trained model was made, as far as known."""
    if RECORD in there:
        return read_json(there[RECORD])
    return next((results.made for results in suites.values() if results.made), {})


# The opening


def add_opening(page: Page, suites: Suites, made: dict[str, Any]) -> None:
    facts = []
    known = ("base_model", "objective", "steps", "seed")
    if all(name in made for name in known):
        base_model, objective, steps, seed = (made[name] for name in known)
        facts.append(f"{base_model}, objective {objective}, {steps} steps, seed {seed}")
    lead = next(iter(suites.values()), None)
    if lead:
        instructions = lead.details.get("instructions")
        crossed = f" × {len(instructions)} instructions" if instructions else ""
        split = lead.config.get("split", "")
        facts.append(f"{lead.units} {split} {lead.unit}{crossed}")
    page.add(f"<h1>{TITLE}</h1>", paragraph("; ".join(facts), " class=lead"))
    page.add(*stamps(suites, made))
    if lead:
        page.add(headline(lead))


def stamps(suites: Suites, made: dict[str, Any]) -> Iterable[str]:
    """What a reader has to know before any number."""
    if made.get("ablation") or any(results.made.get("ablation") for results in suites.values()):
        yield warning(
            "ABLATION: the KL of this run is lifted or is not a KL. Its numbers are not the "
            "method's."
        )
    limited = [name for name, results in suites.items() if not results.reportable]
    if limited:
        yield warning(f"NOT REPORTABLE: {', '.join(limited)} made with --limit.")


def warning(text: str) -> str:
    return paragraph(text, " class=warn")


def headline(results: Results) -> str:
    """What was found, in sentences: the first two metrics of the suite, every trained system
    against the control."""
    sentences = []
    for name in list(results.metrics)[:2]:
        sentences += of_metric(results, name)
    return f"<p class=headline>{'<br>'.join(sentences)}</p>" if sentences else ""


def of_metric(results: Results, name: str) -> Iterable[str]:
    """A sentence for every trained system; for a control alone one with its value."""
    metric = results.metrics[name]
    title = f"<b>{escape(metric.title.capitalize())}</b>"
    chance = "" if metric.chance is None else f"; chance is {metric.chance:.2g}"
    control, *others = results.systems
    before = results.systems[control][name]
    if before.value is None:
        return
    if not others:
        yield f"{title} of {escape(control)}: {interval(before)}{chance}."
    for label in others:
        after = results.systems[label][name]
        change = results.difference[label][name]
        if after.value is None or change.value is None:
            continue
        yield (
            f"{title} {verb(change)} from {before.value:.2f} ({escape(control)}) to "
            f"<b>{after.value:.2f}</b> ({escape(label)}): {interval(change, signed=True)}, "
            f"p = {change.p_holm:.2g}{chance}."
        )


def verb(change) -> str:
    """What the interval of a difference says."""
    if change.low > 0:
        return "rises"
    if change.high < 0:
        return "falls"
    return "does not measurably change"


# The suites


def add_suites(page: Page, suites: Suites) -> None:
    for number, (name, results) in enumerate(suites.items()):
        lead = number == 0
        title = name.replace("-", " ").replace("_", " ").capitalize()
        if lead and results.suite == "switch":
            title = "Result"
        page.add(f"<h2>{escape(title)}</h2>")
        add_suite(page, name, results, lead)
        if lead:
            add_radar(page, suites)


def add_suite(page: Page, name: str, results: Results, lead: bool) -> None:
    """One suite: its tables and notes, and the plots that its results allow."""
    if not results.reportable and not lead:
        page.add(warning(tables.NOT_REPORTABLE))
    add_tables(page, results)
    if lead and bar_figures.shares(results):
        page.picture(
            f"{name}-bars",
            "Every metric that is a share, with 95 % intervals. Dashed: chance.",
            bar_figures.bars,
            results,
        )
    if lead and len(results.difference) > 1:
        page.picture(
            f"{name}-differences",
            "Paired differences to the control, 95 % intervals.",
            bar_figures.differences,
            results,
        )
    page.add(*(of_table(table) for table in tables.second(results)))
    page.add(*(paragraph(note) for note in results.notes))
    if results.by_instruction:
        page.add("<h3>Each instruction by itself</h3>")
        page.picture(
            f"{name}-instructions",
            "By instruction, 95 % intervals. Dashed: chance.",
            bar_figures.instruction_bars,
            results,
        )
    if results.details.get("interaction") and results.details.get("instructions"):
        page.add("<h3>Instruction against response</h3>")
        page.picture(
            f"{name}-interaction",
            "Mean log-prob of the response written for one instruction (column) under another "
            "(row), row and column means taken out. Red on the outlined diagonal: each "
            "instruction calls up its own response. A model that ignores the instruction is "
            "white.",
            heatmaps.heatmaps,
            results,
        )


def add_tables(page: Page, results: Results) -> None:
    """Values of every system; with more than two systems the differences are a table of their
    own."""
    together = len(results.systems) <= 2
    page.add(of_table(tables.values(results, with_differences=together)))
    if results.difference and not together:
        page.add(of_table(tables.differences(results)))
    page.add(small(tables.foot(results)))


def add_radar(page: Page, suites: Suites) -> None:
    spokes = radar.spokes(list(suites.values()))
    if len(spokes) < 3:
        return
    page.add("<h2>All at a glance</h2>")
    page.picture(
        "radar",
        "Each value between chance (dashed ring) and perfect (rim): (value − chance) / "
        "(1 − chance). Values far below chance are drawn at the centre.",
        radar.radar,
        spokes,
    )


# The run


def add_generations(page: Page, there: dict[str, Path]) -> None:
    columns = {
        title: generations.read(there[name]) for title, name in GENERATIONS.items() if name in there
    }
    if columns:
        page.add("<h2>The same prompt under several instructions</h2>")
        generations.add(page, columns)


def add_training(page: Page, there: dict[str, Path]) -> None:
    """Curves of whatever the log holds; a last line that a kill cut is left out."""
    steps = journal(there[LOG]) if LOG in there else []
    if steps:
        page.add("<h2>Training</h2>")
        page.picture("training", "One point an optimizer step.", curves.training_curves, steps)


def add_making(page: Page, there: dict[str, Path], suites: Suites, made: dict[str, Any]) -> None:
    """How it was made: the wording that was tested, the recipe, the options and versions of every
    suite."""
    page.add("<h2>How it was made</h2>")
    for name, results in suites.items():
        wording = results.details.get("wording")
        if wording:
            rows = [[_span(id), _span(text)] for id, text in wording.items()]
            page.add(
                details(
                    f"Instructions as worded in {name}",
                    grid(["instruction", "wording"], rows),
                    opened=len(wording) <= SHORT_LIST,
                )
            )
        plain = {"options": results.config, "versions": results.versions}
        page.add(details(f"Options and versions of {name}", preformatted(plain)))
    if RECIPE in there:
        recipe = there[RECIPE].read_text(encoding="utf-8", errors="replace")
        page.add(details("Training recipe", f"<pre>{escape(recipe)}</pre>"))
    if made:
        page.add(details("The trained model's record", preformatted(made)))


def preformatted(plain: Any) -> str:
    return f"<pre>{escape(json.dumps(plain, indent=2, ensure_ascii=False))}</pre>"


def _span(text: str) -> str:
    return f"<span>{escape(text)}</span>"
