"""One cell, in a process of its own: train, measure, keep.

    python -m ecliptica.experiments.work DIR/work/NAME.json

Everything it needs stands in that file. Killed anywhere and started again it goes on
where it was: the run from its checkpoint, the suites from the ledger.
"""

import errno
import fcntl
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ecliptica.files import journal, read_json
from model import cli
from model.errors import InputError

FULL = 74  # the exit code of a disk that is full: no fault of the cell
PARENT_DIED = 1  # PR_SET_PDEATHSIG of prctl(2)
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(prog="python -m ecliptica.experiments.work", description=__doc__)
    parser.add_argument("plan", help="DIR/work/NAME.json of an ablation")
    parser.add_argument("--parent", type=int, help="process without which this one is to end")
    args = parser.parse_args(argv)
    if args.parent:
        end_with(args.parent)
    path = Path(args.plan)
    with open(path.with_suffix(".lock"), "a") as file:
        # Another shard may be at it: then this one waits, and finds it done.
        fcntl.flock(file, fcntl.LOCK_EX)
        work(read_json(path))


def end_with(parent: int) -> None:
    """Have the system kill this process when its parent is gone, however that ended."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(PARENT_DIED, signal.SIGKILL)
    if os.getppid() != parent:
        raise InputError("the ablation that started this cell is gone; start it again")


def work(plan: dict[str, Any]) -> None:
    """Train and measure what the plan says; its rows and units go into the ablation's store."""
    from ecliptica.experiments.store import Store, rows_of

    store = Store(Path(plan["out"]))
    directory = Path(plan["run"])
    name, arm, seed = plan["cell"], plan["arm"], plan["seed"]
    wanted_again = seed is not None and not (directory / "final").is_dir()
    if name in store.done() and not wanted_again:
        return
    config = trained(plan)
    if name in store.done():
        return

    # Training ends here; what follows is not counted as its cost.
    from ecliptica.experiments import measuring

    began = time.perf_counter()
    rows = []
    for label, results in measuring.measured(directory, plan, config):
        store.keep_units(name, label, results)
        rows += rows_of(name, arm, seed, label, results)
    seconds = time.perf_counter() - began
    record = {
        "cell": name,
        "arm": arm,
        "seed": seed,
        **plan["claim"],
        "command": plan["command"],
        "training": cost(directory, config) if seed is not None else None,
        "evaluation_seconds": round(seconds, 1),
        "machine": plan["machine"],
        "ablation": any_ablation(directory),
    }
    store.add(name, rows, record)


def trained(plan: dict[str, Any]):
    """The cell's config, its run done. Of the control nothing is trained."""
    from ecliptica.config import load
    from ecliptica.recipe import Config

    recipe, overrides = plan["recipe"], plan["overrides"]
    config = load(Config, recipe, overrides)
    if plan["seed"] is not None:
        from ecliptica.training.loop import train

        train(config)
    return config


def any_ablation(directory: Path) -> bool:
    """Whether the run lifted its KL, or trained on what is none."""
    from ecliptica.record import read_record

    final = directory / "final"
    return bool(final.is_dir() and read_record(final).get("ablation"))


def cost(directory: Path, config: Any) -> dict[str, Any]:
    """What training took and how likelihoods moved, from metrics.jsonl: the run's own numbers."""
    steps = journal(directory / "metrics.jsonl")
    seconds = sum(row["step_seconds"] + (row.get("data_seconds") or 0.0) for row in steps)
    tokens = sum((row.get("tokens_per_second") or 0.0) * row["step_seconds"] for row in steps)
    last = steps[-1]
    return {
        "steps": len(steps),
        "preferences": len(steps) * config.training.batch_preferences,
        "tokens": round(tokens),
        "seconds": round(seconds, 2),
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        "peak_memory_gib": max((row.get("peak_memory_gib") or 0.0) for row in steps),
        "chosen_change": last.get("logps/chosen_change"),
        "rejected_change": last.get("logps/rejected_change"),
        "loss": last.get("loss"),
    }


def run(argv: Sequence[str] | None = None) -> int:
    """main as a command; a full disk has an exit code of its own."""

    def told_apart(argv: Sequence[str] | None) -> None:
        try:
            main(argv)
        except OSError as error:
            if error.errno in FULL_DISK:
                full.append(error)
            raise

    full: list[OSError] = []
    code = cli.run(told_apart, argv)
    return FULL if full else code


if __name__ == "__main__":
    sys.exit(run())
