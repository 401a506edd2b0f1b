"""What the suites of policies share: options, their units, the published metric beside ours."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ecliptica.config import option
from ecliptica.evaluation.banks import AT_LEAST_ONE
from ecliptica.evaluation.metrics import published
from ecliptica.evaluation.policies import Choice
from ecliptica.evaluation.questions import Question
from ecliptica.evaluation.suites import Asked, Details
from ecliptica.isd.sets import load_policies
from model.errors import InputError


@dataclass(frozen=True)
class PolicyOptions:
    """Of the suites whose instructions are policies, and of `capability`."""

    limit: int | None = option(
        None, "only so many: a quick look, stamped as not reportable", AT_LEAST_ONE
    )
    wording: int = option(
        3, "which wording of the policies, from 1; 1 trains, 2 is for dev, 3 for test"
    )


def choices(items, policies: dict[str, str], first: str, second: str) -> list[Choice]:
    """The units of a set: first and second name the fields of the two responses."""
    count = Counter(item.clazz for item in items)
    units = []
    for item in items:
        pairs = []
        for policy, text in policies.items():
            names = {"prompt": item.id, "instruction": policy}
            pairs.append(
                tuple(
                    Question(item.prompt, text, getattr(item, field), names=names)
                    for field in (first, second)
                )
            )
        units.append(Choice(item.clazz, tuple(pairs), count[item.clazz] / len(items)))
    return units


def limited(items: Sequence, limit: int | None) -> list:
    """The first `limit` items of each class."""
    by_class = {}
    for item in items:
        by_class.setdefault(item.clazz, []).append(item)
    return [item for same_class in by_class.values() for item in same_class[:limit]]


def wording_of(path: str, names: tuple[str, str], wording: int) -> dict[str, str]:
    """{policy: text} for the two `names`. Raises InputError for a wording that there is not."""
    policies = load_policies(path)
    for name in names:
        if name not in policies:
            raise InputError(f"{path}: no policy {name!r}; it has {', '.join(policies)}")
    most = min(len(policies[name]) for name in names)
    if not 1 <= wording <= most:
        raise InputError(f"--wording {wording}: {path} has {most} wordings")
    return {name: policies[name][wording - 1] for name in names}


def unsigned_details(
    published_name: str, units: Sequence[Choice], policies: dict[str, str], asked: Asked
) -> Details:
    """M2 or M3 as published: the unsigned difference of the two policies' rates."""
    by_label = {}
    for label, answers in asked.answers.items():
        first, second = zip(*(unit.taken(answers) for unit in units))
        by_label[label] = published.unsigned_difference(first, second)
    notes = [
        f"As published ({published_name}, unsigned), {label}: {value:.3f}."
        for label, value in by_label.items()
    ]
    more = {"policies": policies, "published": {published_name.lower(): by_label}}
    return Details(more, notes)
