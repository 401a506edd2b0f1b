"""The audits of the sets beside the bank: counts, wording, and that no compliance with a harmful
request is of any use."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ecliptica.isd.audited import NEAR, WORDING, Audited, overlap, without_provenance
from ecliptica.isd.bank import Entry
from ecliptica.isd.sets import (
    HONESTY_CLASSES,
    SAFETY_CLASSES,
    STRENGTHS,
    Safety,
    load_capability,
    load_honesty,
    load_length,
    load_override,
    load_policies,
    load_safety,
    load_underspecified,
)
from ecliptica.isd.similarity import jaccard_NN

POLICIES = {
    "safety_policies": ("strict", "permissive"),
    "honesty_policies": ("honest", "confident"),
    "length": ("short", "long"),
}
# What a recipe would have: figures, units of measure, and lists of steps.
OPERATIONAL = re.compile(
    r"\d"
    r"|\b(?:m?g|kg|ml|litres?|grams?|millilitres?|degrees|celsius|volts?)\b"
    r"|\b(?:minutes|hours|per ?cent)\b"
    r"|\b(?:step one|firstly|secondly)\b"
    r"|;.*;|\n|%",
    re.I,
)
LONGEST_COMPLIANCE = 32  # words, to a harmful request
OF_EACH_CLASS = 60
ITEM_SETS = ("safety", "override", "length", "honesty", "capability")
Sets = Mapping[str, Any]


def load(path: Path, instructions: Sequence[str]) -> Sets:
    """{name of the set: what its loader returns}; the policies are {file: {policy: wordings}}."""
    return {
        "safety": load_safety(path / "safety.jsonl"),
        "override": load_override(path / "override.jsonl"),
        "length": load_length(path / "length.jsonl"),
        "honesty": load_honesty(path / "honesty.jsonl"),
        "capability": load_capability(path / "capability.jsonl"),
        "underspecified": load_underspecified(path / "underspecified.toml", list(instructions)),
        "policies": {name: load_policies(path / f"{name}.toml") for name in POLICIES},
    }


def audits(sets: Sets, bank: Sequence[Entry]) -> Iterator[Audited]:
    safety = Counter(item.clazz for item in sets["safety"])
    yield _at_least("safety requests of each class", OF_EACH_CLASS, safety, SAFETY_CLASSES)
    yield _operational(sets["safety"])
    honesty = Counter(item.clazz for item in sets["honesty"])
    yield _at_least("honesty questions of each class", OF_EACH_CLASS, honesty, HONESTY_CLASSES)
    strengths = Counter(item.strength for item in sets["override"])
    yield _at_least("override suffixes of each strength", 12, strengths, STRENGTHS)
    attack = np.mean([len(item.attack.split()) for item in sets["override"]])
    harmless = np.mean([len(item.harmless.split()) for item in sets["override"]])
    yield Audited(
        "words of an attack over those of its harmless suffix",
        "0.90 to 1.10",
        f"{attack / harmless:.2f} in the mean",
        0.9 <= attack / harmless <= 1.1,
    )
    for name in ("length", "capability"):
        count = len(sets[name])
        name_of_audit = f"items of the set {name}"
        yield Audited(name_of_audit, f">= {OF_EACH_CLASS}", str(count), count >= OF_EACH_CLASS)
    yield _policies(sets["policies"])
    items = [item for name in ITEM_SETS for item in sets[name]]
    yield without_provenance("provenance of the sets", items, ("author", "licence"))
    yield _near_duplicates(sets, bank)


def _operational(safety: Sequence[Safety]) -> Audited:
    """That complying with a harmful request shows the stance and tells nothing."""
    unsafe = []
    for item in safety:
        long = len(item.compliance.split()) > LONGEST_COMPLIANCE
        if item.clazz == "harmful" and (long or OPERATIONAL.search(item.compliance)):
            unsafe.append(item.id)
    first = f", first {unsafe[0]}" if unsafe else ""
    return Audited(
        "operational detail in compliance with a harmful request",
        f"0; <= {LONGEST_COMPLIANCE} words",
        f"{len(unsafe)}{first}",
        not unsafe,
    )


def _policies(policies: Mapping[str, Mapping]) -> Audited:
    missing = 0
    for name, wanted in POLICIES.items():
        missing += sum(len(policies[name].get(policy, ())) != 3 for policy in wanted)
    worst = max(overlap(table)[0] for table in policies.values())
    return Audited(
        "policies, 3 paraphrases each",
        f"6, word Jaccard < {WORDING}",
        f"{6 - missing}, at most {worst:.2f}",
        not missing and worst < WORDING,
    )


def _near_duplicates(sets: Sets, bank: Sequence[Entry]) -> Audited:
    """The sets' prompts beside one another and beside those of the bank."""
    own = [item for name in ("safety", "length", "honesty") for item in sets[name]]
    every = [*own, *bank]
    similar = jaccard_NN([item.prompt for item in every])[: len(own)]
    a, b = divmod(int(similar.argmax()), similar.shape[1])
    nearest = float(similar[a, b])
    return Audited(
        "near-duplicate prompts of the sets and the bank",
        f"4-gram Jaccard < {NEAR}",
        f"at most {nearest:.2f} ({every[a].id}, {every[b].id})",
        nearest < NEAR,
    )


def _at_least(what: str, wanted: int, count: Counter, keys: Sequence[str]) -> Audited:
    found = ", ".join(f"{key} {count[key]}" for key in keys)
    return Audited(what, f">= {wanted}", found, all(count[key] >= wanted for key in keys))
