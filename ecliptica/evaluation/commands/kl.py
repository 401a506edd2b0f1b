"""Exact KL of any two models along responses: nats a response, and a token with its interval.

KL[--model with --adapter || the same without it], or KL[--model || --reference]. Along the
"responses" of the input lines (as `score` reads them), or with --answers along the policy's own
greedy ones. A line of --out is {"kl": [nats a response], "tokens": [...]}, with --answers also
{"text"}. The interval resamples lines.
"""

from dataclasses import dataclass

from ecliptica.config import option, positive
from ecliptica.evaluation import options
from model.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Options(options.Options):
    reference: str | None = option(
        None, "model directory that the KL is taken to; none: --model without its adapter"
    )
    data: str = option(..., "JSON lines in, as `score` reads them")
    out: str = option(..., "JSON lines out, in the same order")
    answers: bool = option(False, "along the policy's own answers; no responses are read")
    max_new_tokens: int = positive(128, "tokens of an answer at most")

    def check(self) -> None:
        if not self.adapter and not self.reference:
            raise InputError(
                "kl: a KL is between two models; give --adapter DIR (against --model without it) "
                "or --reference DIR"
            )


def run(options: Options) -> None:
    # Only now what takes seconds to import.
    from ecliptica.evaluation.kl_along import measure

    measure(options)
