"""From a file to encoded preferences, and from those to the micro-batches of one rank."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ecliptica.data import formats
from ecliptica.data.packing import encode, pack
from ecliptica.data.templates import Template
from ecliptica.schema import Counts, Encoded, PackedBatch
from model.errors import InputError
from model.tokenizer import Tokenizer


def load_examples(
    path: str,
    config: Any,
    tokenizer: Tokenizer,
    template: Template,
    responses: int | None,
    split: str = "train",
) -> tuple[list[Encoded], Counts]:
    """The preferences of a data file, encoded, and what encoding them cost.

    config: a DataConfig; responses: how many of each preference are wanted (None: all); split:
    which one, where a file has several. Raises InputError if not one fits.
    """
    counts = Counts()
    preferences = formats.read(path, config.format, config.on_error, counts.skipped, config, split)
    examples = []
    for preference in preferences:
        if not config.use_instruction:
            preference = replace(preference, instruction=None)
        example = encode(preference, tokenizer, template, config, counts, responses)
        if example is not None:
            examples.append(example)
    if not examples:
        raise InputError(
            f"{path or config.format}: none of {len(preferences)} preferences fits "
            f"data.max_tokens={config.max_tokens}; raise it or shorten the data"
        )
    return examples, counts


def micro_batches(
    examples: Sequence[Encoded], micro: int, rank: int = 0, world: int = 1
) -> list[PackedBatch]:
    """One rank's packed batches of at most `micro` examples each.

    Every rank gets equally many, because each forward is a collective when the model is sharded:
    where a rank has no example left it gets a filler, which counts for nothing.
    """
    mine = examples[rank::world]
    most = -(-len(examples) // world)
    parts = -(-most // micro)
    cuts = [len(mine) * n // parts for n in range(parts + 1)]
    batches = []
    for start, end in zip(cuts, cuts[1:]):
        if start < end:
            batches.append(pack(mine[start:end]))
        else:
            batches.append(replace(pack(examples[:1]), ids=()))
    return batches
