"""python -m ecliptica.isd build --split train --out PAIRS.jsonl: contrastive preferences of the bank, in format `cita`."""

import argparse
import json
import sys
from pathlib import Path

from ecliptica import cli
from ecliptica.isd.bank import BANK, INSTRUCTIONS, SPLITS, load_bank, load_instructions, pairs
from model.errors import InputError


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m ecliptica.isd", description=__doc__)
    build = parser.add_subparsers(dest="command", required=True).add_parser("build", help="write contrastive preferences")
    build.add_argument("--bank", default=BANK)
    build.add_argument("--instructions", default=INSTRUCTIONS)
    build.add_argument("--split", default="train", choices=SPLITS)
    build.add_argument("--rounds", type=int, default=1, help="how often each response is chosen against a sibling and against a prompt negative")
    build.add_argument("--seed", type=int, default=0)
    build.add_argument("--out", required=True)
    args = parser.parse_args(argv)
    instructions = load_instructions(args.instructions)
    made = pairs(load_bank(args.bank, instructions), instructions, args.split, args.seed, args.rounds)
    if not made:
        raise InputError(f"{args.bank}: no prompt in the split {args.split!r}")
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in made), encoding="utf-8")
    print(f"{out}: {len(made)} preferences from the split {args.split}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
