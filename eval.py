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
    words = sys.argv[1:] if argv is None else list(argv)
    parser = cli.Parser(description=__doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for folder in (suites, commands):
        for name in folder.names():
            add(names, name, folder.about(name))

    # Flags for the one that is asked, and no other is imported: --help waits for nothing.
    name = words[0] if words else ""
    if name in suites.names():
        suite = suites.get(name)
        kinds = command.option_types(suite)
        names.choices[name].epilog = of_suite(suite)
    elif name in commands.names():
        kinds = (commands.get(name).Options,)
    else:
        kinds = ()
    for kind in kinds:
        add_flags(names.choices[name], kind)
    args = parser.parse_args(words)

    # The flags as typed options, and one function is called.
    options = [from_flags(kind, args) for kind in kinds]
    if name in suites.names():
        command.run_suite(suite, *options)
    else:
        commands.get(name).run(*options)


def add(names, name: str, about: str) -> None:
    """One suite or command, still without its flags."""
    names.add_parser(
        name,
        help=first_line(about).replace("%", "%%"),
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


if __name__ == "__main__":
    sys.exit(cli.run(main))
