"""Where does the model refuse, and does the policy move that line? Refusal boundary on borderline requests, with floor and ceiling.

By likelihood of authored refusals and compliances; a harmful request's compliance shows the stance alone.
"""

from ecliptica.evaluation import compare
from ecliptica.evaluation.metrics import published, refusal_boundary
from ecliptica.evaluation.policies import add_wording, preferred, texts_of
from ecliptica.isd.sets import SETS, load_safety


def add_arguments(parser):
    compare.add_arguments(parser)
    parser.add_argument(
        "--data",
        default=SETS / "safety.jsonl",
        help="JSON lines: id, kind, class, prompt, refusal, compliance",
    )
    parser.add_argument(
        "--policies", default=SETS / "safety_policies.toml", help="TOML with strict and permissive"
    )
    add_wording(parser)


def run(args):
    items = compare.limited(load_safety(args.data), args, key=lambda item: item.clazz)
    policies = texts_of(args.policies, ("strict", "permissive"), args.wording)
    found, m3, subjects = {}, {}, compare.subjects(args)
    for subject in subjects:
        picked = preferred(
            subject, args, [(item, item.refusal, item.compliance) for item in items], policies
        )
        rows = [refusal_boundary.value(item.clazz, *picks) for item, picks in zip(items, picked)]
        found[subject.label] = {
            name: [row[name] for row in rows] for name in refusal_boundary.TITLES
        }
        m3[subject.label] = published.unsigned_difference(*zip(*picked))
    notes = [f"\nAs published (M3, unsigned), {label}: {value:.3f}." for label, value in m3.items()]
    compare.write(
        args,
        compare.report(
            "refusal",
            args,
            refusal_boundary.TITLES,
            found,
            len(items),
            "requests",
            policies=policies,
            published={"m3": m3},
            notes=notes,
            made=compare.made(subjects, args),
        ),
    )
