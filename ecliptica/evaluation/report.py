"""python -m ecliptica.evaluation.report DIR: one self-contained report.html, and its plots as PNG beside it.

DIR is a training run's directory or any directory with results of suites. Shown is what is there: results.json in DIR and in the
directories below it, metrics.jsonl, config.toml, final/ecliptica.json, before.jsonl and after.jsonl (generations of the same contexts).
"""

import base64
import difflib
import html
import io
import json
import re
import sys
from pathlib import Path

from ecliptica.evaluation import plots
from ecliptica.fields import text
from ecliptica.files import read_json, read_records
from model import cli
from model.errors import InputError

NEEDED = ("suite", "reportable", "units", "unit", "metrics", "systems", "bootstrap", "config")
STYLE = """
body{font:16px/1.6 Georgia,"Noto Serif",serif;color:#22262b;max-width:66rem;margin:2.5rem auto 5rem;padding:0 1.4rem}
h1,h2,h3{font-family:Helvetica,Arial,"Noto Sans",sans-serif;line-height:1.2}h1{margin-bottom:.2rem;font-size:2.1rem}
h2{margin-top:3rem;border-bottom:1px solid #d8dce2;padding-bottom:.3rem}h3{margin:2rem 0 .3rem;font-size:1.05rem}
p{max-width:46rem}p.lead{color:#5a616b;margin-top:0}p.headline{font-size:1.2rem;line-height:1.5;border-left:4px solid #d9722e;padding-left:1rem;margin:1.4rem 0}
.scroll{overflow-x:auto}table{border-collapse:collapse;font:14px/1.45 Helvetica,Arial,"Noto Sans",sans-serif;width:100%;margin:.6rem 0}
th,td{border-bottom:1px solid #e3e6ea;padding:.45rem .6rem;text-align:left;vertical-align:top;overflow-wrap:break-word}th{background:#f5f6f8;font-weight:600}
td.n{white-space:nowrap;font-variant-numeric:tabular-nums}td small,p small,small{color:#5a616b}
img{max-width:100%;margin:.6rem 0;display:block}img.small{max-width:36rem}.scroll img.large{max-width:none}
.warn{background:#fff1e0;border-left:4px solid #c2410c;padding:.6rem 1rem;font-family:Helvetica,Arial,sans-serif;font-weight:600;max-width:none}
table.said{table-layout:fixed}table.said th:first-child{width:20%}table.said td{line-height:1.6}table.said td:first-child{color:#5a616b;font-style:italic}
mark{background:#fbead9;color:inherit;border-radius:2px}
pre{background:#f5f6f8;padding:.8rem;overflow-x:auto;font-size:12px;line-height:1.45}summary{cursor:pointer;font-family:Helvetica,Arial,sans-serif;margin:.5rem 0}
"""


def escape(value):
    return html.escape(str(value))


def find_results(directory):
    """{name: results of a suite}, `switch` first. Raises InputError for a results.json that no suite of today wrote."""
    found = {}
    for path in [directory / "results.json", *sorted(directory.glob("*/results.json"))]:
        if path.exists():
            results = read_json(path)
            missing = (
                [key for key in NEEDED if key not in results]
                if isinstance(results, dict)
                else list(NEEDED)
            )
            if missing:
                raise InputError(
                    f"{path}: no {missing[0]!r} in it; expected what eval.py writes: run the suite again (its samples.jsonl is used where it fits)"
                )
            found[results["suite"] if path.parent == directory else path.parent.name] = results
    return dict(sorted(found.items(), key=lambda item: item[1]["suite"] != "switch"))


def number(cell, signed=False):
    """'0.512 [0.401, 0.630]', 'n/a' where there is none."""
    if cell is None or cell["value"] is None:
        return "n/a"
    form = "+.3f" if signed else ".3f"
    return f"{cell['value']:{form}} <small>[{cell['low']:{form}}, {cell['high']:{form}}]</small>"


def table(head, rows, kind=""):
    """rows: HTML cells. Whatever begins with a digit, a sign or n/a is set as a number."""
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=n' if re.match(r'[-+]?[0-9]|n/a', cell) else ''}>{cell}</td>"
            for cell in row
        )
        + "</tr>"
        for row in rows
    )
    return f"<div class=scroll><table{kind}><tr>{''.join(f'<th>{title}</th>' for title in head)}</tr>{body}</table></div>"


def results_table(results):
    """Values of every system; with more than two systems the differences have a table of their own."""
    systems, differences = results["systems"], results.get("difference", {})
    control, together = next(iter(systems)), len(systems) <= 2
    columns = [escape(f"{label} − {control}") for label in differences]

    def changes(name):
        return [
            f"{number(by_name[name], signed=True)}<br><small>p = {by_name[name]['p_holm']:.2g}</small>"
            for by_name in differences.values()
        ]

    def level(chance):
        return "–" if chance is None else f"{chance:.3g}"

    values = [
        [
            escape(metric["title"]),
            level(metric["chance"]),
            *(number(by_name[name]) for by_name in systems.values()),
            *(changes(name) if together else []),
        ]
        for name, metric in results["metrics"].items()
    ]
    page = table(
        ["metric", "chance", *map(escape, systems), *(columns if together else [])], values
    )
    if differences and not together:
        page += f"<h3>Differences to {escape(control)}</h3>" + table(
            ["metric", *columns],
            [[escape(m["title"]), *changes(name)] for name, m in results["metrics"].items()],
        )
    return page + (
        f"<p><small>{results['units']} {escape(results['unit'])}; 95 % intervals, {results['bootstrap']['draws']} bootstrap draws, {escape(results['bootstrap']['resampled'])} "
        f"resampled, the same draws for every column{'; p: paired sign-flip test, Holm over this table' if differences else ''}.</small></p>"
    )


def markdown(lines):
    """The notes of a suite, which are paragraphs and tables of Markdown, as HTML."""
    page, rows = "", []
    for line in [*"\n".join(lines).splitlines(), ""]:
        if line.startswith("|"):
            rows.append(
                [
                    re.sub(r"(\[[^\]]*\])", r"<small>\1</small>", escape(cell.strip()))
                    for cell in line.strip().strip("|").split("|")
                ]
            )
            continue
        if rows:
            page, rows = (
                page
                + table(rows[0], [row for row in rows[1:] if not set("".join(row)) <= set("-: ")]),
                [],
            )
        page += f"<p>{escape(line)}</p>" if line.strip() else ""
    return page


def headline(results):
    """What was found, in sentences: the first two metrics of the suite, every trained system against the control."""
    systems, (control, *others), said = results["systems"], results["systems"], []
    for name in list(results["metrics"])[:2]:
        metric, before = results["metrics"][name], systems[control][name]
        chance = "" if metric["chance"] is None else f"; chance is {metric['chance']:.2g}"
        if before["value"] is None:
            continue
        if not others:
            said.append(
                f"<b>{escape(metric['title'].capitalize())}</b> of {escape(control)}: {number(before)}{chance}."
            )
        for label in others:
            after, change = systems[label][name], results["difference"][label][name]
            if after["value"] is None or change["value"] is None:
                continue
            verb = (
                "rises"
                if change["low"] > 0
                else "falls"
                if change["high"] < 0
                else "does not measurably change"
            )
            said.append(
                f"<b>{escape(metric['title'].capitalize())}</b> {verb} from {before['value']:.2f} ({escape(control)}) to <b>{after['value']:.2f}</b> ({escape(label)}): "
                f"{number(change, signed=True)}, p = {change['p_holm']:.2g}{chance}."
            )
    return f"<p class=headline>{'<br>'.join(said)}</p>" if said else ""


class Page:
    """HTML as it grows, and the pictures on disk beside it."""

    def __init__(self, directory):
        self.directory, self.parts = directory, []

    def add(self, *parts):
        self.parts += parts

    def picture(self, name, draw, caption, *data):
        with plots.style():
            figure, png = draw(*data), io.BytesIO()
            figure.savefig(png, format="png", dpi=130, bbox_inches="tight", pad_inches=0.08)
        (self.directory / f"{name}.png").write_bytes(png.getvalue())
        kind = (
            " class=large"
            if figure.get_figwidth() > 12.5
            else " class=small"
            if figure.get_figwidth() < 8
            else ""
        )
        self.add(
            f'<div class=scroll><img{kind} alt="{escape(caption)}" src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"></div>',
            f"<p><small>{escape(caption)}</small></p>",
        )


def add_suite(page, name, results, lead):
    """One suite: its table, its notes, and the plots that its results allow."""
    page.add(
        "<p class=warn>NOT REPORTABLE: made with --limit.</p>"
        if not results["reportable"] and not lead
        else "",
        results_table(results),
    )
    if lead and plots.shares(results):
        page.picture(
            f"{name}-bars",
            plots.bars,
            "Every metric that is a share, with 95 % intervals. Dashed: chance.",
            results,
        )
    if lead and len(results.get("difference", {})) > 1:
        page.picture(
            f"{name}-differences",
            plots.differences,
            "Paired differences to the control, 95 % intervals.",
            results,
        )
    page.add(markdown(results.get("notes", [])))
    if results.get("by_instruction"):
        page.add("<h3>Each instruction by itself</h3>")
        page.picture(
            f"{name}-instructions",
            plots.instruction_bars,
            "By instruction, 95 % intervals. Dashed: chance.",
            results,
        )
    if results.get("interaction") and results.get("instructions"):
        page.add("<h3>Instruction against response</h3>")
        page.picture(
            f"{name}-interaction",
            plots.heatmaps,
            "Mean log-prob of the response written for one instruction (column) under another (row), row and column "
            "means taken out. Red on the outlined diagonal: each instruction calls up its own response. A model that ignores the instruction is white.",
            results,
        )


def words(said):
    """Words, the spaces between them, and single characters of scripts that write no spaces."""
    return re.findall(r"[\u3040-\u30ff\u3400-\u9fff]|\s+|[^\s\u3040-\u30ff\u3400-\u9fff]+", said)


def highlighted(said, plain):
    """HTML of `said`, marked where its words are not those of `plain`; and the share of its words that are."""
    old, new, page, kept = words(plain), words(said), "", 0
    for kind, _, _, start, end in difflib.SequenceMatcher(
        None, old, new, autojunk=False
    ).get_opcodes():
        part = escape("".join(new[start:end]))
        kept += len([w for w in new[start:end] if w.strip()]) if kind == "equal" else 0
        page += part if kind == "equal" or not part.strip() else f"<mark>{part}</mark>"
    total = len([w for w in new if w.strip()])
    return page, kept / total if total else 1.0


def add_generations(page, columns):
    """columns: {title: generations}. A table a prompt, a row an instruction; marked is what the instruction changed."""
    prompts = list(dict.fromkeys(row["prompt"] for rows in columns.values() for row in rows))
    for prompt in prompts:
        given = {
            title: {row.get("instruction"): row["text"] for row in rows if row["prompt"] == prompt}
            for title, rows in columns.items()
        }
        instructions = list(
            dict.fromkeys(i for by_instruction in given.values() for i in by_instruction)
        )
        plain = None if None in instructions else instructions[0]
        rows = []
        for instruction in instructions:
            row = [escape(instruction or "(no instruction)")]
            for n, by_instruction in enumerate(given.values()):
                if instruction not in by_instruction:
                    row.append("–")
                elif instruction == plain or plain not in by_instruction:
                    row.append(f"<span>{escape(by_instruction[instruction])}</span>")
                else:
                    shown, kept = highlighted(by_instruction[instruction], by_instruction[plain])
                    row.append(
                        f"<span>{shown}</span><br><small>{100 * (1 - kept):.0f} % other words</small>"
                    )
            rows.append(row)
        page.add(
            f"<p><b>Prompt:</b> {escape(prompt)}</p>",
            table(["instruction", *map(escape, given)], rows, " class=said"),
            f"<p><small>Marked: words that differ from the same column's answer {'without an instruction' if plain is None else f'under the first instruction, “{escape(plain)}”'}. "
            "As generated, not selected.</small></p>",
        )


def generations(path):
    return read_records(
        path,
        lambda record, where: (
            record
            | {
                "prompt": text(record, "prompt", where),
                "instruction": text(record, "instruction", where, required=False),
                "text": str(record.get("text", "")),
            }
        ),
    )


def stamps(suites, made):
    """What a reader has to know before any number."""
    limited = [name for name, results in suites.items() if not results["reportable"]]
    ablated = made.get("ablation") or any(
        results.get("made", {}).get("ablation") for results in suites.values()
    )
    return (
        [
            "<p class=warn>ABLATION: the KL of this run is lifted or is not a KL. Its numbers are not the method's.</p>"
        ]
        if ablated
        else []
    ) + (
        [f"<p class=warn>NOT REPORTABLE: {escape(', '.join(limited))} made with --limit.</p>"]
        if limited
        else []
    )


def build(directory):
    """Write report.html and the plots into `directory`; return the HTML's path. Raises InputError if nothing is there to report."""
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(
            f"{directory}: no such directory; expected a run's directory or one with results.json of a suite"
        )
    suites = find_results(directory)
    there = {
        name: directory / name
        for name in (
            "metrics.jsonl",
            "config.toml",
            "final/ecliptica.json",
            "before.jsonl",
            "after.jsonl",
        )
        if (directory / name).exists()
    }
    if not suites and not there.keys() - {"config.toml", "final/ecliptica.json"}:
        raise InputError(
            f"{directory}: nothing to report; expected results.json (of eval.py SUITE --out), metrics.jsonl (of train.py) or generations in before.jsonl, after.jsonl"
        )
    made = (
        read_json(there["final/ecliptica.json"])
        if "final/ecliptica.json" in there
        else next((r["made"] for r in suites.values() if r.get("made")), {})
    )
    page, lead = Page(directory), next(iter(suites.values()), None)
    facts = (
        [
            f"{made['base_model']}, objective {made['objective']}, {made['steps']} steps, seed {made['seed']}"
        ]
        if made
        else []
    )
    if lead:
        instructions = (
            f" × {len(lead['instructions'])} instructions" if "instructions" in lead else ""
        )
        facts.append(
            f"{lead['units']} {lead['config'].get('split', '')} {lead['unit']}{instructions}"
        )
    page.add(
        "<h1>Does the instruction switch the behaviour?</h1>",
        f"<p class=lead>{escape('; '.join(facts))}</p>",
        *stamps(suites, made),
    )
    if lead:
        page.add(headline(lead))
    for n, (name, results) in enumerate(suites.items()):
        title = (
            "Result"
            if n == 0 and results["suite"] == "switch"
            else name.replace("-", " ").replace("_", " ").capitalize()
        )
        page.add(f"<h2>{escape(title)}</h2>")
        add_suite(page, name, results, n == 0)
        spokes = plots.radar_axes(list(suites.values())) if n == 0 else []
        if len(spokes) >= 3:
            page.add("<h2>All at a glance</h2>")
            page.picture(
                "radar",
                plots.radar,
                "Each value between chance (dashed ring) and perfect (rim): (value − chance) / (1 − chance). "
                "Values far below chance are drawn at the centre.",
                spokes,
            )
    columns = {
        title: generations(there[name])
        for title, name in (("prompting only", "before.jsonl"), ("trained", "after.jsonl"))
        if name in there
    }
    if columns:
        page.add("<h2>The same prompt under several instructions</h2>")
        add_generations(page, columns)
    if "metrics.jsonl" in there:
        page.add("<h2>Training</h2>")
        page.picture(
            "training",
            plots.training_curves,
            "One point an optimizer step.",
            read_records(there["metrics.jsonl"], lambda record, where: record),
        )
    add_making(page, there, suites, made)
    out = directory / "report.html"
    out.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>Ecliptica report</title>"
        f"<style>{STYLE}</style>{''.join(page.parts)}</html>",
        encoding="utf-8",
    )
    return out


def add_making(page, there, suites, made):
    """How it was made: the wording that was tested, the recipe, the options and versions of every suite."""
    page.add("<h2>How it was made</h2>")
    for name, results in suites.items():
        if "wording" in results:
            page.add(
                f"<details{' open' if len(results['wording']) <= 12 else ''}><summary>Instructions as worded in {escape(name)}</summary>",
                table(
                    ["instruction", "wording"],
                    [
                        [f"<span>{escape(key)}</span>", f"<span>{escape(said)}</span>"]
                        for key, said in results["wording"].items()
                    ],
                ),
                "</details>",
            )
        page.add(
            f"<details><summary>Options and versions of {escape(name)}</summary><pre>"
            f"{escape(json.dumps({'options': results['config'], 'versions': results.get('versions', {})}, indent=2, ensure_ascii=False))}</pre></details>"
        )
    if "config.toml" in there:
        page.add(
            f"<details><summary>Training recipe</summary><pre>{escape(there['config.toml'].read_text(encoding='utf-8'))}</pre></details>"
        )
    if made:
        page.add(
            f"<details><summary>The trained model's record</summary><pre>{escape(json.dumps(made, indent=2, ensure_ascii=False))}</pre></details>"
        )


def main(argv=None):
    parser = cli.Parser(prog="python -m ecliptica.evaluation.report", description=__doc__)
    parser.add_argument(
        "directory",
        metavar="DIR",
        help="a run's directory, or one with results.json of suites in it or in directories below it",
    )
    print(f"{build(parser.parse_args(argv).directory)}: written")


if __name__ == "__main__":
    sys.exit(cli.run(main))
