"""How often sampled responses keep a contract: prompts in, the same lines with "text", "ended" and
"reward" out, and the mean reward with its 95 % interval over prompts, the length and the share
that ended by a stop token.

The contract is a reward that judges words alone, named with its keys: --reward length,max_words=20.
"""

from dataclasses import dataclass

from ecliptica.config import not_negative, option, positive, seed
from ecliptica.evaluation import options


@dataclass(frozen=True, kw_only=True)
class Options(options.Options):
    reward: tuple[str, ...] = option(..., "name,key=value,...: a reward of words")
    data: str = option(..., "JSON lines in")
    out: str = option(..., "JSON lines out, in the same order")
    limit: int = not_negative(0, "lines at most, the first; 0: all")
    max_new_tokens: int = positive(48, "of a response; a longer one is cut")
    temperature: float = positive(1.0, "of sampling, as in training")
    seed: int = seed(0, "of the sampling; line n samples with seed + n")


def run(options: Options) -> None:
    # Only now what takes seconds to import.
    from ecliptica.evaluation.contracts import measure

    measure(options)
