"""From preferences to packed batches: encode, cut to fit, and lay them in one row.

`prompt | response 1 | response 2 | ...`, see docs/method.md.
"""

from collections.abc import Sequence
from typing import Any

import torch

from ecliptica.data.templates import Template, encode_pieces, render_context, response_pieces
from ecliptica.schema import Counts, Encoded, PackedBatch, Preference
from model.attention import common_prefix
from model.errors import InputError
from model.tokenizer import Tokenizer

HEAD = -1  # the document of what all contexts of a batch begin with (model/attention.py)
LEAST_SAVED = 32  # tokens; about what one more call of attention a layer costs on a CPU


def encode(
    preference: Preference,
    tokenizer: Tokenizer,
    template: Template,
    config: Any,
    counts: Counts,
    count: int | None = None,
) -> Encoded | None:
    """A preference that fits `config.max_tokens` (context + longest response).

    None if it cannot without losing what matters. The instruction is kept whole; the prompt is cut
    from the left, the same for every response; then responses are cut on the right, and a cut
    response gets no end-of-turn token. config: a DataConfig; count: how many responses are wanted
    (None: all); counts: takes note of what was cut or dropped.
    """
    rejected = preference.responses[1] if config.contrastive else None
    responses = [
        encode_pieces(tokenizer, response_pieces(template, response))
        for response in preference.responses[:count]
    ]
    longest = max(map(len, responses))

    def context_of(prompt):
        pieces = render_context(
            template,
            prompt,
            preference.instruction,
            preference.turns,
            rejected,
            preference.rationale,
        )
        return encode_pieces(tokenizer, pieces)

    context = context_of(preference.prompt)
    if len(context) + longest > config.max_tokens:
        # Cut the prompt, no further than keep_prompt_tokens. What is left of it is encoded anew,
        # and may be a few tokens longer or shorter than it was: hence the loop.
        prompt_ids = tokenizer.encode(preference.prompt)
        fixed = len(context) - len(prompt_ids)
        least = fixed + min(config.keep_prompt_tokens, len(prompt_ids))
        target = max(config.max_tokens - longest, least)
        cut = 0
        while len(context) > target and cut < len(prompt_ids):
            cut = min(cut + len(context) - target, len(prompt_ids))
            context = context_of(tokenizer.decode(prompt_ids[cut:]).lstrip("\ufffd"))

        # Then the responses, to what room is left.
        room = config.max_tokens - len(context)
        if room < 1 or cut == len(prompt_ids) > 0:
            counts.dropped.append(preference.id)
            return None
        counts.prompts_cut += cut > 0
        counts.responses_cut += sum(len(response) > room for response in responses)
        responses = [response[:room] for response in responses]

    if len(responses) > 1 and responses[0] == responses[1]:
        counts.dropped.append(preference.id)
        return None
    counts.kept += 1
    scores = preference.scores[: len(responses)]
    return Encoded(preference.id, tuple(context), tuple(map(tuple, responses)), scores)


def pack(examples: Sequence[Encoded]) -> PackedBatch:
    """Several examples in one row; what all contexts begin with stands before them once.

    Masks come from lengths alone, never from token values (pad may equal eos). Raises InputError
    for a response of no tokens.
    """
    tokens = []
    positions = []
    documents = []
    branches = []
    rows = []
    targets = []
    segments = []
    owners = []
    asides = []  # whether a sequence is a rationale
    scores = []

    def add(ids, first_position, document, branch):
        tokens.extend(ids)
        positions.extend(range(first_position, first_position + len(ids)))
        documents.extend([document] * len(ids))
        branches.extend([branch] * len(ids))

    head = worthwhile_head([example.context for example in examples])
    if head:
        add(examples[0].context[:head], 0, HEAD, 0)
    for document, example in enumerate(examples):
        _check(example)
        add(example.context[head:], head, document, 0)
        last_of_prompt = len(tokens) - 1
        for branch, response in enumerate(example.responses, start=1):
            # The prompt's last token predicts the first of a response, each of that the next.
            start = len(tokens)
            add(response, len(example.context), document, branch)
            rows += [last_of_prompt, *range(start, start + len(response) - 1)]
            targets += response
            segments += [len(owners)] * len(response)
            owners.append(document)
            asides.append(False)
        scores += example.scores
        if example.rationale:
            # A branch of its own, of which the end alone is predicted.
            lead, text = example.rationale
            first = len(tokens) + len(lead) - 1
            add((*lead, *text), len(example.context), document, len(example.responses) + 1)
            rows += range(first, first + len(text))
            targets += text
            segments += [len(owners)] * len(text)
            owners.append(document)
            asides.append(True)
            scores.append(0.0)
    return PackedBatch(
        tokens_T=_ids(tokens),
        positions_T=_ids(positions),
        document_T=_ids(documents),
        branch_T=_ids(branches),
        rows_R=_ids(rows),
        targets_R=_ids(targets),
        segments_R=_ids(segments),
        owner_S=_ids(owners),
        scores_S=torch.tensor(scores, dtype=torch.float32),
        ids=tuple(example.id for example in examples),
        keys=tuple(example.key for example in examples),
        aside_S=torch.tensor(asides) if any(asides) else None,
    )


def worthwhile_head(contexts: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all contexts begin with, leaving at least one of its own to each; 0 where
    computing them once saves less than the attention call that they cost."""
    shared = common_prefix(contexts)
    return shared if shared * (len(contexts) - 1) >= LEAST_SAVED else 0


def _ids(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def by_prefix(examples: Sequence[Encoded], max_tokens: int) -> list[list[int]]:
    """Groups of indices whose packed tokens fit `max_tokens`, contexts that begin alike together.

    In the order of their tokens neighbours share the longest prefixes: of a grid, all prompts of
    one instruction stand together, and `pack` computes the instruction once. A group takes the
    next context while it fits, unless it is half full and would lose more of its head than it
    gains. A longer single one goes alone. Raises InputError for a response of no tokens.
    """
    for example in examples:
        _check(example)
    groups = []
    size = 0
    for index in sorted(range(len(examples)), key=lambda i: examples[i].context):
        own = examples[index].tokens
        if groups:
            together = packed_tokens([examples[i] for i in (*groups[-1], index)])
            worthwhile = size < max_tokens / 2 or together <= size + own
            if together <= max_tokens and worthwhile:
                groups[-1].append(index)
                size = together
                continue
        groups.append([index])
        size = own
    return groups


def packed_tokens(examples: Sequence[Encoded]) -> int:
    """Tokens of the batch that `pack` makes of them."""
    head = worthwhile_head([example.context for example in examples])
    return sum(example.tokens for example in examples) - head * (len(examples) - 1)


def _check(example: Encoded) -> None:
    """Raises InputError for a response of no tokens, which has no log-probability to speak of."""
    for number, response in enumerate(example.responses, start=1):
        if not response:
            raise InputError(
                f"{example.id}: response {number} has no tokens: the tokenizer takes "
                "every character of it away; give another response"
            )
