"""Example-based format, paper 4.3: {"prompt", "chosen", "rejected"[, "id"]}, no instruction."""

from ecliptica.fields import Record, distinct, identity, text
from ecliptica.schema import Preference


def read(record: Record, where: str) -> Preference:
    """The preference of a line. Raises InputError for a field that is wrong."""
    chosen = text(record, "chosen", where)
    return Preference(
        id=identity(record, where),
        prompt=text(record, "prompt", where),
        responses=distinct(chosen, text(record, "rejected", where), where),
    )
