"""Whether an answer has the form that is asked for, and ended: 1 if so, 0 if not.

json       the whole answer is one JSON object or list
list       at least two lines, each an item: "- ", "* " or "1. "
line       one line
question   ends with a question mark
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ecliptica.config import choice
from ecliptica.rewards.contract import Answer

ITEM = re.compile(r"(?:[-*]|\d+[.)])\s+\S")


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _is_list(text: str) -> bool:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return len(lines) >= 2 and all(ITEM.match(line) for line in lines)


FORMS: dict[str, Callable[[str], bool]] = {
    "json": _is_json,
    "list": _is_list,
    "line": lambda text: bool(text) and "\n" not in text,
    "question": lambda text: text.endswith("?"),
}


@dataclass(frozen=True)
class Config:
    """The section `reward` with reward.name = "format"."""

    name: str = "format"
    form: str = choice("list", tuple(FORMS), "what an answer has to be")


def score(answers: Sequence[Answer], config: Config) -> list[float]:
    """[1.0 or 0.0]."""
    has_form = FORMS[config.form]
    return [float(ended and has_form(text.strip())) for _, _, text, ended in answers]
