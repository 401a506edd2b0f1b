"""Do generated answers show their instruction and answer their prompt? Reads what isd-generate wrote; the published M1 stands beside.

See metrics/generation_fidelity.py and, for the published ones, metrics/published.py.
"""

from ecliptica.data.jsonl import records, text
from ecliptica.evaluation import compare
from ecliptica.evaluation.grid import DISTRACTORS, distractors
from ecliptica.evaluation.metrics import generation_fidelity, published
from ecliptica.isd.bank import BANK, INSTRUCTIONS, load_bank, load_instructions, referenced
from model.errors import InputError


def add_arguments(parser):
    parser.add_argument("--data", required=True, help="JSON lines that isd-generate wrote")
    parser.add_argument("--bank", default=BANK, help="the bank they were generated for; the classifier learns from its train split")
    parser.add_argument("--instructions", default=INSTRUCTIONS, help="TOML of id = [paraphrases]")
    parser.add_argument("--limit", type=int, help="only so many prompts: stamped as not reportable")
    parser.add_argument("--out", required=True, help="directory to write")


def run(args):
    instructions = load_instructions(args.instructions)
    bank = {entry.id: entry for entry in load_bank(args.bank, instructions)}
    train = referenced([entry for entry in bank.values() if entry.split == "train"], list(instructions))
    held_out = referenced([entry for entry in bank.values() if entry.split != "train"], list(instructions))
    if not train:
        raise InputError(f"{args.bank}: no prompt of the train split has references; the classifier of instructions learns from them")
    classifier = generation_fidelity.Classifier([t for e in train for t in e.responses.values()], [name for e in train for name in e.responses])
    retrieval = generation_fidelity.Retrieval({id: entry.prompt for id, entry in bank.items()})
    prototypes = published.prototypes({name: [e.responses[name] for e in train] for name in instructions})
    answers = read_answers(args.data, bank, instructions)
    prompts = list(dict.fromkeys(prompt for by_prompt in answers.values() for prompt in by_prompt))[: args.limit]
    found = {}
    for label, by_prompt in answers.items():
        if missing := [p for p in prompts if set(by_prompt.get(p, {})) != set(instructions)]:
            raise InputError(f"{args.data}: {label} has not answered {missing[0]} under every instruction; finish isd-generate first")
        rows = [values(by_prompt[p], bank[p], list(bank.values()), classifier, retrieval, prototypes) for p in prompts]
        found[label] = {name: [row[name] for row in rows] for name in rows[0]}
    K, others = len(instructions), min(DISTRACTORS, len(bank) - 1) + 1
    chances = {"both": 1 / (K * others), "instruction": 1 / K, "prompt": 1 / others}
    metrics = {name: (title, chances[name]) for name, title in generation_fidelity.TITLES.items()}
    metrics |= {"published_fidelity": ("as published: fidelity", None), "published_shift": ("as published: shift", None), "published_m1": ("as published: M1", None)}
    confusion = {j: {k: round(share, 3) for k, share in row.items()} for j, row in confused(classifier, held_out, instructions).items()}
    right = sum(row[j] for j, row in confusion.items()) / K if confusion else None
    notes = [f"\nThe classifier names {right:.3f} of {len(held_out) * K} references that it was not trained on rightly." if confusion else "\nNo held-out references: the classifier's own accuracy is unknown."]
    compare.write(args, compare.report("fidelity", args, metrics, found, len(prompts), confusion=confusion, classifier_accuracy=right, notes=notes))


def read_answers(path, bank, instructions):
    """{system: {prompt: {instruction: text}}}; of several wordings the last in the file."""
    found = {}
    for system, prompt, name, said, where in records(path, lambda r, where: (*(text(r, key, where) for key in ("system", "prompt", "instruction")), r.get("r"), where)):
        if prompt not in bank or name not in instructions or not isinstance(said, str):
            raise InputError(f"{where}: expected a prompt of the bank, one of its instructions and the response 'r', got {prompt!r}, {name!r}; use the same --bank")
        found.setdefault(system, {}).setdefault(prompt, {})[name] = said
    return found


def values(said, entry, bank, classifier, retrieval, prototypes):
    """{metric: value of one prompt} from {instruction: answer}."""
    others = [other.id for other in distractors(entry, bank)]
    shown = [classifier.share(answer, name) for name, answer in said.items()]
    kept = [retrieval.share(answer, entry.id, others) for answer in said.values()]
    fidelities, shift = [published.fidelity(answer, prototypes[name]) for name, answer in said.items()], published.shift(list(said.values()))
    return {"both": compare.mean([a * b for a, b in zip(shown, kept)]), "instruction": compare.mean(shown), "prompt": compare.mean(kept),
            "published_fidelity": compare.mean(fidelities), "published_shift": shift, "published_m1": published.m1(fidelities, shift)}


def confused(classifier, entries, instructions):
    """{instruction: {taken for: share}} on references that the classifier never saw."""
    return {j: {k: compare.mean([classifier.share(entry.responses[j], k) for entry in entries]) for k in instructions} for j in instructions} if entries else {}
