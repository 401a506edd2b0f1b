"""Chat lists, as public preference sets ship them: [{"role", "content"}, ...].

Either "prompt" is a list (or a string) and "chosen"/"rejected" hold the last answer (a list or a string), or "chosen" and "rejected"
are whole conversations that differ in their last message only. A system message is the alignment instruction.
"""

from ecliptica.fields import distinct, text
from ecliptica.schema import Preference
from model.errors import InputError


def read(record, where):
    sides = {}
    for key in ("chosen", "rejected"):
        value = record.get(key)
        messages = (
            [{"role": "assistant", "content": value}]
            if isinstance(value, str)
            else _messages(record, key, where)
        )
        if messages[-1]["role"] != "assistant":
            raise InputError(
                f"{where}: the last message of {key!r} must be the assistant's, got {messages[-1]['role']!r}"
            )
        history = messages[:-1]
        if not history and "prompt" in record:
            prompt = record["prompt"]
            history = (
                [{"role": "user", "content": text(record, "prompt", where)}]
                if isinstance(prompt, str)
                else _messages(record, "prompt", where)
            )
        sides[key] = history, messages[-1]["content"]
    (history, chosen), (other, rejected) = sides["chosen"], sides["rejected"]
    if history != other:
        raise InputError(f"{where}: 'chosen' and 'rejected' must share every message but the last")
    instruction = None
    if history and history[0]["role"] == "system":
        instruction, history = history[0]["content"], history[1:]
    roles = [message["role"] for message in history]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise InputError(
            f"{where}: expected [system,] user, assistant, ..., user before the answer, got {', '.join(roles) or 'nothing'}"
        )
    said = [message["content"] for message in history]
    return Preference(
        id=text(record, "id", where, required=False) or where,
        prompt=said[-1],
        responses=distinct(chosen, rejected, where),
        instruction=instruction,
        turns=tuple(zip(said[0:-1:2], said[1::2])),
    )


def _messages(record, key, where):
    messages = record.get(key)
    if (
        not isinstance(messages, list)
        or not messages
        or not all(isinstance(m, dict) for m in messages)
    ):
        raise InputError(
            f"{where}: {key!r} must be a list of {{'role', 'content'}} objects with at least one in it"
        )
    return [
        {"role": text(m, "role", where), "content": text(m, "content", where)} for m in messages
    ]
