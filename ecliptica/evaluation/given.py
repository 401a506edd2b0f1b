"""The lines that `score`, `generate` and `kl` are given: a prompt with or without instruction, a
chat list as prompt, or a context that is rendered text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ecliptica.data.formats.messages import context_of_chat
from ecliptica.evaluation.scoring import Loaded, context_ids, response_ids
from ecliptica.fields import text, texts
from model.errors import InputError


@dataclass(frozen=True)
class Given:
    """One line."""

    where: str  # file:line
    record: dict[str, Any]
    prompt: str | None = None
    instruction: str | None = None
    context: str | None = None  # rendered; None where there is a prompt
    responses: tuple[str, ...] = ()
    turns: tuple[tuple[str, str], ...] = ()  # earlier (user, assistant) texts


def parse(record: dict[str, Any], where: str, rendered: bool, responses: bool = True) -> Given:
    """rendered: the line has a context instead of a prompt. responses: it needs some. Raises
    InputError that names the line."""
    given = texts(record, "responses", where, least=1) if responses else ()
    if rendered:
        return Given(where, record, context=text(record, "context", where), responses=given)
    if "context" in record and "prompt" not in record:
        raise InputError(
            f"{where}: 'context' is rendered text and needs --template none; with a template give "
            "'prompt'"
        )
    if isinstance(record.get("prompt"), list):
        instruction, turns, prompt = context_of_chat(record, "prompt", where)
        return Given(where, record, prompt, instruction, responses=given, turns=turns)
    prompt = text(record, "prompt", where)
    instruction = text(record, "instruction", where, required=False)
    return Given(where, record, prompt, instruction, responses=given)


def context_of(system: Loaded, line: Given) -> list[int]:
    if system.template is None:
        return system.tokenizer.encode_rendered(line.context)
    return context_ids(system, line.prompt, line.instruction, line.turns)


def encode_response(system: Loaded, response: str) -> list[int]:
    if system.template is None:
        return system.tokenizer.encode_rendered(response)
    return response_ids(system, response)


def check_room(system: Loaded, line: Given, context: Sequence[int], new_tokens: int) -> None:
    """Raises InputError for a context that leaves the model's window no room for a response."""
    if not 0 < len(context) <= system.window - new_tokens:
        raise InputError(
            f"{line.where}: {len(context)} tokens and {new_tokens} new ones; the model's window is "
            f"{system.window}"
        )
