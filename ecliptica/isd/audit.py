"""What the dataset promises, checked: each audit has a threshold, the value found, and pass or
fail."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ecliptica import markdown
from ecliptica.isd import audit_sets, languages
from ecliptica.isd.audited import NEAR, Audited, overlap_of_wordings, without_provenance
from ecliptica.isd.bank import (
    BANK,
    INSTRUCTIONS,
    MORE_INSTRUCTIONS,
    PROVENANCE,
    SPLITS,
    Entry,
    Wordings,
    load_axes,
    load_bank,
    load_instructions,
    referenced,
)
from ecliptica.isd.leak import response_only_auc
from ecliptica.isd.pairs import pairs
from ecliptica.isd.sets import SETS
from ecliptica.isd.similarity import content_words, jaccard_NN, words
from model.errors import InputError

PROMPTS = 500
SOURCES = ("news", "education", "instruction", "intent")
OF_EACH_SOURCE = 125
FORMS = ("question", "imperative", "scenario")
LARGEST_DOMAIN, COMMONEST_OPENING = 0.12, 0.03  # shares of all prompts
SIZES = {"train": (80, 200), "dev": (20, 60), "test": (100, 240)}  # with responses, in all
LENGTH_IS_THE_POINT = ("concise",)
BALANCE = 1.10


@dataclass(frozen=True)
class Dataset:
    """All that is audited."""

    bank: Sequence[Entry]
    instructions: Mapping[str, Wordings]
    made: Mapping[str, Sequence[dict]]  # pairs of the train and the test split
    more: Mapping[str, Wordings]  # the further instructions
    axes: Mapping[str, str | None]  # and the axis of each
    sets: Mapping[str, Any]
    languages: Mapping[str, Mapping[str, Wordings]]  # the instructions in other languages


def load(
    bank: str | Path = BANK,
    instructions: str | Path = INSTRUCTIONS,
    more: str | Path = MORE_INSTRUCTIONS,
    sets: Path = SETS,
) -> Dataset:
    table = load_instructions(instructions)
    entries = load_bank(bank, table)
    return Dataset(
        bank=entries,
        instructions=table,
        made={split: pairs(entries, table, split) for split in ("train", "test")},
        more=load_instructions(more),
        axes=load_axes(more),
        sets=audit_sets.load(sets, table),
        languages=languages.load_languages(),
    )


def audits(data: Dataset) -> Iterator[Audited]:
    """Each, in the order of the table, made as it is asked for."""
    return chain.from_iterable(group(data) for group in GROUPS)


def table(rows: Sequence[Audited]) -> str:
    """As Markdown."""
    cells = [(row.name, row.wanted, row.found, "pass" if row.passed else "FAIL") for row in rows]
    return markdown.table(("audit", "wanted", "found", ""), cells)


def check(rows: Sequence[Audited]) -> None:
    """InputError naming the audits that failed; nothing if none did."""
    failed = [row.name for row in rows if not row.passed]
    if failed:
        raise InputError(f"{len(failed)} of {len(rows)} audits failed: {', '.join(failed)}")


# Prompts


def sizes(data: Dataset) -> Iterator[Audited]:
    """How many prompts there are, of which kinds."""
    bank = data.bank
    count = len(bank)
    yield Audited("prompts", str(PROMPTS), str(count), count == PROMPTS)
    sources = Counter(entry.source for entry in bank)
    yield Audited(
        "prompts of each source",
        str(OF_EACH_SOURCE),
        _counts(sources, SOURCES),
        sources == dict.fromkeys(SOURCES, OF_EACH_SOURCE),
    )
    domains = Counter(entry.domain for entry in bank)
    largest, most = domains.most_common(1)[0]
    yield Audited(
        "domains",
        f">= 12, each <= {100 * LARGEST_DOMAIN:.0f} %",
        f"{len(domains)}, largest {most / count:.1%} ({largest})",
        len(domains) >= 12 and most <= LARGEST_DOMAIN * count,
    )


def shapes(data: Dataset) -> Iterator[Audited]:
    """How the prompts read."""
    bank = data.bank
    count = len(bank)
    length = [len(entry.prompt.split()) for entry in bank]
    yield Audited(
        "words of a prompt",
        "6 to 60",
        f"{min(length)} to {max(length)}, mean {np.mean(length):.1f}",
        6 <= min(length) and max(length) <= 60,
    )
    forms = Counter(entry.form for entry in bank)
    balanced = all(0.2 * count <= number <= 0.6 * count for number in forms.values())
    yield Audited(
        "forms of prompts",
        "three, each 20 to 60 %",
        _counts(forms, FORMS),
        set(forms) == set(FORMS) and balanced,
    )
    openings = Counter(" ".join(words(entry.prompt)[:3]) for entry in bank)
    opening, often = openings.most_common(1)[0]
    yield Audited(
        "commonest opening of a prompt",
        f"<= {100 * COMMONEST_OPENING:.0f} %",
        f"{often / count:.1%} ({opening!r})",
        often <= COMMONEST_OPENING * count,
    )
    yield without_provenance("provenance on every line", bank, PROVENANCE)
    nearest, which = _closest([entry.prompt for entry in bank], [entry.id for entry in bank])
    yield Audited(
        "near-duplicate prompts",
        f"4-gram Jaccard < {NEAR}",
        f"at most {nearest:.2f} ({which})",
        nearest < NEAR,
    )


# Instructions


def wordings(data: Dataset) -> Iterator[Audited]:
    """The instructions, and that no prompt gives one away."""
    counts = {len(texts) for texts in data.instructions.values()}
    yield Audited(
        "instructions x paraphrases",
        "10 x 3",
        f"{len(data.instructions)} x {', '.join(map(str, sorted(counts)))}",
        len(data.instructions) == 10 and counts == {3},
    )
    banned = set()
    for texts in data.instructions.values():
        banned.update(*map(content_words, texts))
    hits = []
    for entry in data.bank:
        hits += [f", {word} in {entry.id}" for word in sorted(content_words(entry.prompt) & banned)]
    yield Audited(
        "words of an instruction in a prompt",
        f"0 of {len(banned)}",
        str(len(hits)) + "".join(hits[:3]),
        not hits,
    )
    yield overlap_of_wordings("overlap of paraphrases", data.instructions)
    yield _further(data)
    yield overlap_of_wordings("overlap of their paraphrases", data.more)


def _further(data: Dataset) -> Audited:
    axes = set(data.axes.values())
    counts = {len(texts) for texts in data.more.values()}
    whole = len(data.more) == 90 and len(axes) == 10 and counts == {3}
    return Audited(
        "further instructions",
        "90 on 10 axes, 3 paraphrases",
        f"{len(data.more)} on {len(axes)} axes, {', '.join(map(str, sorted(counts)))} paraphrases",
        whole and None not in axes and not set(data.more) & set(data.instructions),
    )


# Responses


def responses(data: Dataset) -> Iterator[Audited]:
    """That every prompt with responses has all, that no length and no wording gives one away."""
    entries = referenced(data.bank)
    full = [entry for entry in entries if set(entry.responses) == set(data.instructions)]
    yield Audited(
        "prompts with a response to every instruction",
        ">= 120",
        str(len(full)),
        len(full) >= 120 and len(full) == len(entries),
    )
    texts, labels, lengths = [], [], {}
    for entry in entries:
        for name, text in entry.responses.items():
            texts.append(text)
            labels.append(f"{entry.id}/{name}")
            lengths.setdefault(name, []).append(len(text.split()))
    every = [number for of_name in lengths.values() for number in of_name]
    yield Audited(
        "words of a response",
        "20 to 90",
        f"{min(every)} to {max(every)}, mean {np.mean(every):.1f}",
        20 <= min(every) and max(every) <= 90,
    )
    yield _balance(lengths)
    area = response_only_auc(data.made["train"], data.made["test"])
    yield Audited(
        "AUC, chosen from rejected by the response alone",
        "0.45 to 0.55",
        f"{area:.3f}",
        0.45 <= area <= 0.55,
    )
    nearest, which = _closest(texts, labels)
    yield Audited(
        "near-duplicate responses",
        f"4-gram Jaccard < {NEAR}",
        f"at most {nearest:.2f} ({which})",
        nearest < NEAR,
    )


def _balance(lengths: Mapping[str, Sequence[int]]) -> Audited:
    """Of the instructions whose point is not the length: {instruction: words of each response}."""
    mean = {
        name: float(np.mean(of_name))
        for name, of_name in lengths.items()
        if name not in LENGTH_IS_THE_POINT
    }
    low, high = min(mean, key=mean.get), max(mean, key=mean.get)
    ratio = mean[high] / mean[low]
    return Audited(
        "longest over shortest mean response",
        f"<= {BALANCE:.2f}",
        f"{ratio:.3f} ({high} {mean[high]:.1f}, {low} {mean[low]:.1f})",
        ratio <= BALANCE,
    )


# Splits


def splits(data: Dataset) -> Iterator[Audited]:
    """Their sizes, and that nothing is in two."""
    sizes = {}
    for split in SPLITS:
        own = [entry for entry in data.bank if entry.split == split]
        sizes[split] = len(referenced(own)), len(own)
    yield Audited("prompts with responses, of all", _sizes(SIZES), _sizes(sizes), sizes == SIZES)
    yield _shared("prompts", [(entry.prompt, entry.split) for entry in data.bank])

    similar_NN = jaccard_NN([entry.prompt for entry in data.bank])
    split_N = np.array([entry.split for entry in data.bank])
    apart_NN = np.triu(split_N[:, None] != split_N[None, :], 1)
    close = int((apart_NN & (similar_NN >= NEAR)).sum())
    yield Audited("near-duplicate prompts in two splits", "0", str(close), not close)

    answers = [(text, entry.split) for entry in data.bank for text in entry.responses.values()]
    yield _shared("responses", answers)
    used = []
    for texts in (*data.instructions.values(), *data.more.values()):
        for number, split in enumerate(SPLITS):
            used.append((texts[min(number, len(texts) - 1)], split))
    yield _shared("paraphrases", used)


def other_languages(data: Dataset) -> Iterator[Audited]:
    return languages.audits(data.languages, data.instructions, data.bank)


def sets(data: Dataset) -> Iterator[Audited]:
    return audit_sets.audits(data.sets, data.bank)


GROUPS: tuple[Callable[[Dataset], Iterator[Audited]], ...] = (
    sizes,
    shapes,
    wordings,
    splits,
    other_languages,
    sets,
    responses,
)


def _shared(what: str, items: Sequence[tuple[str, str]]) -> Audited:
    """items: (text, split)."""
    splits_of = {}
    for text, split in items:
        splits_of.setdefault(" ".join(words(text)), set()).add(split)
    count = sum(len(own) > 1 for own in splits_of.values())
    return Audited(f"{what} in two splits", "0", str(count), not count)


def _closest(texts: Sequence[str], labels: Sequence[str]) -> tuple[float, str]:
    """The greatest similarity of two texts, and which they are."""
    similar_NN = jaccard_NN(texts)
    a, b = divmod(int(similar_NN.argmax()), len(texts))
    return float(similar_NN[a, b]), f"{labels[a]}, {labels[b]}"


def _counts(count: Counter, keys: Sequence[str]) -> str:
    others = sorted(set(count) - set(keys))
    return ", ".join(f"{key} {count[key]}" for key in [*keys, *others])


def _sizes(table: Mapping[str, tuple[int, int]]) -> str:
    return ", ".join(f"{split} {some} of {every}" for split, (some, every) in table.items())
