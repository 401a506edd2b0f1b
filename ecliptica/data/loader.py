"""From a file to encoded preferences, and from those to the micro-batches of one rank."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ecliptica.data import formats
from ecliptica.data.packing import encode, pack
from ecliptica.data.templates import Template, encode_pieces, response_pieces, why_pieces
from ecliptica.objectives.contract import NOTHING_MORE, Needs
from ecliptica.schema import Counts, Encoded, PackedBatch, Preference
from model.errors import InputError
from model.tokenizer import Tokenizer

SIDES = ("chosen", "rejected")


def load_examples(
    path: str,
    config: Any,
    tokenizer: Tokenizer,
    template: Template,
    responses: int | None,
    split: str = "train",
    needs: Needs = NOTHING_MORE,
) -> tuple[list[Encoded], Counts]:
    """The preferences of a data file, encoded, and what encoding them cost.

    config: a DataConfig; responses: how many of each preference are wanted (None: all); split:
    which one, where a file has several; needs: of the objective. Raises InputError if not one fits.
    """
    counts = Counts()
    preferences = formats.read(path, config.format, config.on_error, counts.skipped, config, split)
    if needs.labelled:
        preferences = labelled(preferences, config)
    else:
        check_paired(preferences)
    examples = []
    for preference in preferences:
        if not config.use_instruction:
            preference = replace(preference, instruction=None)
        example = encode(preference, tokenizer, template, config, counts, responses)
        if example is not None and needs.rationale:
            example = with_rationale(example, preference, tokenizer, template, config)
        if example is not None:
            examples.append(example)
    if not examples:
        raise InputError(
            f"{path or config.format}: none of {len(preferences)} preferences fits "
            f"data.max_tokens={config.max_tokens}; raise it or shorten the data"
        )
    if needs.rationale and not any(example.rationale for example in examples):
        raise InputError(
            f"{path or config.format}: no line has a 'rationale' that fits, and "
            "objective.rationale_weight trains on it; leave the key out or give the reasons"
        )
    if needs.labelled:
        examples = [replace(example, window=config.max_tokens) for example in examples]
        if split == "train":
            check_labels(examples, path or config.format)
    return examples, counts


def with_rationale(
    example: Encoded, preference: Preference, tokenizer: Tokenizer, template: Template, config: Any
) -> Encoded:
    """The example with the reason of its rejection behind the rejected response, cut to what
    room is left; as it is where there is none."""
    if preference.rationale is None:
        return example
    why = encode_pieces(tokenizer, why_pieces(template))
    lead = (*example.responses[1], *why)
    text = encode_pieces(tokenizer, response_pieces(template, preference.rationale))
    room = config.max_tokens - len(example.context) - len(lead)
    if room < 1:
        return example
    return replace(example, rationale=(lead, tuple(text[:room])))


# Labelled responses


def labelled(preferences: Sequence[Preference], config: Any) -> list[Preference]:
    """Every labelled response by itself: as the data have it, or of a preference the chosen one as
    good (score 1) and the rejected one as bad (score 0)."""
    if config.contrastive:
        raise InputError(
            "data.contrastive: shows the rejected response of a pair, and this objective reads "
            "single responses with labels; leave it out"
        )
    singles = []
    for preference in preferences:
        if len(preference.responses) == 1:
            singles.append(preference)
            continue
        for side, response, score in zip(SIDES, preference.responses, (1.0, 0.0)):
            single = replace(
                preference,
                id=f"{preference.id}/{side}",
                responses=(response,),
                scores=(score,),
            )
            singles.append(single)
    return singles


def check_paired(preferences: Sequence[Preference]) -> None:
    """InputError for a response without one to compare it with."""
    for preference in preferences:
        if len(preference.responses) < 2:
            raise InputError(
                f"{preference.id}: one response with a label; objective.name=kto reads such data, "
                "every other objective compares at least two responses"
            )


def check_labels(examples: Sequence[Encoded], where: str) -> None:
    """InputError unless there are good and bad responses."""
    good = sum(example.scores[0] > 0 for example in examples)
    if good in (0, len(examples)):
        label = "true" if good else "false"
        raise InputError(
            f"{where}: all {len(examples)} responses are labelled {label}; kto weighs good ones "
            "against bad ones: give both"
        )


def mismatched(examples: Sequence[Encoded]) -> list[Encoded]:
    """Each context with the response of its neighbour: of the example before it, the first's of the
    last, over examples of the same context.

    That is cut to what fits beside the context. Its score is 1; where all contexts are the same
    nothing is mismatched, and it is 0.
    """
    pairs = []
    for number, example in enumerate(examples):
        before = (examples[number - back] for back in range(1, len(examples)))
        other = next((other for other in before if other.context != example.context), None)
        score = 1.0
        if other is None:
            other, score = example, 0.0
        room = example.window - len(example.context)
        response = other.responses[0][:room]
        pairs.append(Encoded(example.id, example.context, (response,), (score,)))
    return pairs


# Micro-batches


def micro_batches(
    examples: Sequence[Encoded], micro: int, rank: int = 0, world: int = 1
) -> list[PackedBatch]:
    """One rank's packed batches of at most `micro` examples each.

    Every rank gets equally many, because each forward is a collective when the model is sharded:
    where a rank has no example left it gets a filler, which counts for nothing.
    """
    mine = examples[rank::world]
    others = []
    if examples[0].window:
        others = mismatched(examples)
    my_others = others[rank::world]
    most = -(-len(examples) // world)
    parts = -(-most // micro)
    cuts = [len(mine) * n // parts for n in range(parts + 1)]
    batches = []
    for start, end in zip(cuts, cuts[1:]):
        if start < end:
            batch = pack(mine[start:end])
            pairs = my_others[start:end]
        else:
            batch = replace(pack(examples[:1]), ids=())
            pairs = others[:1]
        if pairs:
            batch = replace(batch, mismatched=pack(pairs))
        batches.append(batch)
    return batches
