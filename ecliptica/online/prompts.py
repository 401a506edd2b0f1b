"""The prompts of rollouts: a JSONL file, read and encoded once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ecliptica.data.offline import Data, language
from ecliptica.data.templates import encode_pieces, render_context
from ecliptica.fields import Record, identity, optional_text, text
from ecliptica.files import read_records
from model.errors import InputError


@dataclass(frozen=True)
class Question:
    """One prompt, and the instruction that it is asked under."""

    id: str
    prompt: str
    instruction: str | None
    context: tuple[int, ...] = ()  # token ids, up to where the response begins


def read(path: str) -> list[Question]:
    """The lines of a prompts file. Raises InputError: file, line, field."""
    questions = read_records(path, _question)
    places = {}
    for number, question in enumerate(questions, start=1):
        if question.id in places:
            raise InputError(
                f"{path}: the id {question.id!r} stands in records {places[question.id]} and "
                f"{number}; ids must differ"
            )
        places[question.id] = number
    return questions


def _question(record: Record, where: str) -> Question:
    return Question(
        id=identity(record, where),
        prompt=text(record, "prompt", where),
        instruction=optional_text(record, "instruction", where),
    )


def load(config: Any) -> tuple[Data, list[Question]]:
    """(the model's language, without preferences; the questions that leave room for a response).

    config: the recipe. Raises InputError if no question fits.
    """
    rollout, path = config.rollout, config.rollout.prompts
    questions = read(path)
    tokenizer, template, window = language(config.model.path, config.data)
    room = window - rollout.max_new_tokens
    fitting = []
    for question in questions:
        pieces = render_context(template, question.prompt, question.instruction)
        context = tuple(encode_pieces(tokenizer, pieces))
        if len(context) <= room:
            fitting.append(Question(question.id, question.prompt, question.instruction, context))
    if not fitting:
        raise InputError(
            f"{path}: none of {len(questions)} prompts leaves room for rollout.max_new_tokens="
            f"{rollout.max_new_tokens} in {window} tokens; raise data.max_tokens or shorten them"
        )
    line = (
        f"{path}: {len(fitting)} prompts of {_lengths(fitting)} tokens, "
        f"{len(questions) - len(fitting)} left out as too long"
    )
    return Data(tokenizer, template, [], [], (line,)), fitting


def _lengths(questions: Sequence[Question]) -> str:
    lengths = [len(question.context) for question in questions]
    return f"{min(lengths)} to {max(lengths)}"
