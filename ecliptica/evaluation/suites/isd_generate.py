"""Answers of a model to the whole grid, prompts x instructions x wordings: (p, i, r), and each answer beside its contrastive ones.

--out is append-only, a line a cell: killed at any point and started again it goes on where it was (evaluation/generations.py). When all are
there, a second step writes OUT.pairs.jsonl: every aligned answer with those to the same prompt under the other instructions. `fidelity` reads --out.
"""

import json
import os
from pathlib import Path

from ecliptica.evaluation import compare
from ecliptica.evaluation.generations import add_sampling, check_sampling, generated
from ecliptica.evaluation.grid import CONDITIONS, dealt_wrongly
from ecliptica.evaluation.suites.score import check_out
from ecliptica.files import naming
from ecliptica.isd.bank import BANK, INSTRUCTIONS, PARAPHRASE, SPLITS, load_bank, load_instructions
from model.errors import InputError

SAME = "one instruction"  # the first one's text under every instruction's name: how answers differ that ought not to
CONTROLS = (*CONDITIONS[1:], SAME)


def add_arguments(parser):
    compare.add_arguments(parser, "JSON lines to write; what it has already is not generated again")
    parser.add_argument(
        "--bank",
        default=BANK,
        help="JSON lines, or a directory of them (default: the shipped bank)",
    )
    parser.add_argument(
        "--instructions",
        default=INSTRUCTIONS,
        help="TOML of id = [paraphrases] (default: the shipped ones)",
    )
    parser.add_argument("--split", default="test", choices=(*SPLITS, "all"))
    parser.add_argument(
        "--wordings", help="which, from 1, comma-separated (default: the split's own; all: 1,2,3)"
    )
    parser.add_argument(
        "--system",
        default="both",
        choices=("base", "trained", "both"),
        help="whose answers, where there is an adapter (default: both, in one file)",
    )
    parser.add_argument(
        "--controls",
        default="",
        help=f"conditions to generate as well, comma-separated: {', '.join(CONTROLS)}",
    )
    add_sampling(parser)


def run(args):
    check_sampling(args)
    check_out(args.out)
    if args.rescore:
        raise InputError(
            "--rescore: isd-generate has no metric to compute again; `fidelity` reads its --out"
        )
    instructions, bank = load_instructions(args.instructions), load_bank(args.bank)
    entries = [entry for entry in bank if args.split in (entry.split, "all")][: args.limit]
    if not entries:
        raise InputError(
            f"{args.bank}: no prompt in the split {args.split!r}; it has {', '.join(sorted({e.split for e in bank}))}"
        )
    conditions = [CONDITIONS[0], *(name for name in args.controls.split(",") if name)]
    if unknown := [name for name in conditions[1:] if name not in CONTROLS]:
        raise InputError(f"--controls {unknown[0]!r}: expected some of {', '.join(CONTROLS)}")
    groups = [
        group
        for condition in conditions
        for group in grid(condition, bank, entries, instructions, args)
    ]
    subjects = chosen(compare.subjects(args), args)
    lines = [line for subject in subjects for line in generated(subject, groups, args, args.out)]
    pairs = write_pairs(args.out, lines)
    print(
        f"{args.out}: {len(lines)} answers of {', '.join(subject.label for subject in subjects)} to {len(entries)} prompts; "
        f"{sum(line['truncated'] for line in lines)} cut at {args.max_new_tokens} tokens\n{pairs}: each with its contrastive ones"
    )


def chosen(subjects, args):
    """The subjects that --system names."""
    found = [
        subject
        for subject in subjects
        if args.system == "both" or (subject.label == compare.BASE) == (args.system == "base")
    ]
    if not found:
        raise InputError(
            f"--system {args.system}: give the trained one as --adapter, or its control as --base"
        )
    return found


def grid(condition, bank, entries, instructions, args):
    """[[cell]]: a group is one prompt in one wording under all instructions, so that it is the same whatever --split, --limit and --wordings take."""
    said = (
        dealt_wrongly(bank)
        if condition == "scrambled prompt"
        else {entry.id: entry.prompt for entry in bank}
    )
    first = next(iter(instructions.values()))
    groups = []
    for entry in entries:
        for wording in wordings(args, entry, min(map(len, instructions.values()))):
            texts = {
                name: (first if condition == SAME else own)[wording - 1]
                for name, own in instructions.items()
            }
            groups.append(
                [
                    {
                        "condition": condition,
                        "prompt": entry.id,
                        "instruction": name,
                        "wording": wording,
                        "p": said[entry.id],
                        "i": None if condition == "no instruction" else text,
                    }
                    for name, text in texts.items()
                ]
            )
    return groups


def wordings(args, entry, count):
    """Which wordings of the instructions, from 1."""
    if args.wordings is None:
        return [min(PARAPHRASE[entry.split] + 1, count)]
    try:
        found = sorted({int(part) for part in args.wordings.split(",")})
    except ValueError as error:
        raise InputError(
            f"--wordings {args.wordings}: expected whole numbers, comma-separated"
        ) from error
    if found[0] < 1 or found[-1] > count:
        raise InputError(f"--wordings {args.wordings}: the instructions have wordings 1 to {count}")
    return found


def write_pairs(out, lines):
    """OUT.pairs.jsonl: each line with "contrastive", {instruction: answer} of the same system to the same prompt and wording. Its path."""
    groups, path = {}, Path(out).with_name(Path(out).name.removesuffix(".jsonl") + ".pairs.jsonl")
    place = lambda line: tuple(line[name] for name in ("system", "condition", "prompt", "wording"))  # noqa: E731
    for line in lines:
        groups.setdefault(place(line), {})[line["instruction"]] = line["r"]
    part = path.with_name(path.name + ".part")
    with naming(part), open(part, "w", encoding="utf-8") as file:
        for line in lines:
            others = {
                name: answer
                for name, answer in groups[place(line)].items()
                if name != line["instruction"]
            }
            file.write(json.dumps(line | {"contrastive": others}, ensure_ascii=False) + "\n")
    os.replace(part, path)  # whole or not at all
    return path
