"""Does the model keep a length contract? Short (at most 50 words) and long (at least 200) answers to the same prompts, generated.

Answers go into --out/samples.jsonl and are not made again; --rescore counts them without a model.
"""

from ecliptica.evaluation import compare
from ecliptica.evaluation.generations import add_sampling, check_sampling, generated
from ecliptica.evaluation.metrics import length_contract, published
from ecliptica.evaluation.policies import add_wording, texts_of
from ecliptica.isd.sets import SETS, load_length


def add_arguments(parser):
    compare.add_arguments(parser)
    parser.add_argument("--data", default=SETS / "length.jsonl", help="JSON lines: id, prompt")
    parser.add_argument("--policies", default=SETS / "length.toml", help="TOML with short and long")
    add_wording(parser)
    add_sampling(parser, max_new_tokens=384)


def run(args):
    check_sampling(args)
    items = compare.limited(load_length(args.data), args, key=lambda item: None)
    texts = texts_of(args.policies, ("short", "long"), args.wording)
    groups = [
        [
            {
                "condition": "instruction",
                "prompt": item.id,
                "instruction": name,
                "wording": args.wording,
                "p": item.prompt,
                "i": text,
            }
            for name, text in texts.items()
        ]
        for item in items
    ]
    found, notes, m4, subjects = {}, [], {}, compare.subjects(args)
    for subject in subjects:
        lines = generated(subject, groups, args, compare.samples_path(args))
        pairs = list(zip(lines[::2], lines[1::2]))
        rows = [
            length_contract.value(short["r"], long["r"], short["truncated"], long["truncated"])
            for short, long in pairs
        ]
        found[subject.label] = {
            name: [row[name] for row in rows] for name in length_contract.TITLES
        }
        m4[subject.label] = published.length_ratio(
            [length_contract.count(long["r"]) for _, long in pairs],
            [length_contract.count(short["r"]) for short, _ in pairs],
        )
        notes.append(
            f"\nAs published (M4), {subject.label}: mean words long over short {m4[subject.label]:.2f}, target > 4."
        )
    most = min(line["settings"]["max_new_tokens"] for line in lines)
    if most < length_contract.ROOM:
        notes.append(
            f"\nCut at {most} tokens, an answer cannot be long: {length_contract.LONG} words need about {length_contract.ROOM}. `short` is kept by force."
        )
    compare.write(
        args,
        compare.report(
            "length",
            args,
            length_contract.TITLES,
            found,
            len(items),
            published={"m4": m4},
            notes=notes,
            made=compare.made(subjects, args),
        ),
    )
