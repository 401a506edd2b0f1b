"""Chat templates: how (instruction, turns, prompt) becomes the context, and what closes a response.

A rendered context is a tuple of pieces: `Control` for control tokens, `str` for everything else,
which the tokenizer then never reads as one. Paper 4.1 (ITA), 4.2 (contrastive ITA).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from model.errors import InputError
from model.tokenizer import Tokenizer


@dataclass(frozen=True)
class Control:
    """A control token, by its text."""

    text: str


Piece = Control | str
PLACES = ("user", "system")  # where the alignment instruction may stand


@dataclass(frozen=True)
class Turn:
    """What a user says, under an instruction or none, and the answer to it, if there is one."""

    prompt: str
    instruction: str | None = None
    answer: str | None = None


# Stands for the model's own end-of-sequence token, whatever it is called.
EOS = Control("<end of sequence>")


@dataclass(frozen=True)
class Template:
    name: str
    bos: str | None  # exactly one, at the very start
    user_open: tuple[Piece, ...]
    user_close: tuple[Piece, ...]  # up to where the assistant's text begins
    end: str | None  # the end-of-turn token; None: the model's own end-of-sequence token
    before_end: str = ""  # text between the response and its end-of-turn token
    after_end: str = ""  # text between an end of turn and the next turn
    # What stands before and behind a system text; None: this format has no place for one.
    system_open: tuple[Piece, ...] | None = None
    system_close: tuple[Piece, ...] = ()
    instruction_in: str = "user"  # which of PLACES

    def conversation(self, turns: Sequence[Turn]) -> tuple[Piece, ...]:
        """The pieces up to where the answer to the last turn begins; see `history`."""
        last = turns[-1]
        return render_context(self, last.prompt, last.instruction, history(turns[:-1]))


def _headers(role: str, newlines: str) -> tuple[Piece, ...]:
    return Control("<|start_header_id|>"), role, Control("<|end_header_id|>"), newlines


TEMPLATES = {
    t.name: t
    for t in (
        Template(
            "llama3",
            "<|begin_of_text|>",
            _headers("user", "\n\n"),
            (Control("<|eot_id|>"), *_headers("assistant", "\n\n")),
            "<|eot_id|>",
            system_open=_headers("system", "\n\n"),
            system_close=(Control("<|eot_id|>"),),
        ),
        Template(
            "chatml",
            None,
            (Control("<|im_start|>"), "user\n"),
            (Control("<|im_end|>"), "\n", Control("<|im_start|>"), "assistant\n"),
            "<|im_end|>",
            after_end="\n",
            system_open=(Control("<|im_start|>"), "system\n"),
            system_close=(Control("<|im_end|>"), "\n"),
        ),
        # As printed: one newline after each header, a newline before each end of turn, no BOS.
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
            # Where Alpaca's preamble stands, before the first heading.
            system_open=(),
            system_close=("\n\n",),
        ),
    )
}


def body(
    prompt: str,
    instruction: str | None = None,
    rejected: str | None = None,
    rationale: str | None = None,
) -> str:
    """The user's turn.

    With `rejected`, contrastive ITA: the bad response is shown, the reason of its rejection where
    there is one, and the better one asked for.
    """
    text = prompt
    if instruction is not None:
        text = f"### Alignment Instruction:\n{instruction}\n\n### User Prompt:\n{prompt}"
    if rejected is not None:
        text += f"\n\n### Rejected Response (Bad):\n{rejected}"
        if rationale is not None:
            text += f"\n\n### Reason for the Rejection:\n{rationale}"
        text += "\n\n### What's expected instead?"
    return text


def history(turns: Iterable[Turn]) -> tuple[tuple[str, str], ...]:
    """Answered turns as (user, assistant) texts.

    Each keeps the instruction it was asked under, so what was said once is never said otherwise.
    """
    return tuple((body(turn.prompt, turn.instruction), turn.answer) for turn in turns)


def get_template(name: str, tokenizer: Tokenizer, instruction_in: str = "user") -> Template:
    """The template of this name, with the instruction in its user or system turn.

    Raises InputError: a control token the tokenizer does not have, or no system turn.
    """
    if name not in TEMPLATES:
        raise InputError(f"template: expected one of {', '.join(TEMPLATES)}, got {name!r}")
    template = TEMPLATES[name]
    absent = _absent(template, tokenizer)
    if absent:
        fitting = [t.name for t in TEMPLATES.values() if not _absent(t, tokenizer)]
        raise InputError(
            f"template {name}: {tokenizer.path} has no token {absent[0]}; "
            f"templates that fit it: {', '.join(fitting)}"
        )
    if template.end is None and not tokenizer.eos_ids:
        raise InputError(
            f"template {name}: the model in {tokenizer.path} names no eos_token_id "
            "to end a response with"
        )
    return placed(template, instruction_in)


def placed(template: Template, instruction_in: str) -> Template:
    """The template with the instruction in another place. Raises InputError where it has none."""
    if instruction_in not in PLACES:
        raise InputError(
            f"instruction_in: expected one of {', '.join(PLACES)}, got {instruction_in!r}"
        )
    if instruction_in == "system" and template.system_open is None:
        able = [t.name for t in TEMPLATES.values() if t.system_open is not None]
        raise InputError(
            f"template {template.name}: it has no system turn for the instruction; use "
            f"instruction_in=user or a template that has one: {', '.join(able)}"
        )
    return replace(template, instruction_in=instruction_in)


def _absent(template: Template, tokenizer: Tokenizer) -> list[str]:
    """The control tokens of a template that a tokenizer does not have."""
    return [text for text in control_texts(template) if tokenizer.token_id(text) is None]


def control_texts(template: Template) -> list[str]:
    """The control tokens that a template writes, but for EOS, which has another text everywhere."""
    pieces = (*template.user_open, *template.user_close)
    texts = [piece.text for piece in pieces if isinstance(piece, Control)]
    return texts + [text for text in (template.bos, template.end) if text]


def render_context(
    template: Template,
    prompt: str,
    instruction: str | None = None,
    turns: Iterable[tuple[str, str]] = (),
    rejected: str | None = None,
    rationale: str | None = None,
) -> tuple[Piece, ...]:
    """The pieces up to where the response begins.

    The instruction stands in the last user turn, next to its prompt, or in a system turn before
    everything else, as the template has it. turns: earlier (user, assistant) texts; rejected,
    rationale: see `body`.
    """
    pieces = [Control(template.bos)] if template.bos else []
    if instruction is not None and template.instruction_in == "system":
        pieces += [*template.system_open, instruction, *template.system_close]
        instruction = None
    for user, assistant in turns:
        pieces += [*template.user_open, user, *template.user_close, assistant, template.before_end]
        pieces += [end_of_turn(template), template.after_end]
    text = body(prompt, instruction, rejected, rationale)
    return (*pieces, *template.user_open, text, *template.user_close)


WHY = "What is wrong with that answer?"


def why_pieces(template: Template) -> tuple[Piece, ...]:
    """The turn between a rejected response and the reason of its rejection."""
    return (template.after_end, *template.user_open, WHY, *template.user_close)


def encode_pieces(tokenizer: Tokenizer, pieces: Iterable[Piece]) -> list[int]:
    """Token ids: those of the rendered text, but no plain piece makes a control token."""
    parts = []
    for piece in pieces:
        if piece is EOS:
            parts.append(tokenizer.eos_ids[0])
        elif isinstance(piece, Control):
            parts.append(tokenizer.token_id(piece.text))
        else:
            parts.append(piece)
    return tokenizer.encode_parts(parts)


def end_of_turn(template: Template) -> Control:
    """The token that closes a response."""
    return Control(template.end) if template.end else EOS


def response_pieces(template: Template, response: str) -> tuple[Piece, ...]:
    """The response and its end of turn.

    Encoded apart from the context: no token merges across the boundary.
    """
    return response + template.before_end, end_of_turn(template)


def stop_ids(template: Template | None, tokenizer: Tokenizer) -> set[int]:
    """Tokens that end a generation: the model's own list, and the template's end of turn."""
    ends = [tokenizer.token_id(template.end)] if template and template.end else []
    return {*tokenizer.eos_ids, *ends}


def as_text(pieces: Iterable[Piece]) -> str:
    """The pieces as one string, for records and for peers that tokenize rendered text."""
    return "".join(piece if isinstance(piece, str) else piece.text for piece in pieces)
