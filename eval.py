"""Evaluate: python eval.py SUITE ... or python eval.py COMMAND ...

`python eval.py NAME --help` lists the options of one, and what a suite measures."""

import argparse
import sys
from collections.abc import Sequence

from ecliptica.evaluation import command, commands, suites
from ecliptica.evaluation.help import first_line, of_suite
from ecliptica.flags import add_flags, from_flags
from model import cli


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name in suites.names():
        suite = suites.get(name)
        about = suites.about(name)
        add(names, name, about, command.option_types(suite), of_suite(suite))
    for name in commands.names():
        module = commands.get(name)
        add(names, name, module.__doc__, (module.Options,))
    args = parser.parse_args(argv)

    # The flags as typed options, and one function is called.
    if args.name in suites.names():
        suite = suites.get(args.name)
        options = [from_flags(kind, args) for kind in command.option_types(suite)]
        command.run_suite(suite, *options)
    else:
        module = commands.get(args.name)
        module.run(from_flags(module.Options, args))


def add(names, name: str, about: str, kinds: Sequence[type], epilog: str = "") -> None:
    """One suite or command, with a flag for every field of its options."""
    parser = names.add_parser(
        name,
        help=first_line(about).replace("%", "%%"),
        description=about,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for kind in kinds:
        add_flags(parser, kind)


if __name__ == "__main__":
    sys.exit(cli.run(main))
