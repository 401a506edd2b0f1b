"""One audit's outcome, and what the audits of the bank and of the sets share."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from ecliptica.isd.bank import Wordings
from ecliptica.isd.similarity import jaccard, singular, words

NEAR = 0.6  # 4-gram Jaccard from which two texts are near-duplicates
WORDING = 0.4  # word Jaccard that two wordings of one instruction stay below


class Audited(NamedTuple):
    """A row of the table."""

    name: str
    wanted: str
    found: str
    passed: bool


def overlap(table: Mapping[str, Wordings]) -> tuple[float, str]:
    """The greatest word Jaccard of two wordings of one instruction, and whose they are."""
    worst, where = 0.0, ""
    for name, texts in table.items():
        for first, second in combinations(texts, 2):
            shared = jaccard(_stems(first), _stems(second))
            if (shared, name) > (worst, where):
                worst, where = shared, name
    return worst, where


def _stems(text: str) -> set[str]:
    return set(map(singular, words(text)))


def overlap_of_wordings(name: str, table: Mapping[str, Wordings]) -> Audited:
    worst, where = overlap(table)
    return Audited(
        name, f"word Jaccard < {WORDING}", f"at most {worst:.2f} ({where})", worst < WORDING
    )


def without_provenance(name: str, items: Sequence[Any], keys: Sequence[str]) -> Audited:
    """items: whatever has an id and the `keys`."""
    bare = [item.id for item in items if not all(getattr(item, key) for key in keys)]
    first = f", first {bare[0]}" if bare else ""
    return Audited(name, "0 without", f"{len(bare)} without{first}", not bare)
