"""Contrastive pairs of the bank: a reference response against one that is wrong here, although it
is good elsewhere.

The chosen response is y_{x,j}, written for prompt x under instruction j. Rejected, in equal parts:
  sibling  y_{x,k}, the same prompt under another instruction;
  hard     y_{x,k} as a model's scores choose it (ecliptica/isd/hard.py); left out where there are
           no scores;
  prompt   y_{x',j}, the same instruction at another prompt, which is what stops a model from
           ignoring the prompt.
Each kind is a permutation without a fixed point, so that every response is rejected as often as
chosen: none is good or bad in itself.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from ecliptica.fields import distinct
from ecliptica.isd.bank import Entry, Wordings, own_wording, referenced
from ecliptica.isd.hard import hardest
from model.errors import InputError

Item = TypeVar("Item")


def pairs(
    entries: Sequence[Entry],
    instructions: Mapping[str, Wordings],
    split: str,
    seed: int = 0,
    rounds: int = 1,
    scores: Mapping[str, np.ndarray] | None = None,
) -> list[dict[str, Any]]:
    """Preferences of a split as `cita` records, in an order that the seed decides.

    Two of a response and round, three with `scores` ({prompt id: [[s(j, k, x)]]}, see
    hard.read_scores), whose hard part is the same in every round. Raises InputError where there is
    nothing to contrast: fewer than two instructions or two prompts with references in the split.
    """
    names = list(instructions)
    answered = referenced([entry for entry in entries if entry.split == split], names)
    if len(answered) < 2 or len(names) < 2:
        raise InputError(
            f"split {split!r}: {len(answered)} prompts with reference responses and {len(names)} "
            "instructions; pairs need at least two of each"
        )
    generator = random.Random(f"{seed} {split}")
    hard = {}
    if scores is not None:
        hard = {entry.id: hardest(_of(scores, entry.id)) for entry in answered}
    texts = {name: own_wording(split, wordings) for name, wordings in instructions.items()}

    records = []
    for number in range(rounds):
        sibling = {entry.id: _derangement(names, generator) for entry in answered}
        elsewhere = {name: _derangement(answered, generator) for name in names}
        for at, entry in enumerate(answered):
            for k, name in enumerate(names):
                rejected = {
                    "sibling": entry.responses[sibling[entry.id][k]],
                    "prompt": elsewhere[name][at].responses[name],
                }
                if hard:
                    rejected["hard"] = entry.responses[names[hard[entry.id][k]]]
                for kind, text in rejected.items():
                    where = f"{entry.id}/{name}/{kind}-{number}"
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
