"""A conversation in the terminal, or through a pipe, line by line.

A line that begins with / is a command (/help lists them), every other one a prompt; // at its
start stands for /. The alignment instruction may change at any turn; what was said before keeps
its own. Greedy. Through a pipe the answers are plain lines, with --json one object a line:
{"instruction", "prompt", "text"}.
"""

from dataclasses import dataclass

from ecliptica.config import option, positive
from ecliptica.evaluation import options
from model.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Options(options.Options):
    instruction: str | None = option(None, "the alignment instruction to begin with")
    max_new_tokens: int = positive(256, "tokens of an answer at most")
    json: bool = option(False, "one JSON object an answer")

    def check(self) -> None:
        if self.template == "none":
            raise InputError("chat: --template none cannot tell turns apart; give a template")


def run(options: Options) -> None:
    # Only now what takes seconds to import.
    from ecliptica.evaluation.chat import converse

    converse(options)
