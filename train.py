"""Train: python train.py RECIPE [section.key=value ...]. RECIPE: a TOML path, or the name of one in ecliptica/recipes."""

import sys

from ecliptica import config
from ecliptica.training.loop import train
from model import cli


def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("recipe", help="TOML path or shipped recipe name")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_args(argv)
    train(config.load(args.recipe, args.overrides))


if __name__ == "__main__":
    sys.exit(cli.run(main))
