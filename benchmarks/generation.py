"""python benchmarks/generation.py MODEL_DIR: our greedy generation and transformers', in turn.

The demo's prompts, 64 new tokens, float32. A round is one batch and starts every generator anew;
ratios are of medians. The tokens are compared: the same, or the result says how many answers
differ. Writes benchmarks/results/generation-NAME.json.
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

from benchmarks import machine  # noqa: E402
from benchmarks.training import preferences  # noqa: E402


def run(python: str, checkout: Path, generator: str, data: Path, args, batch: int) -> dict:
    """One worker from start to end, without the network."""
    command = [python, str(checkout / "benchmarks/generation_worker.py"), generator, args.model]
    command += [str(data), "--new", str(args.new), "--batch", str(batch)]
    command += ["--threads", str(args.threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(rounds: list[dict]) -> dict:
    """Medians of the rounds; tokens are those of the answers, stop tokens not counted."""
    return {
        "tokens": rounds[0]["tokens"],
        "tokens_per_second": statistics.median(r["tokens"] / r["wall_seconds"] for r in rounds),
        "tokens_per_cpu_second": statistics.median(r["tokens"] / r["cpu_seconds"] for r in rounds),
        "peak_bytes": statistics.median(r["peak_bytes"] for r in rounds),
    }


def compare(args: argparse.Namespace, data: Path, batch: int) -> dict:
    """All generators on one batch, `args.rounds` times in turn."""
    python = {"ours": sys.executable, "transformers": args.peer_python}
    rounds: dict[str, list[dict]] = {}
    for _ in range(args.rounds):
        for name in ("ours", "transformers"):
            rounds.setdefault(name, []).append(run(python[name], ROOT, name, data, args, batch))
        if args.before:
            older = run(sys.executable, args.before, "ours", data, args, batch)
            rounds.setdefault("before", []).append(older)
    systems = {name: summary(each) for name, each in rounds.items()}
    ours = systems["ours"]
    result = {}
    for name, other in systems.items():
        pairs = zip(rounds["ours"][0]["answers"], rounds[name][0]["answers"])
        result[name] = other | {
            "ours_times_as_fast_by_cpu_time": ours["tokens_per_cpu_second"]
            / other["tokens_per_cpu_second"],
            "ours_times_as_fast_by_wall_time": ours["tokens_per_second"]
            / other["tokens_per_second"],
            "answers_that_differ": sum(a != b for a, b in pairs),
        }
    return result


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--name", default="cpu", help="of the result's file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--before", type=Path, help="an older checkout, as one more row")
    parser.add_argument("--peer-python", default=sys.executable, help="one that has transformers")
    args = parser.parse_args(argv)

    results = {}
    with tempfile.TemporaryDirectory() as place:
        for batch in args.batches:
            _, rendered = preferences(args.model, Path(place), batch)
            results[f"batch {batch}"] = compare(args, rendered, batch)
            print(json.dumps({f"batch {batch}": results[f"batch {batch}"]}, indent=1), flush=True)
    # Where things lie on this machine is no part of a result.
    settings = {k: str(v) for k, v in vars(args).items() if k not in ("peer_python", "before")}
    print(machine.save(f"generation-{args.name}", {"settings": settings, "systems": results}))


if __name__ == "__main__":
    main()
