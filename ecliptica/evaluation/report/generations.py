"""Generations side by side: one prompt under several instructions, before and after, and which
words the instruction changed."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from ecliptica.evaluation.report.html import Page, escape, grid, small
from ecliptica.fields import text
from ecliptica.files import journal_lines
from model.errors import InputError
from model.files import parse_object

# Words, the spaces between them, and single characters of scripts that write no spaces.
PIECES = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|\s+|[^\s\u3040-\u30ff\u3400-\u9fff]+")
Answers = dict[str | None, str]  # {instruction: text} of one prompt


def read(path: Path) -> list[dict]:
    """The lines of a file of generations; the last one, if a kill cut it, is left out."""
    lines = []
    for number, line in enumerate(journal_lines(path), start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        record = parse_object(line, where, "expected one JSON object a line")
        lines.append(
            {
                "prompt": text(record, "prompt", where),
                "instruction": text(record, "instruction", where, required=False),
                "text": str(record.get("text", "")),
            }
        )
    if not lines:
        raise InputError(f"{path}: no usable line; expected what eval.py generate writes")
    return lines


def add(page: Page, columns: dict[str, Sequence[dict]]) -> None:
    """columns: {title: lines}. A table a prompt, a row an instruction, a column a title."""
    prompts = dict.fromkeys(line["prompt"] for lines in columns.values() for line in lines)
    for prompt in prompts:
        answers = {title: _of_prompt(lines, prompt) for title, lines in columns.items()}
        add_prompt(page, prompt, answers)


def _of_prompt(lines: Sequence[dict], prompt: str) -> Answers:
    return {line["instruction"]: line["text"] for line in lines if line["prompt"] == prompt}


def add_prompt(page: Page, prompt: str, columns: dict[str, Answers]) -> None:
    """What differs from the answer without an instruction, or under the first, is marked."""
    instructions = list(dict.fromkeys(name for answers in columns.values() for name in answers))
    plain = None if None in instructions else instructions[0]
    rows = []
    for instruction in instructions:
        cells = [_cell(answers, instruction, plain) for answers in columns.values()]
        rows.append([escape(instruction or "(no instruction)"), *cells])
    against = "without an instruction"
    if plain is not None:
        against = f"under the first instruction, “{plain}”"
    page.add(
        f"<p><b>Prompt:</b> {escape(prompt)}</p>",
        grid(["instruction", *map(escape, columns)], rows, " class=answers"),
        small(
            f"Marked: words that differ from the same column's answer {against}. As generated, "
            "not selected."
        ),
    )


def _cell(answers: Answers, instruction: str | None, plain: str | None) -> str:
    if instruction not in answers:
        return "–"
    answer = answers[instruction]
    if instruction == plain or plain not in answers:
        return f"<span>{escape(answer)}</span>"
    marked, same = highlighted(answer, answers[plain])
    return f"<span>{marked}</span><br><small>{100 * (1 - same):.0f} % other words</small>"


def highlighted(answer: str, plain: str) -> tuple[str, float]:
    """HTML of `answer`, marked where its words are not those of `plain`; and the share of its
    words that are."""
    old, new = PIECES.findall(plain), PIECES.findall(answer)
    parts, same = [], 0
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for kind, _, _, start, end in matcher.get_opcodes():
        part = escape("".join(new[start:end]))
        if kind == "equal":
            same += _count(new[start:end])
        elif part.strip():
            part = f"<mark>{part}</mark>"
        parts.append(part)
    total = _count(new)
    return "".join(parts), same / total if total else 1.0


def _count(pieces: Sequence[str]) -> int:
    """Of the words, not the spaces."""
    return sum(bool(piece.strip()) for piece in pieces)
