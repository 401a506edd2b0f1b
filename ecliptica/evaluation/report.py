"""python -m ecliptica.evaluation.report RUN_DIR: one self-contained report.html from what a run and its evaluation wrote.

Reads metrics.jsonl, config.toml, switch/results.json and, where they are, before.jsonl and after.jsonl (generations).
"""

import base64
import html
import io
import json
import sys
from pathlib import Path

from ecliptica.data.jsonl import records
from ecliptica.evaluation.suites.switch import METRICS
from model import cli
from model.config import read_json
from model.errors import InputError

BLUE, ORANGE, GREY = "#2f6db3", "#e07b39", "#8a8f98"
COLOURS = {"prompting-only": GREY, "trained": ORANGE}
CURVES = (
    ("loss", ("loss",), "loss per preference"), ("margin", ("rewards/margins",), "beta (s+ - s-), mean"),
    ("accuracy and saturation", ("rewards/accuracies", "saturated"), "share of preferences"), ("exact KL to the reference", ("kl",), "nats per preference"),
    ("change of log-prob since step 0", ("logps/chosen_change", "logps/rejected_change"), "nats per response"), ("gradient norm", ("grad_norm",), "before clipping"),
)
STYLE = """
body{font:16px/1.55 Georgia,serif;color:#22262b;max-width:62rem;margin:2.5rem auto;padding:0 1.2rem}
h1,h2,h3{font-family:Helvetica,Arial,sans-serif;line-height:1.2}h1{margin-bottom:.2rem}h2{margin-top:2.6rem;border-bottom:1px solid #d8dce2;padding-bottom:.3rem}
p.lead{color:#555c66;margin-top:0}table{border-collapse:collapse;font:14px/1.4 Helvetica,Arial,sans-serif;width:100%}
th,td{border-bottom:1px solid #e3e6ea;padding:.45rem .6rem;text-align:left;vertical-align:top}th{background:#f5f6f8}
td.n{white-space:nowrap;font-variant-numeric:tabular-nums}img{max-width:100%;margin:.6rem 0}.warn{background:#fff1e0;border-left:4px solid #e07b39;padding:.6rem 1rem}
small{color:#6b727c}td.said{width:39%}pre{background:#f5f6f8;padding:.8rem;overflow-x:auto;font-size:12px}
"""


def training_curves(rows):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.6), layout="constrained")
    for axes, (title, names, unit) in zip(figure.subplots(2, 3).flat, CURVES):
        for name, colour in zip(names, (BLUE, ORANGE)):
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            axes.plot(*zip(*points) if points else ([], []), color=colour, linewidth=1.6, label=name)
        axes.set_title(title, fontsize=11, loc="left")
        axes.set_ylabel(unit, fontsize=9)
        axes.set_xlabel("optimizer step", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        if len(names) > 1:
            axes.legend(fontsize=8, frameon=False)
    return figure


def heatmaps(results):
    """Interaction of instruction (row) and response (column): log-prob with row and column means taken out. A bright diagonal is switching."""
    from matplotlib.figure import Figure

    labels, names = list(results["interaction"]), results["instructions"]
    figure = Figure(figsize=(5.9 * len(labels), 5.4), layout="constrained")
    limit = max(abs(v) for label in labels for row in results["interaction"][label] for v in row) or 1.0
    for axes, label in zip(figure.subplots(1, len(labels), squeeze=False)[0], labels):
        image = axes.imshow(results["interaction"][label], cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=9)
        axes.set_yticks(range(len(names)), names, fontsize=9)
        axes.set_xlabel("response written for")
        axes.set_ylabel("instruction given")
        axes.set_title(label, fontsize=12)
    figure.colorbar(image, ax=figure.axes, label="log-prob, instruction and response means removed (nats)", shrink=0.8)
    return figure


def paired_bars(results):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes, systems = figure.subplots(), results["systems"]
    width = 0.8 / len(systems)
    for n, (label, values) in enumerate(systems.items()):
        cells = [values[name] for name in METRICS]
        at = [i + (n - (len(systems) - 1) / 2) * width for i in range(len(METRICS))]
        heights = [c["value"] for c in cells]
        errors = [[c["value"] - c["low"] for c in cells], [c["high"] - c["value"] for c in cells]]
        axes.bar(at, heights, width * 0.92, color=COLOURS[label], label=label, yerr=errors, capsize=4, error_kw={"linewidth": 1.2})
        for x, c in zip(at, cells):
            axes.text(x, c["high"] + 0.015, f"{c['value']:.2f}", ha="center", fontsize=9)
    for i, name in enumerate(METRICS):
        axes.hlines(results["chance"][name], i - 0.45, i + 0.45, color="black", linestyle=":", linewidth=1.2, label="chance" if i == 0 else None)
    axes.set_xticks(range(len(METRICS)), METRICS.values())
    axes.set_ylim(0, 1.12)
    axes.set_ylabel("share, mean over prompts")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.13))
    return figure


def picture(figure, alt):
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130)
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">', data.getvalue()


def results_table(results):
    labels = list(results["systems"])
    head = "".join(f"<th>{html.escape(title)}</th>" for title in ("metric", "chance", *labels, *(["paired difference"] if "difference" in results else [])))
    body = ""
    for name, title in METRICS.items():
        cells = [results["systems"][label][name] for label in labels] + ([results["difference"][name]] if "difference" in results else [])
        shown = "".join(f"<td class=n>{c['value']:.3f} <small>[{c['low']:.3f}, {c['high']:.3f}]</small></td>" for c in cells)
        body += f"<tr><td>{title}</td><td class=n>{results['chance'][name]:.2f}</td>{shown}</tr>"
    return f"<table><tr>{head}</tr>{body}</table>"


def side_by_side(before, after):
    rows = "".join(
        f"<tr><td>{html.escape(b['instruction'])}</td><td class=said>{html.escape(b['text'])}</td><td class=said>{html.escape(a['text'])}</td></tr>"
        for b, a in zip(before, after))
    return (f"<p><b>Prompt:</b> {html.escape(before[0]['prompt'])}</p><table><tr><th>instruction</th><th>before (prompting only)</th>"
            f"<th>after CITA</th></tr>{rows}</table>")


def build(run_dir):
    """Write report.html and the PNG plots into `run_dir`; return the HTML's path."""
    run_dir = Path(run_dir)
    results, metrics = read_json(run_dir / "switch" / "results.json"), records(run_dir / "metrics.jsonl", lambda record, where: record)
    made = read_json(run_dir / "final" / "ecliptica.json")
    parts = [f"<h1>Does the instruction switch the behaviour?</h1><p class=lead>{html.escape(made['base_model'])}, objective "
             f"{html.escape(made['objective'])}, {made['steps']} steps; {results['prompts']} {html.escape(results['config']['split'])} prompts x "
             f"{len(results['instructions'])} instructions, prompts and wordings never trained on.</p>"]
    if made["ablation"]:
        parts.append("<p class=warn>ABLATION: the KL of this run is lifted or is not a KL.</p>")
    if not results["reportable"]:
        parts.append("<p class=warn>NOT REPORTABLE: evaluated with --limit.</p>")
    parts.append(f"<h2>Result</h2>{results_table(results)}<p><small>95 % intervals, {results['bootstrap']['draws']} bootstrap draws, prompts resampled, "
                 "the same draws for every column. Prompting only: the same base model under the same instructions, untrained.</small></p>")
    if "kl" in results:
        parts.append(f"<p>Exact KL[trained || base] on the reference responses: <b>{results['kl']['per_response']:.2f} nats a response</b>, "
                     f"{results['kl']['per_token']:.4f} nats a token.</p>")
    plots = {"bars": (paired_bars(results), "metrics with intervals"), "heatmap": (heatmaps(results), "instruction against response"),
             "training": (training_curves(metrics), "training curves")}
    shown = {}
    for name, (figure, alt) in plots.items():
        shown[name], png = picture(figure, alt)
        (run_dir / f"{name}.png").write_bytes(png)
    parts.append(shown["bars"] + "<h2>Instruction against response</h2>" + shown["heatmap"])
    if (run_dir / "before.jsonl").exists() and (run_dir / "after.jsonl").exists():
        before, after = (records(run_dir / f"{name}.jsonl", lambda record, where: record) for name in ("before", "after"))
        parts.append("<h2>The same prompt under several instructions</h2>" + side_by_side(before, after) + "<p><small>Greedy decoding, not selected.</small></p>")
    parts.append("<h2>Training</h2>" + shown["training"])
    parts.append(f"<h2>How it was made</h2><pre>{html.escape((run_dir / 'config.toml').read_text(encoding='utf-8'))}</pre>"
                 f"<pre>{html.escape(json.dumps(made, indent=2))}</pre>")
    out = run_dir / "report.html"
    out.write_text(f"<!doctype html><html lang=en><meta charset=utf-8><title>Ecliptica report</title><style>{STYLE}</style>{''.join(parts)}</html>", encoding="utf-8")
    return out


def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("run_dir", help="a run directory with metrics.jsonl, final/ and switch/results.json")
    args = parser.parse_args(argv)
    try:
        print(f"{build(args.run_dir)}: written")
    except ImportError as error:
        raise InputError(f"the report needs matplotlib ({error}): pip install matplotlib") from error


if __name__ == "__main__":
    sys.exit(cli.run(main))
