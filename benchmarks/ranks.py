"""python benchmarks/ranks.py: the same run on 1, 2 and 4 gloo processes, split into micro-batches
in every way, LoRA and full; as a table.

A tiny random model in float32, three epochs of 12 preferences, prompts packed once. Each row: the
largest relative distance of a final tensor, and of a step's loss, from the run on 1 process without
accumulation. Last: one run that changes its number of processes 4 -> 2 -> 1 -> 4.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from runs import run_all, weights, write_recipe

SETTINGS = """
[training]
epochs = 3
batch_preferences = 5
lr = 1e-3
checkpoint_every = 1
keep_checkpoints = 9
"""
KINDS = {"LoRA": "lora.rank=4", "full": "lora.rank=0"}
SPLITS = ((1, 1), (2, 1), (2, 2), (4, 1), (4, 2))  # processes, replicas
CHAIN = ((4, 2), (2, 4), (1, 7), (4, 9))  # processes, and the step after which they are cut
STEPS = 9


def result(run: Path) -> tuple[dict, list[float]]:
    """(weights in float64, the loss of each step)."""
    tensors = {name: tensor.double() for name, tensor in weights(run).items()}
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return tensors, [json.loads(line)["loss"] for line in lines]


def distances(run: Path, whole: Path) -> str:
    """The largest relative distance of a tensor, and of a loss, as two columns."""
    (got, losses), (want, wanted) = result(run), result(whole)
    of_weights = max(float((got[n] - want[n]).norm() / want[n].norm()) for n in want)
    of_loss = max(abs(a - b) / abs(b) for a, b in zip(losses, wanted, strict=True))
    return f"{of_weights:.1e} | {of_loss:.1e}"


def every_split(place: Path, recipe: Path) -> None:
    """A row for each number of processes, replicas and size of micro-batches."""
    for processes, replicas in SPLITS:
        micros = (5, 1, 2, 3, 4) if replicas == 1 else (2,)
        runs = {
            (kind, micro): place / f"{kind}-{processes}-{replicas}-{micro}"
            for kind in KINDS
            for micro in micros
        }
        commands = [
            f"{recipe} {KINDS[kind]} run.dir={run} training.micro_preferences={micro} "
            f"training.replicas={replicas}"
            for (kind, micro), run in runs.items()
        ]
        run_all(place, processes, commands)
        for (kind, micro), run in runs.items():
            columns = distances(run, place / f"{kind}-1-1-5")
            print(f"| {kind} | {processes} | {replicas} | {micro} | {columns} |", flush=True)


def one_chain(place: Path, recipe: Path, kind: str) -> None:
    """A run that is cut, as a kill would, and goes on with another number of processes."""
    run = place / f"{kind}-chain"
    for processes, upto in CHAIN:
        run_all(
            place,
            processes,
            [f"{recipe} {KINDS[kind]} run.dir={run} training.micro_preferences=2"],
        )
        if upto < STEPS:
            shutil.rmtree(run / "final")
            for step in range(upto + 1, STEPS + 1):
                shutil.rmtree(run / "checkpoints" / f"step-{step:06d}")
    columns = distances(run, place / f"{kind}-1-1-5")
    print(f"| {kind} | 4, 2, 1, 4 | 1 | 2 | {columns} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="The same run on 1, 2 and 4 gloo processes")
    parser.add_argument("--model", default="models/smollm2", help="for its tokenizer")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        recipe = write_recipe(place, args.model, SETTINGS)
        print(f"torch {torch.__version__}")
        print("| trained | processes | replicas | micro | weights | loss |")
        print("|---|---|---|---|---|---|", flush=True)
        every_split(place, recipe)
        for kind in KINDS:
            one_chain(place, recipe, kind)


if __name__ == "__main__":
    main()
