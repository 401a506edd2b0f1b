"""python benchmarks/startup.py MODEL_DIR: from the command to its help, and to its first step.

Each command is a process of its own, several times; medians of wall and of processor seconds. The
first step is reached when its forward begins. Writes benchmarks/results/startup-NAME.json.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import machine  # noqa: E402

# Runs train.py's main up to the first step, then ends the process.
UNTIL_FIRST_STEP = """
import os, sys
import train
import ecliptica.training.loop as loop
loop.optimizer_step = lambda *_: os._exit(0)
train.main(sys.argv[1:])
"""


def seconds(command: list[str], threads: int) -> tuple[float, float]:
    """(wall, processor) seconds of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--name", default="cpu", help="of the result's file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)

    model = [f"model.path={Path(args.model).resolve()}", "model.dtype=float32"]
    results = {}
    with tempfile.TemporaryDirectory() as place:
        for name, command in {
            "import torch": ["-c", "import torch"],
            "train.py --help": ["train.py", "--help"],
            "eval.py --help": ["eval.py", "--help"],
            "train.py demo, to the first step": ["-c", UNTIL_FIRST_STEP, "demo", *model],
        }.items():
            measured = []
            for number in range(args.rounds):
                run = [f"run.dir={place}/{number}"] if "demo" in command else []
                measured.append(seconds([sys.executable, *command, *run], args.threads))
            results[name] = {
                "wall_seconds": statistics.median(wall for wall, _ in measured),
                "cpu_seconds": statistics.median(cpu for _, cpu in measured),
            }
            print(json.dumps({name: results[name]}), flush=True)
    print(machine.save(f"startup-{args.name}", {"rounds": args.rounds, "commands": results}))


if __name__ == "__main__":
    main()
