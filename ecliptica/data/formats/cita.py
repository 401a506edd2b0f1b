"""{"instruction", "prompt", "chosen", "rejected"[, "rationale", "id"]}, paper 4.1.

Or "responses" and "scores" for more than two. An empty instruction or rationale is none.
"""

import math
from array import array

from ecliptica.fields import Record, distinct, identity, numbers, optional_text, text, texts
from ecliptica.schema import Preference
from model.errors import InputError


def read(record: Record, where: str) -> Preference:
    """The preference of a line, best response first. Raises InputError for a wrong field."""
    if "responses" in record:
        responses, scores = _ranked(record, where)
    else:
        chosen = text(record, "chosen", where)
        responses = distinct(chosen, text(record, "rejected", where), where)
        scores = (1.0, 0.0)
    return Preference(
        id=identity(record, where),
        prompt=text(record, "prompt", where),
        responses=responses,
        scores=scores,
        instruction=optional_text(record, "instruction", where),
        rationale=optional_text(record, "rationale", where),
    )


def _ranked(record: Record, where: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Responses by score, best first; ties keep their order."""
    responses = texts(record, "responses", where, least=2)
    scores = numbers(record, "scores", where, len(responses))
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    as_trained = array("f", scores)
    if not all(map(math.isfinite, as_trained)):
        raise InputError(f"{where}: 'scores' must be 32-bit numbers, none beyond 3.4e38")
    if max(as_trained) == min(as_trained) or len(set(responses)) < len(responses):
        raise InputError(
            f"{where}: 'responses' must differ and 'scores' must not all be equal "
            "(as 32-bit numbers): there is no preference in them"
        )
    return tuple(responses[i] for i in order), tuple(scores[i] for i in order)
