"""The HTML that the page is made of: escaped text, tables, pictures."""

import base64
import html
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ecliptica.evaluation.report import tables
from ecliptica.evaluation.report.figures import style
from ecliptica.evaluation.report.tables import Table
from ecliptica.files import naming

STYLE = """
body{font:16px/1.6 Georgia,"Noto Serif",serif;color:#22262b;
  max-width:66rem;margin:2.5rem auto 5rem;padding:0 1.4rem}
h1,h2,h3{font-family:Helvetica,Arial,"Noto Sans",sans-serif;line-height:1.2}
h1{margin-bottom:.2rem;font-size:2.1rem}
h2{margin-top:3rem;border-bottom:1px solid #d8dce2;padding-bottom:.3rem}
h3{margin:2rem 0 .3rem;font-size:1.05rem}
p{max-width:46rem}
p.lead{color:#5a616b;margin-top:0}
p.headline{font-size:1.2rem;line-height:1.5;border-left:4px solid #d9722e;
  padding-left:1rem;margin:1.4rem 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font:14px/1.45 Helvetica,Arial,"Noto Sans",sans-serif;
  width:100%;margin:.6rem 0}
th,td{border-bottom:1px solid #e3e6ea;padding:.45rem .6rem;text-align:left;
  vertical-align:top;overflow-wrap:break-word}
th{background:#f5f6f8;font-weight:600}
td.n{white-space:nowrap;font-variant-numeric:tabular-nums}
td small,p small,small{color:#5a616b}
img{max-width:100%;margin:.6rem 0;display:block}
img.small{max-width:36rem}
.scroll img.large{max-width:none}
.warn{background:#fff1e0;border-left:4px solid #c2410c;padding:.6rem 1rem;
  font-family:Helvetica,Arial,sans-serif;font-weight:600;max-width:none}
table.answers{table-layout:fixed}
table.answers th:first-child{width:20%}
table.answers td{line-height:1.6}
table.answers td:first-child{color:#5a616b;font-style:italic}
mark{background:#fbead9;color:inherit;border-radius:2px}
pre{background:#f5f6f8;padding:.8rem;overflow-x:auto;font-size:12px;line-height:1.45}
summary{cursor:pointer;font-family:Helvetica,Arial,sans-serif;margin:.5rem 0}
"""
WIDE, NARROW = 12.5, 8  # inches of a figure from which, and up to which, it is shown differently


def escape(value: object) -> str:
    return html.escape(str(value))


def paragraph(text: str, kind: str = "") -> str:
    return f"<p{kind}>{escape(text)}</p>"


def small(text: str) -> str:
    return f"<p><small>{escape(text)}</small></p>"


def details(summary: str, content: str, opened: bool = False) -> str:
    """Something that a reader opens."""
    state = " open" if opened else ""
    return f"<details{state}><summary>{escape(summary)}</summary>{content}</details>"


def interval(cell, signed: bool = False) -> str:
    """'0.512 [0.401, 0.630]', 'n/a' where there is none."""
    if cell.value is None:
        return "n/a"
    form = "+.3f" if signed else ".3f"
    return f"{cell.value:{form}} <small>[{cell.low:{form}}, {cell.high:{form}}]</small>"


def cell_html(cell) -> str:
    """One cell of a typed table."""
    if cell is None:
        return "–"
    if isinstance(cell, str | int | float):
        return escape(tables.shown(cell))
    p = getattr(cell, "p_holm", None)
    if p is None:
        return interval(cell)
    return f"{interval(cell, signed=True)}<br><small>p = {p:.2g}</small>"


def of_table(table: Table) -> str:
    """A typed table."""
    rows = [[cell_html(cell) for cell in row] for row in table.rows]
    title = f"<h3>{escape(table.title)}</h3>" if table.title else ""
    return title + grid([escape(text.replace(" - ", " − ")) for text in table.head], rows)


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Rows of HTML cells. Whatever begins with a digit, a sign or n/a is set as a number."""

    def cell(text: str) -> str:
        number = " class=n" if re.match(r"[-+]?[0-9]|n/a", text) else ""
        return f"<td{number}>{text}</td>"

    titles = "".join(f"<th>{title}</th>" for title in head)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<div class=scroll><table{kind}><tr>{titles}</tr>{body}</table></div>"


class Page:
    """HTML as it grows, and the pictures on disk beside it."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.parts: list[str] = []

    def add(self, *parts: str) -> None:
        self.parts += parts

    def picture(self, name: str, caption: str, draw: Callable, *data) -> None:
        """The figure that draw(*data) makes, in the page and as NAME.png."""
        png = io.BytesIO()
        with style():
            figure = draw(*data)
            figure.savefig(png, format="png", dpi=130, bbox_inches="tight", pad_inches=0.08)
        path = self.directory / f"{name}.png"
        with naming(path):
            path.write_bytes(png.getvalue())
        kind = ""
        if figure.get_figwidth() > WIDE:
            kind = " class=large"
        elif figure.get_figwidth() < NARROW:
            kind = " class=small"
        source = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
        self.add(f'<div class=scroll><img{kind} alt="{escape(caption)}" src="{source}"></div>')
        self.add(small(caption))

    def whole(self, title: str) -> str:
        return (
            "<!doctype html><html lang=en><meta charset=utf-8>"
            "<meta name=viewport content='width=device-width'>"
            f"<title>{escape(title)}</title><style>{STYLE}</style>{''.join(self.parts)}</html>"
        )
