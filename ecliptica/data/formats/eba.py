"""Example-based format, paper 4.3: {"prompt", "chosen", "rejected"}, no instruction."""

from ecliptica.fields import distinct, text
from ecliptica.schema import Preference


def read(record, where):
    return Preference(
        id=text(record, "id", where, required=False) or where,
        prompt=text(record, "prompt", where),
        responses=distinct(text(record, "chosen", where), text(record, "rejected", where), where),
    )
