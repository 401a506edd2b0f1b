"""The one writer of Markdown tables."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts, a line a row; no line end after the last."""
    lines = [_line(head), _line(["---"] * len(head))]
    return "\n".join([*lines, *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    """A bar inside a cell would start another one; so would a line end."""
    texts = [" ".join(cell.replace("|", "\\|").split("\n")) for cell in cells]
    return f"| {' | '.join(texts)} |"
