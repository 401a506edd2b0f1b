"""The ten instructions in other languages, and the audits of them."""

from collections.abc import Iterator, Mapping, Sequence

from ecliptica.isd.audited import NEAR, Audited, overlap_of_wordings
from ecliptica.isd.bank import HERE, Entry, Wordings, load_instructions
from ecliptica.isd.similarity import content_words, jaccard_NN

ENGLISH = "en"  # the language of instructions.toml, and of every prompt and response
LANGUAGES = {"es": "Spanish", "de": "German", "fr": "French"}
SHORTEST, LONGEST = 0.75, 1.6  # words of an instruction's wordings over those of its English ones

Table = Mapping[str, Wordings]


def load_language(code: str) -> dict[str, Wordings]:
    """{instruction id: wordings} in one of LANGUAGES, in the order of the English ones."""
    return load_instructions(HERE / f"instructions.{code}.toml")


def load_languages() -> dict[str, dict[str, Wordings]]:
    """{language: {instruction id: wordings}}."""
    return {code: load_language(code) for code in LANGUAGES}


def audits(tables: Mapping[str, Table], english: Table, bank: Sequence[Entry]) -> Iterator[Audited]:
    """Of every language together: a row says which is the worst."""
    yield _complete(tables, english)
    joined = {f"{name} ({code})": own[name] for code, own in tables.items() for name in own}
    yield overlap_of_wordings("overlap of wordings in other languages", joined)
    yield _near(joined)
    yield _lengths(tables, english)
    yield _leakage(tables, bank)


def _complete(tables: Mapping[str, Table], english: Table) -> Audited:
    """That every language has the same instructions, in as many wordings."""
    wanted = {name: len(texts) for name, texts in english.items()}
    counts = {code: {name: len(own[name]) for name in own} for code, own in tables.items()}
    short = [code for code, own in counts.items() if list(own.items()) != list(wanted.items())]
    found = ", ".join(f"{code} {sum(own.values())}" for code, own in counts.items())
    return Audited(
        "wordings in other languages",
        ", ".join(f"{code} {sum(wanted.values())}" for code in LANGUAGES),
        found,
        not short and list(tables) == list(LANGUAGES),
    )


def _near(joined: Table) -> Audited:
    """That no two of all wordings are one: also what is in two splits."""
    labels, texts = [], []
    for name, own in joined.items():
        labels += [name] * len(own)
        texts += own
    similar_NN = jaccard_NN(texts)
    a, b = divmod(int(similar_NN.argmax()), len(texts))
    nearest = float(similar_NN[a, b])
    return Audited(
        "near-duplicate wordings in other languages",
        f"4-gram Jaccard < {NEAR}",
        f"at most {nearest:.2f} ({labels[a]}, {labels[b]})",
        nearest < NEAR,
    )


def _lengths(tables: Mapping[str, Table], english: Table) -> Audited:
    """That an instruction says about as much as in English."""
    ratios = {}
    for code, own in tables.items():
        for name, texts in own.items():
            if name in english:
                ratios[f"{name} ({code})"] = _words(texts) / _words(english[name])
    low, high = min(ratios, key=ratios.get), max(ratios, key=ratios.get)
    return Audited(
        "words in other languages over English",
        f"{SHORTEST:.2f} to {LONGEST:.2f}",
        f"{ratios[low]:.2f} ({low}) to {ratios[high]:.2f} ({high})",
        SHORTEST <= ratios[low] and ratios[high] <= LONGEST,
    )


def _words(texts: Sequence[str]) -> int:
    return sum(len(text.split()) for text in texts)


def _leakage(tables: Mapping[str, Table], bank: Sequence[Entry]) -> Audited:
    """That no prompt gives an instruction away, in whatever language it is spelled alike."""
    banned = set()
    for own in tables.values():
        for texts in own.values():
            banned.update(*map(content_words, texts))
    hits = []
    for entry in bank:
        hits += [f", {word} in {entry.id}" for word in sorted(content_words(entry.prompt) & banned)]
    return Audited(
        "words of other languages' wordings in a prompt",
        f"0 of {len(banned)}",
        str(len(hits)) + "".join(hits[:3]),
        not hits,
    )
