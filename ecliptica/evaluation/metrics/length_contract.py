"""Length contract: under `short`, at most 50 words; under `long`, at least 200; both, for one prompt. Mean log ratio of the two word counts, null 0.

A model that ignores the instruction keeps at most one of the contracts and has ratio 0; one that always answers short keeps `short` and
not `both`; one that switches the wrong way has a ratio below 0. An empty answer keeps none. An answer that was cut off counts with the words it has, and
the share of those is reported beside it, for each contract: cut short ones may be longer than they look, cut long ones may have kept the contract.
Words are what white space separates. log ratio: ln((long + 1) / (short + 1)), so that an empty answer has one.
"""

import math

SHORT, LONG = 50, 200
ROOM = 300  # tokens that 200 words of English take, at least
TITLES = {
    "both": ("both contracts", None),
    "short": (f"short: at most {SHORT} words", None),
    "long": (f"long: at least {LONG} words", None),
    "log_ratio": ("log of long over short, words", 0.0),
    "cut_short": ("cut off, short", None),
    "cut_long": ("cut off, long", None),
}


def count(text):
    return len(text.split())


def value(short_text, long_text, short_cut, long_cut):
    """{metric: value of one prompt}. short_cut, long_cut: whether the answer reached the token limit."""
    short, long = count(short_text), count(long_text)
    kept = 0 < short <= SHORT, long >= LONG
    return {
        "both": float(all(kept)),
        "short": float(kept[0]),
        "long": float(kept[1]),
        "log_ratio": math.log((long + 1) / (short + 1)),
        "cut_short": float(short_cut),
        "cut_long": float(long_cut),
    }
