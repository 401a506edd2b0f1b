"""python -m ecliptica.evaluation.report DIR: one self-contained report.html, and its plots as PNG
beside it.

DIR is a training run's directory or any directory with results of suites. Shown is what is there:
results.json in DIR and in the directories below it, metrics.jsonl, config.toml,
final/ecliptica.json, before.jsonl and after.jsonl (generations of the same contexts).
"""

import sys
from collections.abc import Sequence

from ecliptica.evaluation.report.page import build
from model import cli


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(prog="python -m ecliptica.evaluation.report", description=__doc__)
    parser.add_argument(
        "directory",
        metavar="DIR",
        help="a run's directory, or one with results.json of suites in it or in directories below",
    )
    print(f"{build(parser.parse_args(argv).directory)}: written")


if __name__ == "__main__":
    sys.exit(cli.run(main))
