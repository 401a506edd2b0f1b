"""Length contract: under `short`, at most 50 words; under `long`, at least 200; both, for one prompt. Mean log ratio of the two word counts, null 0.

A model that ignores the instruction keeps at most one of the contracts; one that always answers short keeps `short` and not `both`. An
answer that was cut off counts with the words it has, and the share of those is reported beside it: a cut long answer may have kept its contract.
"""

import math

SHORT, LONG = 50, 200
TITLES = {"short": (f"short: at most {SHORT} words", None), "long": (f"long: at least {LONG} words", None), "both": ("both contracts", None),
          "log_ratio": ("log of long over short, words", 0.0), "cut": ("answers cut off", None)}


def value(short_text, long_text, cut):
    """{metric: value of one prompt}. cut: of the two answers, how many reached the token limit."""
    short, long = len(short_text.split()), len(long_text.split())
    return {"short": float(0 < short <= SHORT), "long": float(long >= LONG), "both": float(0 < short <= SHORT and long >= LONG),
            "log_ratio": math.log((long + 1) / (short + 1)), "cut": cut / 2}
