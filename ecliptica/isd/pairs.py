"""Contrastive pairs of the bank: a reference response against one that is wrong here, although it is good elsewhere.

The chosen response is y_{x,j}, written for prompt x under instruction j. Rejected, in equal parts:
  sibling  y_{x,k}, the same prompt under another instruction;
  hard     y_{x,k} as a model's scores choose it (ecliptica/isd/hard.py); left out where there are no scores;
  prompt   y_{x',j}, the same instruction at another prompt, which is what stops a model from ignoring the prompt.
Each kind is a permutation without a fixed point, so that every response is rejected as often as chosen: none is good or bad in itself.
"""

import random

from ecliptica.fields import distinct
from ecliptica.isd.bank import own_wording, referenced
from ecliptica.isd.hard import hardest
from model.errors import InputError


def pairs(entries, instructions, split, seed=0, rounds=1, scores=None):
    """Preferences of a split as `cita` records, in an order that the seed decides. Two of a response and round, three with `scores`
    ({prompt id: [[s(j, k, x)]]}, see hard.read_scores), whose hard part is the same in every round.

    Raises InputError where there is nothing to contrast: fewer than two instructions or two prompts with references in the split."""
    names = list(instructions)
    chosen_entries = referenced([entry for entry in entries if entry.split == split], names)
    if len(chosen_entries) < 2 or len(names) < 2:
        raise InputError(
            f"split {split!r}: {len(chosen_entries)} prompts with reference responses and {len(names)} instructions; pairs need at least two of each"
        )
    generator, made = random.Random(f"{seed} {split}"), []
    hard = (
        {}
        if scores is None
        else {entry.id: hardest(_of(scores, entry.id)) for entry in chosen_entries}
    )
    for number in range(rounds):
        sibling = {entry.id: _derangement(names, generator) for entry in chosen_entries}
        other = {name: _derangement(chosen_entries, generator) for name in names}
        for at, entry in enumerate(chosen_entries):
            for k, name in enumerate(names):
                rejected = {
                    "sibling": entry.responses[sibling[entry.id][k]],
                    "prompt": other[name][at].responses[name],
                }
                if hard:
                    rejected["hard"] = entry.responses[names[hard[entry.id][k]]]
                for kind, text in rejected.items():
                    distinct(entry.responses[name], text, f"{entry.id}/{name}/{kind}-{number}")
                made += [
                    {
                        "id": f"{entry.id}/{name}/{kind}-{number}",
                        "instruction": own_wording(split, instructions[name]),
                        "prompt": entry.prompt,
                        "chosen": entry.responses[name],
                        "rejected": text,
                    }
                    for kind, text in rejected.items()
                ]
    generator.shuffle(made)
    return made


def _of(scores, prompt):
    if prompt not in scores:
        raise InputError(
            f"the scores have no cell of the prompt {prompt}; score the same bank and split: eval.py switch --split SPLIT"
        )
    return scores[prompt]


def _derangement(items, generator):
    """A cyclic shift of a random order: a permutation that leaves nothing in its place."""
    order = generator.sample(range(len(items)), len(items))
    image = {order[i]: order[(i + 1) % len(order)] for i in range(len(order))}
    return [items[image[i]] for i in range(len(items))]
