"""python benchmarks/training.py MODEL_DIR: our training step beside TRL's DPOTrainer, in turn.

CITA with exact KL here, DPO without KL there; the same preferences, LoRA rank 8, AdamW, 8
preferences a step, the first step not counted. Each round starts every trainer anew. Ratios are of
medians over all steps; on a shared machine those of processor seconds repeat, those of wall time do
not. Writes benchmarks/results/training-NAME.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import machine, render  # noqa: E402
from ecliptica.isd.__main__ import main as isd  # noqa: E402


def preferences(model: str, place: Path, count: int) -> tuple[Path, Path]:
    """The demo's first `count` preferences: as cita lines, and as rendered text."""
    pairs = place / "pairs.jsonl"
    isd(["build", "--split", "train", "--out", str(pairs)])
    pairs.write_text("".join(pairs.read_text().splitlines(keepends=True)[:count]))
    rendered = place / "rendered.jsonl"
    render.main([str(pairs), "chatml", model, str(rendered)])
    return pairs, rendered


def run(python: str, checkout: Path, trainer: str, data: Path, args: argparse.Namespace) -> dict:
    """One worker from start to end, without the network."""
    command = [python, str(checkout / "benchmarks/training_worker.py"), trainer, args.model]
    command += [str(data), "--steps", str(args.steps), "--pairs", str(args.pairs)]
    command += ["--threads", str(args.threads), "--targets", args.targets, "--dtype", args.dtype]
    if trainer == "ours":
        command += ["--reference", args.reference]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(rounds: list[dict], pairs: int) -> dict:
    """Medians over all counted steps of all rounds."""
    wall = [second for each in rounds for second in each["wall_seconds"]]
    cpu = [second for each in rounds for second in each["cpu_seconds"]]
    rates = [each["gemm_flops_per_second"] for each in rounds]
    result = {
        "steps": len(wall),
        "preferences_per_second": pairs / statistics.median(wall),
        "preferences_per_cpu_second": pairs / statistics.median(cpu),
        "best_preferences_per_cpu_second": pairs / min(cpu),
        "peak_bytes": statistics.median(each["peak_bytes"] for each in rounds),
        "gemm_flops_per_second": statistics.median(rates),
    }
    if "flops_per_step" in rounds[0]:
        floor = rounds[0]["flops_per_step"] / result["gemm_flops_per_second"]
        result["floor_cpu_seconds"] = floor
        result["times_the_floor"] = statistics.median(cpu) / floor
    return result


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--name", default="cpu", help="of the result's file")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="a round; the first is not counted")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--targets", default="qv", choices=["qv", "all"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--reference", default="adapter-off", choices=["adapter-off", "cache"])
    parser.add_argument("--before", type=Path, help="an older checkout, as one more row")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has trl")
    args = parser.parse_args(argv)

    rounds: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as place:
        pairs, rendered = preferences(args.model, Path(place), 8 * args.pairs)
        for _ in range(args.rounds):
            rounds.setdefault("ours", []).append(run(sys.executable, ROOT, "ours", pairs, args))
            rounds.setdefault("trl", []).append(run(args.peer_python, ROOT, "trl", rendered, args))
            if args.before:
                older = run(sys.executable, args.before, "ours", pairs, args)
                rounds.setdefault("before", []).append(older)
            print(json.dumps({name: each[-1] for name, each in rounds.items()}), flush=True)

    systems = {name: summary(each, args.pairs) for name, each in rounds.items()}
    ours = systems["ours"]
    ratios = {
        name: {
            "speed_by_cpu_time": ours["preferences_per_cpu_second"]
            / other["preferences_per_cpu_second"],
            "speed_by_wall_time": ours["preferences_per_second"] / other["preferences_per_second"],
            "memory": ours["peak_bytes"] / other["peak_bytes"],
        }
        for name, other in systems.items()
        if name != "ours"
    }
    # Where things lie on this machine is no part of a result.
    settings = {k: str(v) for k, v in vars(args).items() if k not in ("peer_python", "before")}
    result = {"settings": settings, "systems": systems, "ours_against": ratios}
    print(json.dumps(result, indent=1))
    print(machine.save(f"training-{args.name}", result))


if __name__ == "__main__":
    main()
