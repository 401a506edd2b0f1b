"""Do generated answers show their instruction and answer their prompt? Reads what isd-generate wrote; no model is loaded.

See metrics/generation_fidelity.py. The published fidelity, shift and M1 stand below, labelled as such: metrics/published.py. Several wordings of a
prompt are averaged. Conditions that isd-generate made with --controls are a second table.
"""

from ecliptica.evaluation import compare, statistics
from ecliptica.evaluation.grid import DISTRACTORS
from ecliptica.evaluation.metrics import generation_fidelity, published
from ecliptica.fields import text
from ecliptica.files import read_records
from ecliptica.isd.bank import BANK, INSTRUCTIONS, load_bank, load_instructions, referenced
from model.errors import InputError

MEANT = "instruction"  # the condition of the first table
PUBLISHED = {
    "published_fidelity": "as published: fidelity",
    "published_shift": "as published: shift",
    "published_m1": "as published: M1",
}


def add_arguments(parser):
    parser.add_argument("--data", required=True, help="JSON lines that isd-generate wrote")
    parser.add_argument(
        "--bank",
        default=BANK,
        help="the bank they were generated for; the classifier learns from its train split",
    )
    parser.add_argument("--instructions", default=INSTRUCTIONS, help="TOML of id = [paraphrases]")
    parser.add_argument(
        "--limit", type=compare.count, help="only so many prompts: stamped as not reportable"
    )
    parser.add_argument("--out", required=True, help="directory to write")


def run(args):
    instructions = list(load_instructions(args.instructions))
    bank = load_bank(args.bank, instructions)
    judge = Judge(bank, instructions, args.bank)
    answers, made = read_answers(args.data, {entry.id for entry in bank}, instructions)
    if MEANT not in {condition for _, condition in answers}:
        raise InputError(
            f"{args.data}: no answer under the condition {MEANT!r}; run isd-generate without --controls into it first"
        )
    prompts = list(
        dict.fromkeys(prompt for by_place in answers.values() for prompt, _ in by_place)
    )[: args.limit]
    places = [
        place
        for place in dict.fromkeys(place for by_place in answers.values() for place in by_place)
        if place[0] in set(prompts)
    ]
    found, apart, controls, drawn = {}, {}, {}, statistics.draws(len(prompts))
    for (label, condition), by_place in answers.items():
        if missing := [
            place for place in places if set(by_place.get(place, {})) != set(instructions)
        ]:
            raise InputError(
                f"{args.data}: {label}, condition {condition!r}, has not answered {missing[0][0]} (wording {missing[0][1]}) under every instruction; finish isd-generate first"
            )
        by_prompt = [
            [judge.values(prompt, by_place[place]) for place in places if place[0] == prompt]
            for prompt in prompts
        ]
        values = {
            name: [compare.mean([whole[name] for whole, _ in rows]) for rows in by_prompt]
            for name in by_prompt[0][0][0]
        }
        if condition == MEANT:
            found[label] = values
            apart[label] = {
                metric: {
                    j: statistics.summary(
                        [compare.mean([each[metric][j] for _, each in rows]) for rows in by_prompt],
                        drawn,
                    )
                    for j in instructions
                }
                for metric in generation_fidelity.TITLES
            }
        else:
            controls.setdefault(label, {})[condition] = {
                name: statistics.summary(v, drawn) for name, v in values.items()
            }
    metrics = {
        name: (title, judge.chance[name]) for name, title in generation_fidelity.TITLES.items()
    } | {"cut": ("answers cut off", None)}
    metrics |= {name: (title, None) for name, title in PUBLISHED.items()}
    results = compare.report(
        "fidelity",
        args,
        metrics,
        found,
        len(prompts),
        instructions=instructions,
        by_instruction=apart,
        controls=controls,
        confusion=judge.confusion,
        classifier_accuracy=judge.accuracy,
        made=made,
        prompt_ids=prompts,
    )
    compare.write(args, results | {"notes": notes(results, len(judge.unseen) * len(instructions))})


class Judge:
    """What is learned from the bank: the classifier, its confusion, the documents of the prompts, the published prototypes."""

    def __init__(self, bank, instructions, where):
        train = referenced([entry for entry in bank if entry.split == "train"], instructions)
        self.unseen = referenced([entry for entry in bank if entry.split != "train"], instructions)
        if not train:
            raise InputError(
                f"{where}: no prompt of the train split has references; the classifier of instructions learns from them"
            )
        self.classifier = generation_fidelity.Classifier(
            [e.responses[j] for e in train for j in instructions],
            [j for _ in train for j in instructions],
        )
        self.retrieval = generation_fidelity.Retrieval(
            {entry.id: (entry.prompt, list(entry.responses.values())) for entry in bank}
        )
        self.others = {
            entry.id: generation_fidelity.candidates(entry, bank, DISTRACTORS) for entry in bank
        }
        self.prototypes = published.prototypes(
            {j: [e.responses[j] for e in train] for j in instructions}
        )
        K, N = len(instructions), min(DISTRACTORS, len(bank) - 1) + 1
        self.chance = {"both": 1 / (K * N), "instruction": 1 / K, "prompt": 1 / N}
        taken = {
            j: [self.classifier.shares(entry.responses[j]) for entry in self.unseen]
            for j in instructions
        }
        self.confusion = (
            {
                j: {k: compare.mean([share[k] for share in shares]) for k in instructions}
                for j, shares in taken.items()
            }
            if self.unseen
            else {}
        )
        self.accuracy = (
            compare.mean([row[j] for j, row in self.confusion.items()]) if self.unseen else None
        )

    def values(self, prompt, lines):
        """({metric: value}, {metric: {instruction: value}}) of one prompt in one wording from {instruction: line}."""
        shown = {j: self.classifier.shares(line["r"])[j] for j, line in lines.items()}
        kept = {
            j: self.retrieval.share(line["r"], prompt, self.others[prompt])
            for j, line in lines.items()
        }
        each = {
            "both": {j: shown[j] * kept[j] for j in lines},
            "instruction": shown,
            "prompt": kept,
        }
        fidelities = [
            published.fidelity(line["r"], self.prototypes[j]) for j, line in lines.items()
        ]
        shift = published.shift([line["r"] for line in lines.values()])
        whole = {name: compare.mean(list(by.values())) for name, by in each.items()} | {
            "cut": compare.mean([line["truncated"] for line in lines.values()])
        }
        return whole | {
            "published_fidelity": compare.mean(fidelities),
            "published_shift": shift,
            "published_m1": published.m1(fidelities, shift),
        }, each


def read_answers(path, prompts, instructions):
    """({(system, condition): {(prompt, wording): {instruction: line}}}, the control first, and how the systems were made). Raises InputError."""

    def parse(line, where):
        names = [
            text(line, name, where)
            for name in ("system", "key", "condition", "prompt", "instruction")
        ]
        if (
            not isinstance(line.get("r"), str)
            or not isinstance(line.get("truncated"), bool)
            or not isinstance(line.get("wording"), int)
        ):
            raise InputError(
                f"{where}: expected 'r' (text), 'truncated' and 'wording', as isd-generate writes them"
            )
        if names[3] not in prompts or names[4] not in instructions:
            raise InputError(
                f"{where}: {names[3]!r}, {names[4]!r}: expected a prompt of the bank and one of its instructions; use the --bank and --instructions they were generated with"
            )
        return names, line

    found, keys, made = {}, {}, {}
    for (label, key, condition, prompt, instruction), line in read_records(path, parse):
        if keys.setdefault(label, key) != key:
            raise InputError(
                f"{path}: answers of {label} from two models or settings, keys {keys[label]} and {key}; keep one: grep KEY {path} > NEW"
            )
        found.setdefault((label, condition), {}).setdefault((prompt, line["wording"]), {})[
            instruction
        ] = line
        made |= {"ablation": True} if line.get("ablation") else {}
    return dict(sorted(found.items(), key=lambda item: item[0][0] != compare.BASE)), made


def notes(results, references):
    """The classifier's own accuracy, and the controls as a second table."""
    right, confusion = results["classifier_accuracy"], results["confusion"]
    if right is None:
        lines = [
            "\nNo references outside the train split: the classifier's own accuracy is unknown."
        ]
    else:
        worst = min(confusion, key=lambda j: confusion[j][j])
        lines = [
            f"\nThe classifier names {right:.3f} of {references} references that it was not trained on rightly, least of all {worst} ({confusion[worst][worst]:.2f})."
        ]
    if results["controls"]:
        titles = [metric["title"] for metric in results["metrics"].values()]
        lines += [
            "\nControls.\n",
            "| system, condition | " + " | ".join(titles) + " |",
            "| " + " | ".join(["---"] * (len(titles) + 1)) + " |",
        ]
        lines += [
            f"| {label}, {name} | "
            + " | ".join(compare.shown(values[metric]) for metric in results["metrics"])
            + " |"
            for label, by_name in results["controls"].items()
            for name, values in by_name.items()
        ]
    return lines
