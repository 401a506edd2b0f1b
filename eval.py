"""Evaluate: python eval.py SUITE ... (score, generate, switch). `python eval.py SUITE --help` lists a suite's options."""

import sys

from ecliptica.evaluation import suites
from model import cli


def main(argv=None):
    parser = cli.Parser(description=__doc__)
    commands = parser.add_subparsers(dest="suite", required=True)
    for name in suites.NAMES:
        suite = suites.get(name)
        suite.add_arguments(
            commands.add_parser(name, help=suite.__doc__.splitlines()[0], description=suite.__doc__)
        )
    args = parser.parse_args(argv)
    suites.get(args.suite).run(args)


if __name__ == "__main__":
    sys.exit(cli.run(main))
