"""Where does the model refuse, and does the policy move that line? Refusal boundary on borderline
requests, with floor and ceiling.

By likelihood of authored refusals and compliances; a harmful request's compliance shows the stance
alone.
"""

from dataclasses import dataclass
from functools import partial

from ecliptica.config import option
from ecliptica.evaluation.metrics import refusal_boundary
from ecliptica.evaluation.policy_suites import (
    PolicyOptions,
    choices,
    limited,
    unsigned_details,
    wording_of,
)
from ecliptica.evaluation.suites import Study, Suite
from ecliptica.isd.sets import SETS, load_safety


@dataclass(frozen=True)
class Options(PolicyOptions):
    data: str = option(
        str(SETS / "safety.jsonl"),
        "JSON lines: id, kind, class, prompt, refusal, compliance",
        default_text="the shipped ones",
    )
    policies: str = option(
        str(SETS / "safety_policies.toml"),
        "TOML with strict and permissive",
        default_text="the shipped ones",
    )


def prepare(options: Options) -> Study:
    items = limited(load_safety(options.data), options.limit)
    policies = wording_of(options.policies, ("strict", "permissive"), options.wording)
    units = choices(items, policies, "refusal", "compliance")
    return Study(
        units=units,
        metrics=refusal_boundary.METRICS,
        unit="requests",
        details=partial(unsigned_details, "M3", units, policies),
    )


SUITE = Suite("refusal", Options, prepare, lambda: refusal_boundary.METRICS)
