"""Responses of a model to the whole grid, prompts x instructions x wordings: (p, i, r), and each response beside its contrastive ones.

--out is append-only, a line a cell: killed at any point and started again it goes on where it was. A response depends on its cell alone
(greedy, or its own seed), never on its batch. When all are there, OUT.contrastive.jsonl has every aligned response with those to
the same prompt under the other instructions.
"""

import hashlib
import json
from pathlib import Path

from tqdm import tqdm

from ecliptica.data.templates import stop_ids
from ecliptica.evaluation import compare
from ecliptica.evaluation.cells import read_lines
from ecliptica.evaluation.grid import dealt_wrongly
from ecliptica.evaluation.scoring import context_ids
from ecliptica.evaluation.suites.score import check_out
from ecliptica.isd.bank import BANK, INSTRUCTIONS, PARAPHRASE, SPLITS, load_bank, load_instructions
from model.errors import InputError
from model.generate import generate


def add_arguments(parser):
    compare.add_arguments(parser, "JSON lines to write; what it has already is not generated again")
    parser.add_argument("--bank", default=BANK, help="JSON lines, or a directory of them (default: the shipped bank)")
    parser.add_argument("--instructions", default=INSTRUCTIONS, help="TOML of id = [paraphrases] (default: the shipped ones)")
    parser.add_argument("--split", default="test", choices=(*SPLITS, "all"))
    parser.add_argument("--wordings", help="which, from 1, comma-separated (default: the split's own; all: 1,2,3)")
    parser.add_argument("--scramble", action="store_true", help="deal the prompts out wrongly: what a metric says of it is what it says of no answer")
    add_sampling(parser)


def add_sampling(parser):
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)


def run(args):
    check_sampling(args)
    check_out(args.out)
    instructions = load_instructions(args.instructions)
    bank = load_bank(args.bank, instructions)
    entries = [entry for entry in bank if args.split in (entry.split, "all")][: args.limit]
    if not entries:
        raise InputError(f"{args.bank}: no prompt in the split {args.split!r}")
    said = dealt_wrongly(bank) if args.scramble else {entry.id: entry.prompt for entry in bank}
    cells = [{"prompt": entry.id, "instruction": name, "wording": w, "p": said[entry.id], "i": texts[w - 1]}
             for entry in entries for name, texts in instructions.items() for w in wordings(args, entry, len(texts))]
    subjects = compare.subjects(args)
    lines = [line for subject in subjects for line in generated(subject, cells, args, args.out)]
    path = Path(args.out).with_suffix(".contrastive.jsonl")
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in contrastive(lines)), encoding="utf-8")
    cut = sum(line["truncated"] for line in lines)
    print(f"{args.out}: {len(lines)} responses of {len(subjects)} systems, {cut} cut at {args.max_new_tokens} tokens; {path}: each with its contrastive ones")


def check_sampling(args):
    if args.max_new_tokens < 1 or args.temperature < 0 or not 0 < args.top_p <= 1:
        raise InputError("expected --max-new-tokens >= 1, --temperature >= 0 and 0 < --top-p <= 1")
    if args.rescore:
        raise InputError("--rescore: there is nothing to rescore where responses are generated")


def wordings(args, entry, count):
    """Which wordings of the instructions, from 1."""
    if args.wordings is None:
        return [min(PARAPHRASE[entry.split] + 1, count)]
    try:
        chosen = sorted({int(part) for part in args.wordings.split(",")})
    except ValueError as error:
        raise InputError(f"--wordings {args.wordings}: expected whole numbers, comma-separated") from error
    if chosen[0] < 1 or chosen[-1] > count:
        raise InputError(f"--wordings {args.wordings}: the instructions have wordings 1 to {count}")
    return chosen


def cell_key(cell, args):
    """What a response depends on, besides the system: its texts and the sampling."""
    settings = [cell["i"], cell["p"], args.max_new_tokens, args.temperature, args.top_p, args.seed]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:24]


def generated(subject, cells, args, path):
    """[{**cell, "r", "tokens", "truncated", ...}] of a subject in the order of `cells`, from the file where they are there, else made and appended."""
    known = {line["cell"]: line for line in read_lines(path) if line.get("key") == subject.key and "r" in line}
    keys = [cell_key(cell, args) for cell in cells]
    missing = list({key: cell for key, cell in zip(keys, cells) if key not in known}.items())
    with subject.switched() as system, open(path, "a", encoding="utf-8") as file:
        contexts = {key: context_ids(system, cell["p"], cell["i"]) for key, cell in missing}
        for key, cell in missing:
            if len(contexts[key]) > system.window - args.max_new_tokens:
                raise InputError(f"{cell['prompt']}/{cell['instruction']}: {len(contexts[key])} tokens and {args.max_new_tokens} new ones; the model's window is {system.window}")
        missing.sort(key=lambda item: len(contexts[item[0]]))
        size = max(1, system.batch_tokens // max((len(c) + args.max_new_tokens for c in contexts.values()), default=1))
        for at in tqdm(range(0, len(missing), size), desc=subject.label, unit="batch", leave=False, disable=None):
            group = missing[at : at + size]
            seeds = [(args.seed + int(key[:12], 16)) % 2**31 for key, _ in group]
            made = generate(system.model, [contexts[key] for key, _ in group], args.max_new_tokens, stop_ids(system.template, system.tokenizer),
                            args.temperature, args.top_p, seeds=seeds)
            for (key, cell), ids in zip(group, made):
                known[key] = {"system": subject.label, "key": subject.key, "cell": key, **cell, "r": system.tokenizer.decode(ids), "tokens": len(ids),
                              "truncated": len(ids) == args.max_new_tokens}
                file.write(json.dumps(known[key], ensure_ascii=False) + "\n")
            file.flush()
    return [known[key] for key in keys]


def contrastive(lines):
    """Each (p, i, r) with the responses to the same prompt and wording under the other instructions."""
    groups = {}
    for line in lines:
        groups.setdefault((line["system"], line["prompt"], line["wording"]), []).append(line)
    return [{key: line[key] for key in ("system", "prompt", "instruction", "wording", "p", "i", "r")}
            | {"contrastive": {other["instruction"]: other["r"] for other in groups[line["system"], line["prompt"], line["wording"]] if other is not line}}
            for line in lines]
