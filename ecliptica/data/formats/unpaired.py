"""{"prompt", "response", "label": true | false[, "instruction", "id"]}: one response a line, and
whether it is a good one under its instruction. Read by objective.name = "kto".

An instruction that is absent or blank is none.
"""

from ecliptica.fields import Record, identity, optional_text, text
from ecliptica.schema import Preference
from model.errors import InputError


def read(record: Record, where: str) -> Preference:
    """The labelled response of a line, of score 1 (good) or 0. Raises InputError for a wrong
    field."""
    label = record.get("label")
    if type(label) is not bool:
        found = "it is missing" if "label" not in record else f"got {str(label)[:40]!r}"
        raise InputError(f"{where}: 'label' must be true or false, {found}")
    return Preference(
        id=identity(record, where),
        prompt=text(record, "prompt", where),
        responses=(text(record, "response", where),),
        scores=(float(label),),
        instruction=optional_text(record, "instruction", where),
    )
