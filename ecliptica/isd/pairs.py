"""Contrastive pairs of the bank: a reference response against one that is wrong here, although it
is good elsewhere.

The chosen response is y_{x,j}, written for prompt x under instruction j. Rejected, in equal parts:
  sibling  y_{x,k}, the same prompt under another instruction;
  hard     y_{x,k} as a model's scores choose it (ecliptica/isd/hard.py); left out where there are
           no scores;
  prompt   y_{x',j}, the same instruction at another prompt, which is what stops a model from
           ignoring the prompt;
  random   y_{x',k}, any response to another prompt, as MIPO has it; only where it is asked for.
Each kind is a permutation without a fixed point, so that every response is rejected as often as
chosen: none is good or bad in itself.

With families of instructions a prompt is not paired under every instruction but once for each
family, under an instruction drawn from it: j is then the family's, at every prompt its own.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ecliptica.fields import distinct
from ecliptica.isd.bank import Entry, Wordings, own_wording, referenced
from ecliptica.isd.hard import hardest
from model.errors import InputError

Item = TypeVar("Item")
Families = Mapping[str, Sequence[str]]  # {family: ids of its instructions}
NEGATIVES = ("sibling", "hard", "prompt", "random")
DEFAULT = ("sibling", "prompt")


@dataclass(frozen=True)
class Pairing:
    """How responses are paired up."""

    seed: int = 0
    rounds: int = 1  # how often a response is chosen against a rejected one of each kind
    negatives: Sequence[str] = DEFAULT  # kinds of rejected responses; scores add the hard ones
    families: Families | None = None  # one instruction drawn from each; None: all of them

    def kinds(self, scores: Any) -> list[str]:
        """The kinds of rejected responses. Raises InputError for one that there is not."""
        for name in self.negatives:
            if name not in NEGATIVES:
                raise InputError(
                    f"negatives: expected some of {', '.join(NEGATIVES)}, got {name!r}"
                )
        if "hard" in self.negatives and scores is None:
            raise InputError(
                "negatives: hard ones are chosen by a model's scores: give the samples.jsonl of "
                "`eval.py switch --split train` (data.isd_scores, or --scores)"
            )
        if not self.negatives:
            raise InputError(f"negatives: none; expected some of {', '.join(NEGATIVES)}")
        added = ["hard"] if scores is not None else []
        return list(dict.fromkeys([*self.negatives, *added]))


PLAIN = Pairing()


def pairs(
    entries: Sequence[Entry],
    instructions: Mapping[str, Wordings],
    split: str,
    pairing: Pairing = PLAIN,
    scores: Mapping[str, np.ndarray] | None = None,
) -> list[dict[str, Any]]:
    """Preferences of a split as `cita` records, in an order that the seed decides.

    One of a response, kind and round. scores: {prompt id: [[s(j, k, x)]]}, see hard.read_scores;
    its part is the same in every round. Raises InputError where there is nothing to contrast: fewer
    than two instructions (or families) or two prompts with references in the split.
    """
    kinds = pairing.kinds(scores)
    names = list(instructions)
    answered = referenced([entry for entry in entries if entry.split == split], names)
    if len(answered) < 2 or len(names) < 2:
        raise InputError(
            f"split {split!r}: {len(answered)} prompts with reference responses and {len(names)} "
            "instructions; pairs need at least two of each"
        )
    generator = random.Random(f"{pairing.seed} {split}")
    # Draws of their own, so that what has none of these is paired as it always was.
    extra = random.Random(f"{pairing.seed} {split} families, random")
    texts = {name: own_wording(split, wordings) for name, wordings in instructions.items()}

    records = []
    for number in range(pairing.rounds):
        square = Square.drawn(answered, names, pairing.families, extra)
        rejected = {
            "sibling": square.siblings(generator),
            "prompt": square.elsewhere(generator),
        }
        if "random" in kinds:
            rejected["random"] = square.anywhere(extra)
        if "hard" in kinds:
            rejected["hard"] = square.hardest(scores, names)
        for at, column in square.cells():
            entry, name = answered[at], square.names[at][column]
            for kind in kinds:
                where = f"{entry.id}/{name}/{kind}-{number}"
                other, other_column = rejected[kind][at, column]
                text = square.response(other, other_column)
                distinct(entry.responses[name], text, where)
                record = {
                    "id": where,
                    "instruction": texts[name],
                    "prompt": entry.prompt,
                    "chosen": entry.responses[name],
                    "rejected": text,
                }
                records.append(record)
    generator.shuffle(records)
    return records


Cell = tuple[int, int]  # (number of the prompt, column)


@dataclass(frozen=True)
class Square:
    """The responses that are paired: a row a prompt, a column an instruction, or a family with the
    instruction that was drawn from it for this prompt."""

    entries: Sequence[Entry]
    names: Sequence[Sequence[str]]  # of each prompt: the instruction of each column

    @classmethod
    def drawn(
        cls,
        entries: Sequence[Entry],
        names: Sequence[str],
        families: Families | None,
        generator: random.Random,
    ) -> "Square":
        if families is None:
            return cls(entries, [names] * len(entries))
        drawn = []
        for _ in entries:
            drawn.append([generator.choice(list(members)) for members in families.values()])
        return cls(entries, drawn)

    @property
    def columns(self) -> int:
        return len(self.names[0])

    def cells(self) -> Iterator[Cell]:
        for at in range(len(self.entries)):
            for column in range(self.columns):
                yield at, column

    def response(self, at: int, column: int) -> str:
        return self.entries[at].responses[self.names[at][column]]

    def siblings(self, generator: random.Random) -> dict[Cell, Cell]:
        """The same prompt, another column."""
        image = {}
        for at in range(len(self.entries)):
            others = _derangement(range(self.columns), generator)
            image |= {(at, column): (at, other) for column, other in enumerate(others)}
        return image

    def elsewhere(self, generator: random.Random) -> dict[Cell, Cell]:
        """Another prompt, the same column."""
        image = {}
        for column in range(self.columns):
            others = _derangement(range(len(self.entries)), generator)
            image |= {(at, column): (other, column) for at, other in enumerate(others)}
        return image

    def anywhere(self, generator: random.Random) -> dict[Cell, Cell]:
        """Another prompt, whichever column: the columns of every prompt are dealt out anew."""
        image = {}
        dealt = []
        for _ in self.entries:
            dealt.append(generator.sample(range(self.columns), self.columns))
        for cell, (other, column) in self.elsewhere(generator).items():
            image[cell] = (other, dealt[other][column])
        return image

    def hardest(self, scores: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[Cell, Cell]:
        """The same prompt, the column that its scores confuse with this one."""
        image = {}
        for at, entry in enumerate(self.entries):
            own = [names.index(name) for name in self.names[at]]
            s_JK = _of(scores, entry.id)[np.ix_(own, own)]
            image |= {(at, column): (at, other) for column, other in enumerate(hardest(s_JK))}
        return image


def _of(scores: Mapping[str, np.ndarray], prompt: str) -> np.ndarray:
    if prompt not in scores:
        raise InputError(
            f"the scores have no cell of the prompt {prompt}; score the same bank and split: "
            "eval.py switch --split SPLIT"
        )
    return scores[prompt]


def _derangement(items: Sequence[Item], generator: random.Random) -> list[Item]:
    """A cyclic shift of a random order: a permutation that leaves nothing in its place."""
    order = generator.sample(range(len(items)), len(items))
    shifted = [*order[1:], order[0]]
    image = dict(zip(order, shifted))
    return [items[image[at]] for at in range(len(items))]
