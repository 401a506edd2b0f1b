"""{"instruction", "prompt", "chosen", "rejected"[, "rationale", "id"]}, or "responses" and "scores" for more than two."""

from ecliptica.fields import distinct, text, texts
from ecliptica.schema import Preference
from model.errors import InputError


def read(record, where):
    if "responses" in record:
        responses, scores = _ranked(record, where)
    else:
        responses, scores = (
            distinct(text(record, "chosen", where), text(record, "rejected", where), where),
            (1.0, 0.0),
        )
    return Preference(
        id=text(record, "id", where, required=False) or where,
        prompt=text(record, "prompt", where),
        responses=responses,
        scores=scores,
        instruction=text(record, "instruction", where, required=False),
        rationale=text(record, "rationale", where, required=False),
    )


def _ranked(record, where):
    """Responses by score, best first; ties keep their order."""
    responses, scores = texts(record, "responses", where, least=2), record.get("scores")
    if (
        not isinstance(scores, list)
        or len(scores) != len(responses)
        or not all(type(s) in (int, float) for s in scores)
    ):
        raise InputError(
            f"{where}: 'scores' must be a list of {len(responses)} numbers, one for each of 'responses'"
        )
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    if scores[order[0]] == scores[order[-1]] or len(set(responses)) < len(responses):
        raise InputError(
            f"{where}: 'responses' must differ and 'scores' must not all be equal: there is no preference in them"
        )
    return tuple(responses[i] for i in order), tuple(float(scores[i]) for i in order)
