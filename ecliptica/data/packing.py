"""From preferences to packed batches: encode, cut to fit, and lay `prompt | response 1 | response 2 | ...` in one row."""

import torch

from ecliptica.data.templates import encode_pieces, render_context, response_pieces
from ecliptica.schema import Encoded, PackedBatch


def encode(preference, tokenizer, template, config, counts, count=None):
    """An Encoded that fits `config.max_tokens` (context + longest response), or None if it cannot without losing what matters.

    The instruction is kept whole; the prompt is cut from the left, the same for every response; then responses are cut
    on the right, and a cut response gets no end-of-turn token. config: a DataConfig; `count`: how many responses are wanted
    (None: all); `counts`: takes note of what was cut or dropped.
    """
    rejected = preference.responses[1] if config.contrastive else None
    responses = [
        encode_pieces(tokenizer, response_pieces(template, r)) for r in preference.responses[:count]
    ]

    def context_of(prompt):
        return encode_pieces(
            tokenizer,
            render_context(template, prompt, preference.instruction, preference.turns, rejected),
        )

    context, longest = context_of(preference.prompt), max(map(len, responses))
    if len(context) + longest > config.max_tokens:
        prompt_ids = tokenizer.encode(preference.prompt)
        fixed, cut = len(context) - len(prompt_ids), 0
        target = max(
            config.max_tokens - longest, fixed + min(config.keep_prompt_tokens, len(prompt_ids))
        )
        while len(context) > target and cut < len(prompt_ids):
            cut = min(cut + len(context) - target, len(prompt_ids))
            context = context_of(tokenizer.decode(prompt_ids[cut:]).lstrip("\ufffd"))
        room = config.max_tokens - len(context)
        if room < 1 or cut == len(prompt_ids) > 0:
            counts.dropped.append(preference.id)
            return None
        counts.prompts_cut += cut > 0
        counts.responses_cut += sum(len(r) > room for r in responses)
        responses = [r[:room] for r in responses]
    if len(responses) > 1 and responses[0] == responses[1]:
        counts.dropped.append(preference.id)
        return None
    counts.kept += 1
    scores = preference.scores[: len(responses)]
    return Encoded(preference.id, tuple(context), tuple(map(tuple, responses)), scores)


def pack(examples):
    """One PackedBatch of several Encoded. Masks come from lengths alone, never from token values (pad may equal eos)."""
    columns = {
        name: []
        for name in (
            "tokens",
            "positions",
            "document",
            "branch",
            "rows",
            "targets",
            "segments",
            "owner",
            "scores",
        )
    }

    def add(ids, first_position, document, branch):
        columns["tokens"].extend(ids)
        columns["positions"].extend(range(first_position, first_position + len(ids)))
        columns["document"].extend([document] * len(ids))
        columns["branch"].extend([branch] * len(ids))

    for document, example in enumerate(examples):
        add(example.context, 0, document, 0)
        last_of_prompt = len(columns["tokens"]) - 1
        for branch, response in enumerate(example.responses, start=1):
            start = len(columns["tokens"])
            add(response, len(example.context), document, branch)
            columns["rows"].extend([last_of_prompt, *range(start, start + len(response) - 1)])
            columns["targets"].extend(response)
            columns["segments"].extend([len(columns["owner"])] * len(response))
            columns["owner"].append(document)
        columns["scores"].extend(example.scores)
    x = {
        name: torch.tensor(values, dtype=torch.float32 if name == "scores" else torch.int64)
        for name, values in columns.items()
    }
    return PackedBatch(
        tokens_T=x["tokens"],
        positions_T=x["positions"],
        document_T=x["document"],
        branch_T=x["branch"],
        rows_R=x["rows"],
        targets_R=x["targets"],
        segments_R=x["segments"],
        owner_S=x["owner"],
        scores_S=x["scores"],
        ids=tuple(example.id for example in examples),
        keys=tuple(example.key for example in examples),
    )


def by_budget(examples, max_tokens):
    """Groups of indices whose packed tokens fit `max_tokens`, similar lengths together (a longer single one goes alone)."""
    groups, size = [], 0
    for index in sorted(range(len(examples)), key=lambda i: -examples[i].tokens):
        if not groups or size + examples[index].tokens > max_tokens:
            groups.append([])
            size = 0
        groups[-1].append(index)
        size += examples[index].tokens
    return groups
