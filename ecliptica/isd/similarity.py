"""How alike texts are: character 4-grams for near-duplicates, words for wordings."""

import re

import numpy as np

# Words that instructions and prompts may share, since no sentence does without them: pronouns, articles, prepositions, conjunctions, auxiliaries,
# negations, numerals and quantifiers, and the light verbs. Every other word of an instruction is kept out of the prompts.
COMMON = frozenset(
    """
a an the this that these those i you he she it we they me him her us them my your his its our their who whom which what
in on of to for from by with without at into onto out up down over under above below about around through before after between against towards
and or but nor so if when while where why how as than then because though although that whether
be is are was were been being do does did have has had can could may might must shall should will would not no
one two three first few many much most more some any all each every both either only else other everyone everything anything something nothing
make take give go let put use using get
""".split()
)
BLOCK = 4096


def words(text):
    """The words of a text, lower case, a hyphenated one as it stands; the possessive ending is left off."""
    return re.findall(r"[a-zà-ÿ]+(?:-[a-zà-ÿ]+)*", re.sub(r"['’]s\b", "", text.lower()))


def content_words(text):
    """Its words less the common ones, in the singular."""
    return {singular(word) for word in words(text) if word not in COMMON}


def singular(word):
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word


def jaccard(a, b):
    return len(a & b) / max(1, len(a | b))


def jaccard_NN(texts):
    """Character 4-gram Jaccard of every two texts, the diagonal 0. 2,000 texts of 50 words take some seconds."""
    sets = [
        {text[at : at + 4] for at in range(max(1, len(text) - 3))} for text in map(str.lower, texts)
    ]
    seen, repeated = set(), {}
    for grams in sets:
        for gram in grams & seen:
            repeated.setdefault(
                gram, len(repeated)
            )  # a gram of one text only is in no intersection
        seen |= grams
    columns = [
        np.array([repeated[gram] for gram in grams if gram in repeated], dtype=np.int64)
        for grams in sets
    ]
    common_NN = np.zeros((len(texts), len(texts)), dtype=np.float32)
    for start in range(0, len(repeated), BLOCK):
        has = np.zeros((len(texts), BLOCK), dtype=np.float32)
        for row, found in enumerate(columns):
            has[row, found[(found >= start) & (found < start + BLOCK)] - start] = 1
        common_NN += has @ has.T
    sizes = np.array([len(grams) for grams in sets], dtype=np.float32)
    similar_NN = common_NN / (sizes[:, None] + sizes[None, :] - common_NN)
    np.fill_diagonal(similar_NN, 0)
    return similar_NN
