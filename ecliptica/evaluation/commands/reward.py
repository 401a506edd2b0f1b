"""Rewards of given responses by a reward model: {"instruction"?, "prompt", "responses"} (or
"context", or "chosen" and "rejected") in, the same with "rewards" out.

Where lines are preferences, the share whose chosen response has the higher reward is printed, with
its 95 % interval over prompts, and written beside --out. A tie is half right.
"""

from dataclasses import dataclass

from ecliptica.config import option
from ecliptica.evaluation import options


@dataclass(frozen=True, kw_only=True)
class Options(options.Options):
    """Without --adapter, --model is a reward model that was trained as a whole."""

    data: str = option(..., "JSON lines in")
    out: str = option(..., "JSON lines out, in the same order")


def run(options: Options) -> None:
    # Only now what takes seconds to import.
    from ecliptica.evaluation.rewarding import measure

    measure(options)
