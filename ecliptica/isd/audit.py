"""What the dataset promises, checked: each audit has a threshold, the value found, and pass or fail."""

from collections import Counter
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np

from ecliptica.isd import audit_sets
from ecliptica.isd.bank import (
    BANK,
    INSTRUCTIONS,
    MORE_INSTRUCTIONS,
    PROVENANCE,
    SPLITS,
    load_axes,
    load_bank,
    load_instructions,
    referenced,
)
from ecliptica.isd.leak import response_only_auc
from ecliptica.isd.pairs import pairs
from ecliptica.isd.sets import SETS
from ecliptica.isd.similarity import content_words, jaccard, jaccard_NN, singular, words
from model.errors import InputError

SOURCES, FORMS = (
    ("news", "education", "instruction", "intent"),
    ("question", "imperative", "scenario"),
)
SIZES = {
    "train": (80, 200),
    "dev": (20, 60),
    "test": (100, 240),
}  # prompts with responses, prompts in all
LENGTH_IS_THE_POINT = ("concise",)
NEAR, WORDING, BALANCE = 0.6, 0.4, 1.10


@dataclass(frozen=True)
class Dataset:
    """All that is audited. `made` are pairs of the train and the test split."""

    bank: list
    instructions: dict
    made: dict
    more: dict  # the further instructions and the axis of each
    axes: dict
    sets: dict


def load(bank=BANK, instructions=INSTRUCTIONS, more=MORE_INSTRUCTIONS, sets=SETS):
    table = load_instructions(instructions)
    entries = load_bank(bank, table)
    made = {split: pairs(entries, table, split) for split in ("train", "test")}
    return Dataset(
        entries, table, made, load_instructions(more), load_axes(more), audit_sets.load(sets, table)
    )


def audits(data):
    """(audit, wanted, found, passed) of each, in the order of the table, made as it is asked for."""
    return chain.from_iterable(group(data) for group in GROUPS)


def table(rows):
    cells = [("audit", "wanted", "found", ""), ("---", "---", "---", "---")] + [
        (name, wanted, found, "pass" if passed else "FAIL") for name, wanted, found, passed in rows
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def check(rows):
    """InputError naming the audits that failed; nothing if none did."""
    if failed := [name for name, _, _, passed in rows if not passed]:
        raise InputError(f"{len(failed)} of {len(rows)} audits failed: {', '.join(failed)}")


def sizes(data):
    bank = data.bank
    yield "prompts", "500", str(len(bank)), len(bank) == 500
    count = Counter(entry.source for entry in bank)
    yield (
        "prompts of each source",
        "125",
        _counts(count, SOURCES),
        count == dict.fromkeys(SOURCES, 125),
    )
    domains = Counter(entry.domain for entry in bank)
    largest, most = domains.most_common(1)[0]
    yield (
        "domains",
        ">= 12, each <= 12 %",
        f"{len(domains)}, largest {most / len(bank):.1%} ({largest})",
        len(domains) >= 12 and most <= 0.12 * len(bank),
    )
    length = [len(entry.prompt.split()) for entry in bank]
    yield (
        "words of a prompt",
        "6 to 60",
        f"{min(length)} to {max(length)}, mean {np.mean(length):.1f}",
        6 <= min(length) and max(length) <= 60,
    )
    form = Counter(entry.form for entry in bank)
    yield (
        "forms of prompts",
        "three, each 20 to 60 %",
        _counts(form, FORMS),
        set(form) == set(FORMS)
        and all(0.2 * len(bank) <= n <= 0.6 * len(bank) for n in form.values()),
    )
    opening, often = Counter(" ".join(words(entry.prompt)[:3]) for entry in bank).most_common(1)[0]
    yield (
        "commonest opening of a prompt",
        "<= 3 %",
        f"{often / len(bank):.1%} ({opening!r})",
        often <= 0.03 * len(bank),
    )
    bare = [entry.id for entry in bank if not all(getattr(entry, key) for key in PROVENANCE)]
    yield (
        "provenance on every line",
        "0 without",
        f"{len(bare)} without" + (f", first {bare[0]}" if bare else ""),
        not bare,
    )
    found, closest = _closest(bank, [entry.prompt for entry in bank], lambda entry: entry.id)
    yield (
        "near-duplicate prompts",
        f"4-gram Jaccard < {NEAR}",
        f"at most {found:.2f} ({closest})",
        found < NEAR,
    )


def wordings(data):
    counts = {len(paraphrases) for paraphrases in data.instructions.values()}
    yield (
        "instructions x paraphrases",
        "10 x 3",
        f"{len(data.instructions)} x {', '.join(map(str, sorted(counts)))}",
        len(data.instructions) == 10 and counts == {3},
    )
    banned = {
        word
        for paraphrases in data.instructions.values()
        for text in paraphrases
        for word in content_words(text)
    }
    hits = [
        (entry.id, word)
        for entry in data.bank
        for word in sorted(content_words(entry.prompt) & banned)
    ]
    yield (
        "words of an instruction in a prompt",
        f"0 of {len(banned)}",
        f"{len(hits)}" + "".join(f", {word} in {name}" for name, word in hits[:3]),
        not hits,
    )
    yield _paraphrases("overlap of paraphrases", data.instructions)
    shape = Counter(data.axes.values())
    counts = {len(paraphrases) for paraphrases in data.more.values()}
    yield (
        "further instructions",
        "90 on 10 axes, 3 paraphrases",
        f"{len(data.more)} on {len(shape)} axes, {', '.join(map(str, sorted(counts)))} paraphrases",
        len(data.more) == 90
        and len(shape) == 10
        and None not in shape
        and counts == {3}
        and not set(data.more) & set(data.instructions),
    )
    yield _paraphrases("overlap of their paraphrases", data.more)


def _paraphrases(name, table):
    worst, where = max(
        (jaccard({*map(singular, words(a))}, {*map(singular, words(b))}), key)
        for key, texts in table.items()
        for a, b in combinations(texts, 2)
    )
    return name, f"word Jaccard < {WORDING}", f"at most {worst:.2f} ({where})", worst < WORDING


def responses(data):
    entries = referenced(data.bank)
    full = [entry for entry in entries if set(entry.responses) == set(data.instructions)]
    yield (
        "prompts with a response to every instruction",
        ">= 120",
        f"{len(full)}",
        len(full) >= 120 and len(full) == len(entries),
    )
    texts = [(entry, name, text) for entry in entries for name, text in entry.responses.items()]
    length = [len(text.split()) for _, _, text in texts]
    yield (
        "words of a response",
        "20 to 90",
        f"{min(length)} to {max(length)}, mean {np.mean(length):.1f}",
        20 <= min(length) and max(length) <= 90,
    )
    by_name = {name: [] for name in data.instructions if name not in LENGTH_IS_THE_POINT}
    for (_, name, _), n in zip(texts, length):
        if name in by_name:
            by_name[name].append(n)
    mean = {name: float(np.mean(found)) for name, found in by_name.items()}
    low, high = min(mean, key=mean.get), max(mean, key=mean.get)
    ratio = mean[high] / mean[low]
    yield (
        "longest over shortest mean response",
        f"<= {BALANCE:.2f}",
        f"{ratio:.3f} ({high} {mean[high]:.1f}, {low} {mean[low]:.1f})",
        ratio <= BALANCE,
    )
    area = response_only_auc(data.made["train"], data.made["test"])
    yield (
        "AUC, chosen from rejected by the response alone",
        "0.45 to 0.55",
        f"{area:.3f}",
        0.45 <= area <= 0.55,
    )
    found, closest = _closest(
        texts, [text for _, _, text in texts], lambda item: f"{item[0].id}/{item[1]}"
    )
    yield (
        "near-duplicate responses",
        f"4-gram Jaccard < {NEAR}",
        f"at most {found:.2f} ({closest})",
        found < NEAR,
    )


def splits(data):
    found = {
        split: (len(referenced(own)), len(own))
        for split in SPLITS
        for own in [[entry for entry in data.bank if entry.split == split]]
    }
    yield "prompts with responses, of all", _sizes(SIZES), _sizes(found), found == SIZES
    yield _shared("prompts", [(entry.prompt, entry.split) for entry in data.bank])
    similar = jaccard_NN([entry.prompt for entry in data.bank])
    split_N = np.array([entry.split for entry in data.bank])
    close = int((np.triu(similar, 1) * (split_N[:, None] != split_N[None, :]) >= NEAR).sum())
    yield "near-duplicate prompts in two splits", "0", str(close), not close
    yield _shared(
        "responses",
        [(text, entry.split) for entry in data.bank for text in entry.responses.values()],
    )
    used = [
        (texts[min(n, len(texts) - 1)], split)
        for table in (data.instructions, data.more)
        for texts in table.values()
        for n, split in enumerate(SPLITS)
    ]
    yield _shared("paraphrases", used)


def sets(data):
    return audit_sets.audits(data.sets, data.bank)


GROUPS = sizes, wordings, splits, sets, responses


def _shared(what, items):
    places = {}
    for text, split in items:
        places.setdefault(" ".join(words(text)), set()).add(split)
    count = sum(len(found) > 1 for found in places.values())
    return f"{what} in two splits", "0", str(count), not count


def _closest(items, texts, label):
    similar = jaccard_NN(texts)
    a, b = divmod(int(similar.argmax()), len(texts))
    return float(similar[a, b]), f"{label(items[a])}, {label(items[b])}"


def _counts(count, keys):
    return ", ".join(f"{key} {count[key]}" for key in [*keys, *sorted(set(count) - set(keys))])


def _sizes(table):
    return ", ".join(f"{split} {some} of {every}" for split, (some, every) in table.items())
