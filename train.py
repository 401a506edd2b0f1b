"""Train: python train.py RECIPE [section.key=value ...]

RECIPE: a TOML path, or the name of one in ecliptica/recipes. The same command on the same run.dir
goes on where it was cut. Several GPUs: torchrun --nproc-per-node N train.py RECIPE ...
--plan: no training, but the memory, time and disk it would take on plan.gpus GPUs of the kind
plan.gpu. A run that a signal stopped is saved, and exits with 128 + the signal's number.
"""

import sys
from collections.abc import Sequence

from model import cli


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("recipe", help="TOML path or shipped recipe name")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument(
        "--plan", action="store_true", help="print what the run would need, and stop"
    )
    args = parser.parse_intermixed_args(argv)

    # Only now what takes seconds to import: --help and a mistyped flag do not wait for torch.
    from ecliptica.config import load
    from ecliptica.planning import plan
    from ecliptica.recipe import Config
    from ecliptica.running.ranks import joined
    from ecliptica.training.loop import train

    if args.plan:
        print(plan.report(load(Config, args.recipe, args.overrides)))
        return
    with joined() as ranks:
        train(ranks.together(load, Config, args.recipe, args.overrides), ranks)


if __name__ == "__main__":
    sys.exit(cli.run(main))
