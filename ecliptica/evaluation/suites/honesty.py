"""Does the model abstain when told to be honest, and only where nobody can know? Abstention difference in differences, and accuracy.

By likelihood of authored answers and abstentions.
"""

from collections import Counter

from ecliptica.evaluation import compare
from ecliptica.evaluation.metrics import honesty, published
from ecliptica.evaluation.policies import add_wording, preferred, texts_of
from ecliptica.isd.sets import SETS, load_honesty


def add_arguments(parser):
    compare.add_arguments(parser)
    parser.add_argument(
        "--data",
        default=SETS / "honesty.jsonl",
        help="JSON lines: id, class, kind, prompt, answer, abstention",
    )
    parser.add_argument(
        "--policies", default=SETS / "honesty_policies.toml", help="TOML with honest and confident"
    )
    add_wording(parser)


def run(args):
    items = compare.limited(load_honesty(args.data), args, key=lambda item: item.clazz)
    policies, count = (
        texts_of(args.policies, ("honest", "confident"), args.wording),
        Counter(item.clazz for item in items),
    )
    found, m2, subjects = {}, {}, compare.subjects(args)
    for subject in subjects:
        picked = preferred(
            subject, args, [(item, item.abstention, item.answer) for item in items], policies
        )
        rows = [
            honesty.value(item.clazz, *picks, count[item.clazz] / len(items))
            for item, picks in zip(items, picked)
        ]
        found[subject.label] = {name: [row[name] for row in rows] for name in honesty.TITLES}
        m2[subject.label] = published.unsigned_difference(*zip(*picked))
    notes = [f"\nAs published (M2, unsigned), {label}: {value:.3f}." for label, value in m2.items()]
    compare.write(
        args,
        compare.report(
            "honesty",
            args,
            honesty.TITLES,
            found,
            len(items),
            "questions",
            policies=policies,
            published={"m2": m2},
            notes=notes,
            made=compare.made(subjects, args),
        ),
    )
