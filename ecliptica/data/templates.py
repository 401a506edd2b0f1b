"""Chat templates: how (instruction, turns, prompt) becomes the context, and what closes a response.

A rendered context is a tuple of pieces: `Control` for special tokens, `str` for everything else, so that no user text
is ever read as a control token. Paper 4.1 (ITA), 4.2 (contrastive ITA).
"""

from dataclasses import dataclass

from model.errors import InputError


@dataclass(frozen=True)
class Control:
    text: str


EOS = Control(
    "<end of sequence>"
)  # stands for the model's own end-of-sequence token, whatever it is called


@dataclass(frozen=True)
class Template:
    name: str
    bos: str | None  # exactly one, at the very start
    user_open: tuple
    user_close: tuple  # up to where the assistant's text begins
    end: str | None  # the end-of-turn token; None: the model's own end-of-sequence token
    before_end: str = ""  # text between the response and its end-of-turn token
    after_end: str = ""  # text between an end of turn and the next turn


def _headers(role, newlines):
    return (Control("<|start_header_id|>"), role, Control("<|end_header_id|>"), newlines)


TEMPLATES = {
    t.name: t
    for t in (
        Template(
            "llama3",
            "<|begin_of_text|>",
            _headers("user", "\n\n"),
            (Control("<|eot_id|>"), *_headers("assistant", "\n\n")),
            "<|eot_id|>",
        ),
        Template(
            "chatml",
            None,
            (Control("<|im_start|>"), "user\n"),
            (Control("<|im_end|>"), "\n", Control("<|im_start|>"), "assistant\n"),
            "<|im_end|>",
            after_end="\n",
        ),
        # as printed: one newline after each header, a newline before each end of turn, no BOS
        Template(
            "paper",
            None,
            _headers("user", "\n"),
            ("\n", Control("<|eot_id|>"), "\n", *_headers("assistant", "\n")),
            "<|eot_id|>",
            before_end="\n",
            after_end="\n",
        ),
        Template(
            "alpaca",
            None,
            ("### Instruction:\n",),
            ("\n\n### Response:\n",),
            None,
            after_end="\n\n",
        ),
    )
}


def body(prompt, instruction=None, rejected=None):
    """The user's turn. With `rejected`, contrastive ITA: the bad response is shown and the better one asked for."""
    text = (
        prompt
        if instruction is None
        else f"### Alignment Instruction:\n{instruction}\n\n### User Prompt:\n{prompt}"
    )
    if rejected is not None:
        text += f"\n\n### Rejected Response (Bad):\n{rejected}\n\n### What's expected instead?"
    return text


def get_template(name, tokenizer):
    """The template, checked against the tokenizer: every control token it writes must exist there."""
    if name not in TEMPLATES:
        raise InputError(f"template: expected one of {', '.join(TEMPLATES)}, got {name!r}")
    template = TEMPLATES[name]
    absent = [text for text in _control_texts(template) if tokenizer.token_id(text) is None]
    if absent:
        fits = [
            t.name
            for t in TEMPLATES.values()
            if all(tokenizer.token_id(c) is not None for c in _control_texts(t))
        ]
        raise InputError(
            f"template {name}: {tokenizer.path} has no token {absent[0]}; templates that fit it: {', '.join(fits)}"
        )
    if template.end is None and not tokenizer.eos_ids:
        raise InputError(
            f"template {name}: the model in {tokenizer.path} names no eos_token_id to end a response with"
        )
    return template


def _control_texts(template):
    pieces = (*template.user_open, *template.user_close)
    return [p.text for p in pieces if isinstance(p, Control)] + [
        t for t in (template.bos, template.end) if t
    ]


def render_context(template, prompt, instruction=None, turns=(), rejected=None):
    """The pieces up to where the response begins. The instruction stands in the last user turn, next to its prompt."""
    pieces = [Control(template.bos)] if template.bos else []
    for user, assistant in turns:
        pieces += [*template.user_open, user, *template.user_close, assistant, template.before_end]
        pieces += [end_of_turn(template), template.after_end]
    return (*pieces, *template.user_open, body(prompt, instruction, rejected), *template.user_close)


def encode_pieces(tokenizer, pieces):
    """Token ids. Text between two control tokens is encoded as one string, specials disabled: as the chat format defines it."""
    ids, text = [], ""
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
            continue
        ids += tokenizer.encode(text) if text else []
        text = ""
        ids.append(tokenizer.eos_ids[0] if piece is EOS else tokenizer.token_id(piece.text))
    return ids + (tokenizer.encode(text) if text else [])


def end_of_turn(template):
    return Control(template.end) if template.end else EOS


def response_pieces(template, response):
    """The response and its end of turn. Encoded apart from the context: no token merges across the boundary."""
    return response + template.before_end, end_of_turn(template)


def stop_ids(template, tokenizer):
    """Tokens that end a generation: the model's own list (generation_config.json), and the template's end of turn."""
    ends = [tokenizer.token_id(template.end)] if template and template.end else []
    return {*tokenizer.eos_ids, *ends}


def as_text(pieces):
    """The pieces as one string, for records and for peers that tokenize rendered text."""
    return "".join(piece if isinstance(piece, str) else piece.text for piece in pieces)
