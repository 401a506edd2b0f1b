"""python benchmarks/survival.py [--kills 20] [--processes 1] [--reference cache]: kill -9 a run at so many points, go on, compare the bits.

A tiny random model, LoRA with dropout, a checkpoint after every second step. Each run is killed once (all of its processes) at a point drawn with
a seed: while it loads, while the cache is made, after a step, inside a checkpoint's write, inside the export. Then the same command
runs to its end. Prints a table; exit code 1 if a run is lost or its final weights differ in one bit from the run that was left alone.
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
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests import conftest  # noqa: E402
from tests.conftest import write_jsonl, write_tiny  # noqa: E402

STEPS = 14
POINTS = ("loading", "cache", "step", "checkpoint", "export")


def start(recipe, run, processes, threads):
    launcher = (
        []
        if processes == 1
        else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    )
    return subprocess.Popen(
        [sys.executable, *launcher, "train.py", str(recipe), f"run.dir={run}"],
        cwd=ROOT,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )


def there(run, point, number):
    """Whether a run is at the point where it is to be killed."""
    lines = run / "metrics.jsonl"
    if point == "cache":
        return any(run.glob("cache/*/.part-*")) or any(run.glob("cache/*/part-*"))
    if point == "step":
        return lines.exists() and lines.read_bytes().count(b"\n") >= number
    if point == "checkpoint":
        return any(int(p.name[6:12]) >= number for p in run.glob("checkpoints/.step-*.part"))
    return any(run.glob(".final.*.tmp")) or (run / "final").exists()


def where(run):
    """What is in the directory of a run that was killed, in a few words."""
    done = sorted(p.name[5:].lstrip("0") for p in run.glob("checkpoints/step-*"))
    cut = [p.name[6:12].lstrip("0") for p in run.glob("checkpoints/.step-*.part")]
    lines = (
        (run / "metrics.jsonl").read_bytes().count(b"\n") if (run / "metrics.jsonl").exists() else 0
    )
    rest = (
        "export done"
        if (run / "final").exists()
        else "export cut"
        if any(run.glob(".final.*.tmp"))
        else ""
    )
    return (
        f"{lines:2d} steps; checkpoints {' '.join(done) or '-'}"
        + (f"; cut inside {cut[0]}" if cut else "")
        + (f"; {rest}" if rest else "")
    )


def kill(process, run, point, draw):
    number = draw.randrange(2, STEPS)
    if point != "loading":
        while process.poll() is None and not there(run, point, number):
            time.sleep(0.0005)
    time.sleep(
        draw.uniform(
            *{
                "loading": (0.5, 6),
                "cache": (0, 0.01),
                "step": (0, 0.1),
                "checkpoint": (0, 0.03),
                "export": (0, 0.01),
            }[point]
        )
    )
    if process.poll() is None:
        os.killpg(
            process.pid, signal.SIGKILL
        )  # with torchrun: of torchrun, whose processes end with it
    process.communicate()


def final(run):
    return {
        name: tensor
        for path in sorted((run / "final").glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--reference", default="cache", choices=("cache", "adapter-off", "model"))
    parser.add_argument("--rank", type=int, default=4, help="of LoRA; 0: full fine-tuning")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--model", default="models/smollm2", help="for its tokenizer")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        tiny, data = (
            write_tiny(place / "tiny", Path(args.model)),
            write_jsonl(place / "train.jsonl", conftest.some_preferences()),
        )
        recipe = place / "small.toml"
        recipe.write_text(
            f'[model]\npath = "{tiny}"\ndtype = "float32"\n[data]\ntrain = "{data}"\n[lora]\nrank = {args.rank}\n'
            f"dropout = {0.1 if args.reference != 'cache' and args.rank else 0.0}\n[training]\nmax_steps = {STEPS}\nbatch_preferences = 5\nlr = 1e-3\n"
            f'checkpoint_every = 2\nreference = "{args.reference}"\n'
        )
        out, _ = start(recipe, place / "whole", args.processes, args.threads).communicate()
        want, same, lost, draw = final(place / "whole"), 0, 0, random.Random(args.processes)
        points = [point for point in POINTS if point != "cache" or args.reference == "cache"]
        print(
            f"{args.kills} kills, {args.processes} process(es) of {args.threads} thread(s), {args.reference}, {'LoRA' if args.rank else 'full'}, torch {torch.__version__}",
            flush=True,
        )
        for number in range(args.kills):
            run, point = place / f"run-{number}", points[number % len(points)]
            kill(start(recipe, run, args.processes, args.threads), run, point, draw)
            at = where(run)
            again = start(recipe, run, args.processes, args.threads)
            out, _ = again.communicate()
            if again.returncode:
                lost, verdict = lost + 1, f"LOST: {out.strip().splitlines()[-1]}"
            else:
                found = final(run)
                equal = found.keys() == want.keys() and all(
                    torch.equal(found[name], want[name]) for name in want
                )
                same, verdict = same + equal, "same bits" if equal else "OTHER BITS"
            words = next(
                (line.rpartition(": ")[2] for line in out.splitlines() if "resumed after" in line),
                "already complete" if "is complete" in out else "from step 0",
            )
            print(
                f"| {number + 1:2d} | {point:<10} | {at:<62} | {words:<28} | {verdict} |",
                flush=True,
            )
        print(f"{same} of {args.kills} ended with the same bits, {lost} lost")
        return 0 if same == args.kills else 1


if __name__ == "__main__":
    sys.exit(main())
