"""From an idea to a table: python -m ecliptica.ablate ABLATION --out DIR [section.key=value ...]

ABLATION: a TOML path, or the name of one in ecliptica/recipes/ablations. Its cells are trained and
measured one after another; the same command goes on where it was cut. DIR then holds results.csv,
ABLATION.md, report.html with its figures, and cells/NAME/, each an ordinary run with its results.
Keys behind the name are set in every cell. Exit code 1 if a cell failed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from model import cli
from model.errors import InputError


class CellsFailed(Exception):
    """Some cells failed; the table says which."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(prog="python -m ecliptica.ablate", description=__doc__)
    parser.add_argument("ablation", help="TOML path or shipped name")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--out", metavar="DIR", help="directory of the table and of its cells")
    parser.add_argument(
        "--plan",
        action="store_true",
        help="cells, time, memory and the smallest detectable difference, and stop",
    )
    parser.add_argument("--jobs", type=int, default=1, help="cells at once (default: 1)")
    parser.add_argument(
        "--shard", default="1/1", metavar="I/N", help="the I-th of N parts, from 1: for N machines"
    )
    parser.add_argument(
        "--any-code",
        action="store_true",
        help="keep cells that other code made, and go on; the table says so",
    )
    parser.add_argument(
        "--slurm", action="store_true", help="cells are jobs of a cluster (needs submitit)"
    )
    parser.add_argument("--partition", default="", help="of the cluster")
    parser.add_argument("--minutes", type=int, default=240, help="limit of a job (default: 240)")
    parser.add_argument("--gpus", type=int, default=1, help="of a job (default: 1)")
    args = parser.parse_intermixed_args(argv)
    if not args.out:
        raise InputError("--out: not given; expected a directory, such as runs/ablations/lambda")
    if args.jobs < 1:
        raise InputError(f"--jobs {args.jobs}: expected at least 1")
    shard = shard_of(args.shard)

    # Only now what takes seconds to import.
    from ecliptica.experiments import ablation, command

    spec = ablation.read(args.ablation)
    if args.plan:
        print(command.plan(spec, Path(args.out), args.overrides))
        return
    how = command.how(args, shard)
    if not command.run(spec, Path(args.out), args.overrides, how):
        raise CellsFailed


def shard_of(text: str) -> tuple[int, int]:
    """ "2/4" as (2, 4)."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise InputError(f"--shard {text}: expected I/N with I from 1 to N, such as 2/4")
    return int(number), int(of)


def run(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 every cell done, 1 one failed, 2 bad input."""
    try:
        return cli.run(main, argv)
    except CellsFailed:
        return 1


if __name__ == "__main__":
    sys.exit(run())
