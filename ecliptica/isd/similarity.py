"""How alike texts are: character 4-grams for near-duplicates, words for wordings."""

import re
from collections.abc import Sequence

import numpy as np

# Words that instructions and prompts may share, since no sentence does without them: pronouns,
# articles, prepositions, conjunctions, auxiliaries, negations, numerals and quantifiers, and the
# light verbs. Every other word of an instruction is kept out of the prompts.
COMMON = frozenset(
    """
    a an the this that these those i you he she it we they me him her us them my your his its
    our their who whom which what in on of to for from by with without at into onto out up down
    over under above below about around through before after between against towards and or but
    nor so if when while where why how as than then because though although that whether be is
    are was were been being do does did have has had can could may might must shall should will
    would not no one two three first few many much most more some any all each every both either
    only else other everyone everything anything something nothing make take give go let put use
    using get
    """.split()
)
BLOCK = 4096  # grams that are counted at a time


def words(text: str) -> list[str]:
    """The words of a text, lower case, a hyphenated one as it stands; the possessive ending is left
    off."""
    without_possessive = re.sub(r"['’]s\b", "", text.lower())
    return re.findall(r"[a-zà-ÿ]+(?:-[a-zà-ÿ]+)*", without_possessive)


def content_words(text: str) -> set[str]:
    """Its words less the common ones, in the singular."""
    return {singular(word) for word in words(text) if word not in COMMON}


def singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("s") and not word.endswith("ss") and len(word) > 3:
        return word[:-1]
    return word


def jaccard(a: set, b: set) -> float:
    return len(a & b) / max(1, len(a | b))


def grams(text: str) -> set[str]:
    """The character 4-grams of a text, lower case."""
    lower = text.lower()
    return {lower[at : at + 4] for at in range(max(1, len(lower) - 3))}


def jaccard_NN(texts: Sequence[str]) -> np.ndarray:
    """Character 4-gram Jaccard of every two texts, the diagonal 0. 2,000 texts of 50 words take
    some seconds."""
    sets = [grams(text) for text in texts]

    # A gram of one text only is in no intersection: the others get a column.
    seen, column = set(), {}
    for own in sets:
        for gram in own & seen:
            column.setdefault(gram, len(column))
        seen |= own
    columns = [
        np.array([column[gram] for gram in own if gram in column], dtype=np.int64) for own in sets
    ]

    # How many grams every two texts share, a block of columns at a time.
    common_NN = np.zeros((len(texts), len(texts)), dtype=np.float32)
    for start in range(0, len(column), BLOCK):
        has = np.zeros((len(texts), BLOCK), dtype=np.float32)
        for row, own in enumerate(columns):
            inside = own[(own >= start) & (own < start + BLOCK)]
            has[row, inside - start] = 1
        common_NN += has @ has.T
    sizes = np.array([len(own) for own in sets], dtype=np.float32)
    similar_NN = common_NN / (sizes[:, None] + sizes[None, :] - common_NN)
    np.fill_diagonal(similar_NN, 0)
    return similar_NN
