"""What the command does: read the cells, run what is left, write the report."""

import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ecliptica.experiments import cells, measuring, planning, report
from ecliptica.experiments.ablation import Ablation
from ecliptica.experiments.cells import Grid
from ecliptica.experiments.runner import How, Runner, Shard
from ecliptica.experiments.slurm import Slurm
from ecliptica.experiments.store import Store
from ecliptica.files import check_writable


def how(args: Namespace, shard: tuple[int, int]) -> How:
    """How cells are run, from the command line."""
    launch = None
    if args.slurm:
        launch = Slurm(Path(args.out), args.partition, args.minutes, args.gpus)
    return How(jobs=args.jobs, shard=Shard(*shard), any_code=args.any_code, launch=launch)


def grid_of(spec: Ablation, out: Path, recipes: Path, overrides: Sequence[str]) -> Grid:
    cells.write_recipes(spec, recipes, overrides)
    return cells.grid(spec, out, recipes, contrast=measuring.has_contrast())


def plan(spec: Ablation, out: Path, overrides: Sequence[str]) -> str:
    """What --plan prints. Nothing is written into `out`."""
    with tempfile.TemporaryDirectory() as place:
        grid = grid_of(spec, out, Path(place), overrides)
        return planning.report(grid, Store(out))


def run(spec: Ablation, out: Path, overrides: Sequence[str], how: How) -> bool:
    """Run what is left and write the report. True if every cell of this start is done."""
    # Everything that can be wrong is said before the first file is written into `out`.
    with tempfile.TemporaryDirectory() as place:
        grid = grid_of(spec, out, Path(place), overrides)
        store = Store(out)
        runner = Runner(grid, store, how)
        runner.check()
    check_writable(out, "--out", directory=True)
    grid = grid_of(spec, out, out / "recipes", overrides)
    runner = Runner(grid, store, how)
    done = runner.run()
    report.write(grid, store)
    return done
