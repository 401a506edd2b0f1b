"""The bank as files: `build` writes contrastive preferences in format `cita`, `contexts` one prompt under several instructions."""

import json
import sys
from pathlib import Path

from ecliptica.isd.bank import BANK, INSTRUCTIONS, PARAPHRASE, SPLITS, load_bank, load_instructions, pairs
from model import cli
from model.errors import InputError


def main(argv=None):
    parser = cli.Parser(prog="python -m ecliptica.isd", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="write contrastive preferences of a split")
    build.add_argument("--split", default="train", choices=SPLITS)
    build.add_argument("--rounds", type=int, default=1, help="how often each response is chosen against a sibling and against a prompt negative")
    build.add_argument("--seed", type=int, default=0)
    contexts = commands.add_parser("contexts", help="write one prompt under several instructions, for eval.py generate")
    contexts.add_argument("--prompt", required=True, help="a prompt's id")
    contexts.add_argument("--ids", required=True, help="instruction ids, comma-separated")
    for command in (build, contexts):
        command.add_argument("--bank", default=BANK)
        command.add_argument("--instructions", default=INSTRUCTIONS)
        command.add_argument("--out", required=True)
    args = parser.parse_args(argv)
    instructions = load_instructions(args.instructions)
    bank = load_bank(args.bank, instructions)
    if args.command == "build":
        made = pairs(bank, instructions, args.split, args.seed, args.rounds)
        if not made:
            raise InputError(f"{args.bank}: no prompt in the split {args.split!r}")
    else:
        made = contexts_of(args, bank, instructions)
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in made), encoding="utf-8")
    print(f"{out}: {len(made)} lines")


def contexts_of(args, bank, instructions):
    """The prompt under each instruction, in the wording that belongs to its split."""
    found = [entry for entry in bank if entry.id == args.prompt]
    if not found:
        raise InputError(f"--prompt {args.prompt}: no such id in {args.bank}; the first is {bank[0].id}")
    names = args.ids.split(",")
    if unknown := [name for name in names if name not in instructions]:
        raise InputError(f"--ids: no instruction {unknown[0]!r}; there are {', '.join(instructions)}")
    return [{"id": found[0].id, "instruction": instructions[name][PARAPHRASE[found[0].split]], "prompt": found[0].prompt} for name in names]


if __name__ == "__main__":
    sys.exit(cli.run(main))
