"""python benchmarks/ranks.py: the same run on 1, 2 and 4 gloo processes, split into micro-batches in every way, LoRA and full; as a table.

A tiny random model in float32, three epochs of 12 preferences, prompts packed once. Each row: the largest relative distance of a final tensor, and of a
step's loss, from the run on 1 process without accumulation. Last: one run that changes its number of processes 4 -> 2 -> 1 -> 4.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests import conftest  # noqa: E402
from tests.conftest import write_jsonl, write_tiny  # noqa: E402

SEVERAL = """
import sys
from ecliptica.config import load
from ecliptica.recipe import Config
from ecliptica.running.ranks import joined
from ecliptica.training.loop import train
with joined() as ranks:
    for line in open(sys.argv[1]):
        recipe, *overrides = line.split()
        train(load(Config, recipe, overrides), ranks)
"""


def launch(place, processes, lines):
    """Run the recipes in `lines`, one after another, in one torchrun of so many processes."""
    (place / "several.py").write_text(SEVERAL)
    (place / "lines").write_text("\n".join(lines))
    launcher = (
        []
        if processes == 1
        else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    )
    done = subprocess.run(
        [sys.executable, *launcher, f"{place}/several.py", f"{place}/lines"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


def result(run):
    weights = {
        n: t.double()
        for path in sorted((run / "final").glob("*.safetensors"))
        for n, t in load_file(path).items()
    }
    return weights, [
        json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()
    ]


def distances(found, want):
    weights = max(float((found[0][n] - want[0][n]).norm() / want[0][n].norm()) for n in want[0])
    return weights, max(abs(a - b) / abs(b) for a, b in zip(found[1], want[1], strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="models/smollm2", help="for its tokenizer")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        tiny, data = (
            write_tiny(place / "tiny", Path(args.model)),
            write_jsonl(place / "train.jsonl", conftest.some_preferences()),
        )
        (place / "r.toml").write_text(
            f'[model]\npath = "{tiny}"\ndtype = "float32"\n[data]\ntrain = "{data}"\n[training]\nepochs = 3\n'
            "batch_preferences = 5\nlr = 1e-3\ncheckpoint_every = 1\nkeep_checkpoints = 9\n"
        )
        kinds = {"LoRA": "lora.rank=4", "full": "lora.rank=0"}
        print(
            f"torch {torch.__version__}\n| trained | processes | replicas | micro | weights | loss |\n|---|---|---|---|---|---|",
            flush=True,
        )
        for processes, replicas in ((1, 1), (2, 1), (2, 2), (4, 1), (4, 2)):
            micros = (5, 1, 2, 3, 4) if replicas == 1 else (2,)
            name = f"{processes}-{replicas}"
            launch(
                place,
                processes,
                [
                    f"{place}/r.toml {key} run.dir={place}/{kind}-{name}-{micro} training.micro_preferences={micro} training.replicas={replicas}"
                    for kind, key in kinds.items()
                    for micro in micros
                ],
            )
            for kind in kinds:
                for micro in micros:
                    weights, loss = distances(
                        result(place / f"{kind}-{name}-{micro}"), result(place / f"{kind}-1-1-5")
                    )
                    print(
                        f"| {kind} | {processes} | {replicas} | {micro} | {weights:.1e} | {loss:.1e} |",
                        flush=True,
                    )
        for kind, key in kinds.items():
            chain = place / f"{kind}-chain"
            for processes, upto in ((4, 2), (2, 4), (1, 7), (4, 9)):
                launch(
                    place,
                    processes,
                    [f"{place}/r.toml {key} run.dir={chain} training.micro_preferences=2"],
                )
                if upto < 9:  # as if it had been cut there
                    shutil.rmtree(chain / "final")
                    for step in range(upto + 1, 10):
                        shutil.rmtree(chain / "checkpoints" / f"step-{step:06d}")
            weights, loss = distances(result(chain), result(place / f"{kind}-1-1-5"))
            print(f"| {kind} | 4, 2, 1, 4 | 1 | 2 | {weights:.1e} | {loss:.1e} |", flush=True)


if __name__ == "__main__":
    main()
