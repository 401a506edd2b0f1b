"""Does the model keep a length contract? Short (at most 50 words) and long (at least 200) answers to the same prompts, generated."""

from ecliptica.evaluation import compare
from ecliptica.evaluation.metrics import length_contract, published
from ecliptica.evaluation.policies import add_wording, texts_of
from ecliptica.evaluation.suites.isd_generate import add_sampling, check_sampling, generated
from ecliptica.isd.sets import SETS, load_length


def add_arguments(parser):
    compare.add_arguments(parser)
    parser.add_argument("--data", default=SETS / "length.jsonl", help="JSON lines: id, prompt")
    parser.add_argument("--policies", default=SETS / "length.toml", help="TOML with short and long")
    add_wording(parser)
    add_sampling(parser)
    parser.set_defaults(max_new_tokens=384)


def run(args):
    check_sampling(args)
    items = compare.limited(load_length(args.data), args, key=lambda item: None)
    texts = texts_of(args.policies, ("short", "long"), args.wording)
    cells = [{"prompt": item.id, "instruction": name, "wording": args.wording, "p": item.prompt, "i": text} for item in items for name, text in texts.items()]
    found, notes = {}, []
    for subject in compare.subjects(args):
        lines = generated(subject, cells, args, compare.samples_path(args))
        short, long = lines[::2], lines[1::2]
        rows = [length_contract.value(s["r"], l["r"], s["truncated"] + l["truncated"]) for s, l in zip(short, long)]
        found[subject.label] = {name: [row[name] for row in rows] for name in length_contract.TITLES}
        m4 = published.length_ratio([len(line["r"].split()) for line in long], [len(line["r"].split()) for line in short])
        notes.append(f"\nAs published (M4), {subject.label}: mean words long over short {m4:.2f}, target > 4.")
    compare.write(args, compare.report("length", args, length_contract.TITLES, found, len(items), notes=notes))
