"""Chat lists, as public preference sets ship them: [{"role", "content"}, ...].

Either "prompt" is a list (or a string) and "chosen"/"rejected" hold the last answer (a list or a
string), or "chosen" and "rejected" are whole conversations that differ in their last message only.
A system message is the alignment instruction; an empty one is none.
"""

from ecliptica.fields import Record, distinct, identity, optional_text, text
from ecliptica.schema import Preference
from model.errors import InputError

Message = tuple[str, str | None]  # role and content; only a system message may be without
Context = tuple[str | None, tuple[tuple[str, str], ...], str]  # instruction, turns, prompt


def read(record: Record, where: str) -> Preference:
    """The preference of a line. Raises InputError for a conversation that is none."""
    history, chosen = _side(record, "chosen", where)
    other, rejected = _side(record, "rejected", where)
    if history != other:
        raise InputError(f"{where}: 'chosen' and 'rejected' must share every message but the last")

    instruction, turns, prompt = _context(history, where)
    return Preference(
        id=identity(record, where),
        prompt=prompt,
        responses=distinct(chosen, rejected, where),
        instruction=instruction,
        turns=turns,
    )


def context_of_chat(record: Record, key: str, where: str) -> Context:
    """(instruction, earlier turns, prompt) of a chat list that ends with the user's message."""
    return _context(_messages(record, key, where), where)


def _context(history: list[Message], where: str) -> Context:
    """A system message, then turns that end with the user's."""
    instruction = None
    if history and history[0][0] == "system":
        instruction = history[0][1]
        history = history[1:]
    roles = [role for role, _ in history]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise InputError(
            f"{where}: expected [system,] user, assistant, ..., user before the answer, "
            f"got {', '.join(roles) or 'nothing'}"
        )
    contents = [content for _, content in history]
    return instruction, tuple(zip(contents[0:-1:2], contents[1::2])), contents[-1]


def _side(record: Record, key: str, where: str) -> tuple[list[Message], str]:
    """The messages before the answer `key`, and the answer."""
    if isinstance(record.get(key), str):
        messages = [("assistant", text(record, key, where))]
    else:
        messages = _messages(record, key, where)
    role, answer = messages[-1]
    if role != "assistant":
        raise InputError(
            f"{where}: the last message of {key!r} must be the assistant's, got {role!r}"
        )
    history = messages[:-1]
    if not history and isinstance(record.get("prompt"), str):
        history = [("user", text(record, "prompt", where))]
    elif not history and "prompt" in record:
        history = _messages(record, "prompt", where)
    return history, answer


def _messages(record: Record, key: str, where: str) -> list[Message]:
    messages = record.get(key)
    listed = isinstance(messages, list) and messages
    if not listed or not all(isinstance(message, dict) for message in messages):
        raise InputError(
            f"{where}: {key!r} must be a list of {{'role', 'content'}} objects "
            "with at least one in it"
        )
    pairs = []
    for message in messages:
        role = text(message, "role", where)
        content = optional_text if role == "system" else text
        pairs.append((role, content(message, "content", where)))
    return pairs
