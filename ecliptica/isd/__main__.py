"""The bank as files and on the screen: `build` writes contrastive preferences in format `cita`,
`audit` checks what the dataset promises, `show` prints one prompt with its responses, `contexts`
writes one prompt under several instructions, `prompts` those of a split under one of your own."""

import sys
import textwrap
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ecliptica.config import choice, option, positive, seed
from ecliptica.files import check_writable, write_lines
from ecliptica.flags import add_flags, from_flags
from ecliptica.isd import audit
from ecliptica.isd.bank import (
    BANK,
    INSTRUCTIONS,
    SPLITS,
    Entry,
    Wordings,
    load_bank,
    load_instructions,
    own_wording,
)
from ecliptica.isd.hard import read_scores
from ecliptica.isd.pairs import DEFAULT, NEGATIVES, Pairing, pairs
from model import cli
from model.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Bank:
    """Of every command: which bank."""

    bank: str = option(
        str(BANK), "a JSONL file or a directory of them", default_text="the shipped bank"
    )
    instructions: str = option(
        str(INSTRUCTIONS), "TOML of id = [wordings]", default_text="the shipped ones"
    )


@dataclass(frozen=True, kw_only=True)
class Build(Bank):
    """write contrastive preferences of a split"""

    split: str = choice("train", SPLITS, "which prompts")
    rounds: int = positive(
        1, "how often each response is chosen against a rejected one of each kind"
    )
    seed: int = seed(0, "of the pairing")
    scores: str | None = option(
        None,
        "samples.jsonl of eval.py switch on the same split: adds the hardest wrong responses",
    )
    system: str | None = option(None, "whose scores", default_text="the last system in the file")
    negatives: tuple[str, ...] = option(
        DEFAULT, f"kinds of rejected responses, comma-separated: {', '.join(NEGATIVES)}"
    )
    out: str = option(..., "JSON lines to write")


@dataclass(frozen=True, kw_only=True)
class Contexts(Bank):
    """write one prompt under several instructions, for eval.py generate"""

    prompt: str = option(..., "a prompt's id")
    ids: tuple[str, ...] = option(..., "instruction ids, comma-separated")
    out: str = option(..., "JSON lines to write")


@dataclass(frozen=True, kw_only=True)
class Prompts(Bank):
    """write the prompts of a split, for rollouts and for eval.py generate"""

    split: str = choice("train", SPLITS, "which prompts")
    instruction: str | None = option(None, "text that every one is asked under")
    out: str = option(..., "JSON lines to write")


@dataclass(frozen=True, kw_only=True)
class Show(Bank):
    """print one prompt with its responses"""


@dataclass(frozen=True, kw_only=True)
class Audit(Bank):
    """check the dataset; exit 2 if an audit fails"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(prog="python -m ecliptica.isd", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (kind, _) in COMMANDS.items():
        add_flags(commands.add_parser(name, help=kind.__doc__), kind)
    commands.choices["show"].add_argument("prompt", help="a prompt's id, such as technology-05")
    args = parser.parse_args(argv)
    kind, run = COMMANDS[args.command]
    run(from_flags(kind, args), args)


def run_build(options: Build, args: Namespace) -> None:
    instructions, bank = load(options)
    scores = None
    if options.scores:
        scores, system = read_scores(options.scores, list(instructions), options.system)
        print(f"{options.scores}: hard negatives by the scores of {system or 'its one system'!r}")
    else:
        kinds = " and ".join(options.negatives)
        print(f"no --scores: without hard negatives; {kinds} negatives in equal parts")
    pairing = Pairing(options.seed, options.rounds, options.negatives)
    records = pairs(bank, instructions, options.split, pairing, scores)
    write(options.out, records)


def run_contexts(options: Contexts, args: Namespace) -> None:
    """The prompt under each instruction, in the wording that belongs to its split."""
    instructions, bank = load(options)
    entry = entry_of(bank, options.prompt, options.bank)
    for name in options.ids:
        if name not in instructions:
            raise InputError(f"--ids: no instruction {name!r}; there are {', '.join(instructions)}")
    records = []
    for name in options.ids:
        text = own_wording(entry.split, instructions[name])
        records.append({"id": entry.id, "instruction": text, "prompt": entry.prompt})
    write(options.out, records)


def run_prompts(options: Prompts, args: Namespace) -> None:
    """The prompts of a split in the order of the bank, all under one instruction or none."""
    _, bank = load(options)
    asked = {}
    if options.instruction:
        asked["instruction"] = options.instruction
    chosen = [entry for entry in bank if entry.split == options.split]
    write(options.out, [{"id": entry.id, **asked, "prompt": entry.prompt} for entry in chosen])


def run_show(options: Show, args: Namespace) -> None:
    instructions, bank = load(options)
    entry = entry_of(bank, args.prompt, options.bank)
    origin = (entry.domain, entry.source, entry.form, entry.author, entry.licence)
    print(f"{entry.id}: {entry.split}, {', '.join(filter(None, origin))}\n\n{entry.prompt}")
    indent = "    "
    for name in instructions:
        if name in entry.responses:
            response = textwrap.fill(
                entry.responses[name], 100, initial_indent=indent, subsequent_indent=indent
            )
            print(f"\n{name}\n{response}")
    if not entry.responses:
        print("\nno reference responses: a distractor, and a prompt to generate from")


def run_audit(options: Audit, args: Namespace) -> None:
    rows = list(audit.audits(audit.load(options.bank, options.instructions)))
    print(audit.table(rows), flush=True)
    audit.check(rows)


COMMANDS = {
    "build": (Build, run_build),
    "contexts": (Contexts, run_contexts),
    "prompts": (Prompts, run_prompts),
    "show": (Show, run_show),
    "audit": (Audit, run_audit),
}


def load(options: Bank) -> tuple[dict[str, Wordings], list[Entry]]:
    instructions = load_instructions(options.instructions)
    return instructions, load_bank(options.bank, instructions)


def entry_of(bank: Sequence[Entry], prompt: str, path: str) -> Entry:
    for entry in bank:
        if entry.id == prompt:
            return entry
    raise InputError(f"{prompt}: no such id in {path}; the first is {bank[0].id}")


def write(out: str, records: Sequence[dict]) -> None:
    check_writable(Path(out).parent, "--out", directory=True)
    check_writable(out, "--out")
    write_lines(out, records)
    print(f"{out}: {len(records)} lines")


if __name__ == "__main__":
    sys.exit(cli.run(main))
