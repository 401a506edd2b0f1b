"""python benchmarks/survival.py [--kills 20] [--processes 1] [--reference cache]: kill -9 a run at
so many points, go on, compare the bits.

A tiny random model, LoRA with dropout, a checkpoint after every second step. Each run is killed
once (all of its processes) at a point drawn with a seed: while it loads, while the cache is made,
after a step, inside a checkpoint's write, inside the export. Then the same command runs to its end.
Prints a table; exit code 1 if a run is lost or its final weights differ in one bit from the run
that was left alone.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from runs import ROOT, environment, launcher, weights, write_recipe

STEPS = 14
# The points, and seconds from reaching one to the kill: at least, at most.
POINTS = {
    "loading": (0.5, 6),
    "cache": (0, 0.01),
    "step": (0, 0.1),
    "checkpoint": (0, 0.03),
    "export": (0, 0.01),
}
SETTINGS = """
[lora]
rank = {rank}
dropout = {dropout}
[training]
max_steps = {steps}
batch_preferences = 5
lr = 1e-3
checkpoint_every = 2
reference = "{reference}"
"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="kill -9 a run, go on, compare the bits")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--reference", default="cache", choices=("cache", "adapter-off", "model"))
    parser.add_argument("--rank", type=int, default=4, help="of LoRA; 0: full fine-tuning")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--model", default="models/smollm2", help="for its tokenizer")
    return parser.parse_args()


def start(recipe: Path, run: Path, args: argparse.Namespace) -> subprocess.Popen:
    """The run, in a session of its own so that all of it can be killed."""
    return subprocess.Popen(
        [*launcher(args.processes), "train.py", str(recipe), f"run.dir={run}"],
        cwd=ROOT,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(args.threads),
    )


def is_at(run: Path, point: str, number: int) -> bool:
    """Whether a run is at the point where it is to be killed."""
    lines = run / "metrics.jsonl"
    if point == "cache":
        return any(run.glob("cache/*/.part-*")) or any(run.glob("cache/*/part-*"))
    if point == "step":
        return lines.exists() and lines.read_bytes().count(b"\n") >= number
    if point == "checkpoint":
        return any(int(p.name[6:12]) >= number for p in run.glob("checkpoints/.step-*.part"))
    return any(run.glob(".final.*.tmp")) or (run / "final").exists()


def contents(run: Path) -> str:
    """What is in the directory of a run that was killed, in a few words."""
    metrics = run / "metrics.jsonl"
    lines = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
    done = sorted(p.name[5:].lstrip("0") for p in run.glob("checkpoints/step-*"))
    words = [f"{lines:2d} steps", f"checkpoints {' '.join(done) or '-'}"]
    words += [
        f"cut inside {p.name[6:12].lstrip('0')}" for p in run.glob("checkpoints/.step-*.part")
    ]
    if (run / "final").exists():
        words.append("export done")
    elif any(run.glob(".final.*.tmp")):
        words.append("export cut")
    return "; ".join(words)


def kill_at(process: subprocess.Popen, run: Path, point: str, draw: random.Random) -> None:
    """Wait for the point and a drawn moment more, then kill. With torchrun: torchrun, whose
    processes end with it."""
    number = draw.randrange(2, STEPS)
    if point != "loading":
        while process.poll() is None and not is_at(run, point, number):
            time.sleep(0.0005)
    time.sleep(draw.uniform(*POINTS[point]))
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def how_it_went_on(out: str) -> str:
    """Where the second start began, by what it printed."""
    for line in out.splitlines():
        if "resumed after" in line:
            return line.rpartition(": ")[2]
    return "already complete" if "is complete" in out else "from step 0"


def same_bits(run: Path, want: dict) -> bool:
    got = weights(run)
    return got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)


def main() -> int:
    args = arguments()
    points = [point for point in POINTS if point != "cache" or args.reference == "cache"]
    draw = random.Random(args.processes)
    same = lost = 0
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        dropout = 0.1 if args.reference != "cache" and args.rank else 0.0
        settings = SETTINGS.format(
            rank=args.rank, dropout=dropout, steps=STEPS, reference=args.reference
        )
        recipe = write_recipe(place, args.model, settings)

        # The run that nothing happens to.
        start(recipe, place / "whole", args).communicate()
        want = weights(place / "whole")
        trained = "LoRA" if args.rank else "full"
        print(
            f"{args.kills} kills, {args.processes} process(es) of {args.threads} thread(s), "
            f"{args.reference}, {trained}, torch {torch.__version__}",
            flush=True,
        )
        for number in range(args.kills):
            run, point = place / f"run-{number}", points[number % len(points)]
            kill_at(start(recipe, run, args), run, point, draw)
            left = contents(run)
            again = start(recipe, run, args)
            out, _ = again.communicate()
            if again.returncode:
                lost += 1
                verdict = f"LOST: {out.strip().splitlines()[-1]}"
            elif same_bits(run, want):
                same += 1
                verdict = "same bits"
            else:
                verdict = "OTHER BITS"
            print(
                f"| {number + 1:2d} | {point:<10} | {left:<62} | {how_it_went_on(out):<28} | "
                f"{verdict} |",
                flush=True,
            )
    print(f"{same} of {args.kills} ended with the same bits, {lost} lost")
    return 0 if same == args.kills else 1


if __name__ == "__main__":
    sys.exit(main())
