"""Where a conversation is shown: a terminal, plain lines through a pipe, or JSON lines.

A terminal gets text as it comes, columns and shades. Through a pipe, standard output has the
answers alone and whatever is said about them goes to standard error.
"""

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from ecliptica.evaluation.dialogue import Answer

NARROWEST = 24  # characters of a column; narrower ones are shown one under the other
SHADES = (0.01, 0.1, 0.5, 1.0, 2.0)  # nats a token, from white to the deepest red
COLOURS = (231, 224, 217, 210, 203, 196)
PLAIN, BLACK = "\x1b[0m", "\x1b[38;5;16m"


class Screen:
    """Shows answers and words about them."""

    def __init__(self, terminal: bool, as_json: bool) -> None:
        self.terminal = terminal and not as_json
        self.as_json = as_json

    def invite(self) -> None:
        """What stands before a line that the user types."""
        if self.terminal:
            print("> ", end="", flush=True)

    def say(self, word: str) -> None:
        """A word about the conversation, no part of it."""
        line = " ".join(word.split())
        print(line, file=sys.stdout if self.terminal else sys.stderr, flush=True)

    # Answers

    def show(self, answer: Answer, pieces: Iterator[str], label: str | None = None) -> None:
        """An answer while it is made; through a pipe with --json when it is whole."""
        if self.as_json:
            for _ in pieces:
                pass
            self.show_whole(answer)
            return
        if label is not None:
            print(f"[{label}] ", end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print(flush=True)

    def show_whole(self, answer: Answer, label: str | None = None) -> None:
        """An answer that is there already, or as far as it came."""
        if self.as_json:
            print(json.dumps(answer.record(), ensure_ascii=False), flush=True)
        else:
            head = f"[{label}] " if label is not None else ""
            print(head + answer.text, flush=True)

    def side_by_side(self, answers: Sequence[Answer], labels: Sequence[str]) -> None:
        """Columns in a terminal that is wide enough, else one under the other."""
        width = shutil.get_terminal_size().columns // max(1, len(answers)) - 2
        if not self.terminal or width < NARROWEST:
            for answer, label in zip(answers, labels, strict=True):
                self.show_whole(answer, label)
            return
        columns = []
        for answer, label in zip(answers, labels, strict=True):
            columns.append([*_wrapped(label, width), "-" * width, *_wrapped(answer.text, width)])
        for row in range(max(map(len, columns))):
            cells = [column[row] if row < len(column) else "" for column in columns]
            print("  ".join(cell.ljust(width) for cell in cells).rstrip(), flush=True)

    # The distance to the reference

    def shades(self, tokens: Sequence[tuple[str, float]]) -> None:
        """Every token and how far the policy is from its reference there, nats."""
        total = sum(nats for _, nats in tokens)
        if self.as_json:
            line = {"kl": total, "tokens": [{"text": text, "kl": nats} for text, nats in tokens]}
            print(json.dumps(line, ensure_ascii=False), flush=True)
        elif self.terminal:
            print("".join(_shaded(tokens)) + PLAIN)
            self.say(_legend())
        else:
            for text, nats in tokens:
                print(f"{nats:.4f} {text!r}", flush=True)
        self.say(
            f"exact KL[policy || reference]: {total:.3f} nats, {total / len(tokens):.4f} a token"
        )


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` characters; a line's end in the text stays one."""
    lines = []
    for line in text.splitlines() or [""]:
        lines += textwrap.wrap(line, width) or [""]
    return lines


def _shaded(tokens: Iterable[tuple[str, float]]) -> Iterator[str]:
    for text, nats in tokens:
        shade = sum(nats >= bound for bound in SHADES)
        yield f"{BLACK}\x1b[48;5;{COLOURS[shade]}m{text}"


def _legend() -> str:
    """The shades and what they stand for."""
    names = [f"under {SHADES[0]}", *(f"{bound} and more" for bound in SHADES)]
    pairs = zip(COLOURS, names, strict=True)
    parts = [f"{BLACK}\x1b[48;5;{colour}m {name} {PLAIN}" for colour, name in pairs]
    return "nats a token: " + "".join(parts)
