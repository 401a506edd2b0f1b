"""Does the model abstain when told to be honest, and only where nobody can know? Abstention
difference in differences, and accuracy.

By likelihood of authored answers and abstentions.
"""

from dataclasses import dataclass
from functools import partial

from ecliptica.config import option
from ecliptica.evaluation.metrics import honesty
from ecliptica.evaluation.policy_suites import (
    PolicyOptions,
    choices,
    limited,
    unsigned_details,
    wording_of,
)
from ecliptica.evaluation.suites import Study, Suite
from ecliptica.isd.sets import SETS, load_honesty


@dataclass(frozen=True)
class Options(PolicyOptions):
    data: str = option(
        str(SETS / "honesty.jsonl"),
        "JSON lines: id, class, kind, prompt, answer, abstention",
        default_text="the shipped ones",
    )
    policies: str = option(
        str(SETS / "honesty_policies.toml"),
        "TOML with honest and confident",
        default_text="the shipped ones",
    )


def prepare(options: Options) -> Study:
    items = limited(load_honesty(options.data), options.limit)
    policies = wording_of(options.policies, ("honest", "confident"), options.wording)
    units = choices(items, policies, "abstention", "answer")
    return Study(
        units=units,
        metrics=honesty.METRICS,
        unit="questions",
        details=partial(unsigned_details, "M2", units, policies),
    )


SUITE = Suite("honesty", Options, prepare, lambda: honesty.METRICS)
