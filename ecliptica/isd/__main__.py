"""The bank as files and on the screen: `build` writes contrastive preferences in format `cita`, `audit` checks what the dataset promises, `show`
prints one prompt with its responses, `contexts` writes one prompt under several instructions."""

import sys
import textwrap
from pathlib import Path

from ecliptica.files import write_lines
from ecliptica.isd import audit
from ecliptica.isd.bank import BANK, INSTRUCTIONS, SPLITS, load_bank, load_instructions, own_wording
from ecliptica.isd.hard import read_scores
from ecliptica.isd.pairs import pairs
from model import cli
from model.errors import InputError


def main(argv=None):
    parser = cli.Parser(prog="python -m ecliptica.isd", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="write contrastive preferences of a split")
    build.add_argument("--split", default="train", choices=SPLITS)
    build.add_argument(
        "--rounds",
        type=int,
        default=1,
        help="how often each response is chosen against a rejected one of each kind",
    )
    build.add_argument("--seed", type=int, default=0)
    build.add_argument(
        "--scores",
        help="samples.jsonl of eval.py switch on the same split: adds the hardest wrong responses",
    )
    build.add_argument("--system", help="whose scores (default: the last system in the file)")
    contexts = commands.add_parser(
        "contexts", help="write one prompt under several instructions, for eval.py generate"
    )
    contexts.add_argument("--prompt", required=True, help="a prompt's id")
    contexts.add_argument("--ids", required=True, help="instruction ids, comma-separated")
    show = commands.add_parser("show", help="print one prompt with its responses")
    show.add_argument("prompt", help="a prompt's id, such as technology-05")
    for command in (
        build,
        contexts,
        show,
        commands.add_parser("audit", help="check the dataset; exit 2 if an audit fails"),
    ):
        command.add_argument(
            "--bank",
            default=BANK,
            help="a JSONL file or a directory of them (default: the shipped bank)",
        )
        command.add_argument("--instructions", default=INSTRUCTIONS)
    for command in (build, contexts):
        command.add_argument("--out", required=True)
    args = parser.parse_args(argv)
    {"build": run_build, "contexts": run_contexts, "show": run_show, "audit": run_audit}[
        args.command
    ](args)


def run_build(args):
    if args.rounds < 1:
        raise InputError(f"--rounds: expected at least 1, got {args.rounds}")
    instructions, bank = load(args)
    scores = None
    if args.scores:
        scores, system = read_scores(args.scores, list(instructions), args.system)
        print(f"{args.scores}: hard negatives by the scores of {system or 'its one system'!r}")
    else:
        print("no --scores: without hard negatives; siblings and prompt negatives in equal parts")
    write(args.out, pairs(bank, instructions, args.split, args.seed, args.rounds, scores))


def run_contexts(args):
    """The prompt under each instruction, in the wording that belongs to its split."""
    instructions, bank = load(args)
    entry, names = find(args, bank), args.ids.split(",")
    if unknown := [name for name in names if name not in instructions]:
        raise InputError(
            f"--ids: no instruction {unknown[0]!r}; there are {', '.join(instructions)}"
        )
    write(
        args.out,
        [
            {
                "id": entry.id,
                "instruction": own_wording(entry.split, instructions[name]),
                "prompt": entry.prompt,
            }
            for name in names
        ],
    )


def run_show(args):
    instructions, bank = load(args)
    entry = find(args, bank)
    print(
        f"{entry.id}: {entry.split}, {', '.join(filter(None, (entry.domain, entry.source, entry.form, entry.author, entry.licence)))}\n\n{entry.prompt}"
    )
    for name in instructions:
        if name in entry.responses:
            print(
                f"\n{name}\n"
                + textwrap.fill(
                    entry.responses[name], 100, initial_indent="    ", subsequent_indent="    "
                )
            )
    if not entry.responses:
        print("\nno reference responses: a distractor, and a prompt to generate from")


def run_audit(args):
    rows = list(audit.audits(audit.load(args.bank, args.instructions)))
    print(audit.table(rows), flush=True)
    audit.check(rows)


def load(args):
    instructions = load_instructions(args.instructions)
    return instructions, load_bank(args.bank, instructions)


def find(args, bank):
    found = [entry for entry in bank if entry.id == args.prompt]
    if not found:
        raise InputError(f"{args.prompt}: no such id in {args.bank}; the first is {bank[0].id}")
    return found[0]


def write(out, made):
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_lines(out, made)
    print(f"{out}: {len(made)} lines")


if __name__ == "__main__":
    sys.exit(cli.run(main))
