"""How the cost of a training step grows, an axis a command:

    python benchmarks/growth.py responses|length|vocabulary|batch|epochs|prefix [--name cpu]

A random model of few layers (LoRA, exact KL to itself with adapters off), every point in a process
of its own: processor seconds in the median of the repeats, and peak memory. `prefix`: prompt and
response lengths of published tables, with 2, 4 and 10 responses, the prompt computed once against a
copy of it a response. Writes benchmarks/results/growth-AXIS-NAME.json and the plot beside it.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import machine  # noqa: E402

AXES = {
    "responses": [{"responses": count} for count in (1, 2, 4, 10, 20)],
    "length": [{"prompt": count, "response": count} for count in (32, 64, 128, 256, 512)],
    "vocabulary": [{"vocabulary": 2**power} for power in (12, 13, 14, 15, 16, 17)],
    "batch": [{"batch": count} for count in (1, 2, 4, 8, 16, 32)],
    "epochs": [{"epochs": count} for count in (1, 2, 4, 8)],
}
# (prompt, response) tokens of the published tables of prefix sharing.
LENGTHS = ((64, 512), (256, 256), (512, 256), (1024, 256), (1024, 1024), (4096, 256))
RESPONSES = (2, 4, 10)


def point(settings: dict[str, int], apart: bool, args: argparse.Namespace) -> dict[str, float]:
    """What one process measures."""
    command = [sys.executable, str(ROOT / "benchmarks/growth_worker.py")]
    command += ["--repeats", str(args.repeats), "--threads", str(args.threads)]
    command += ["--layers", str(args.layers), "--hidden", str(args.hidden)]
    for name, value in settings.items():
        command += [f"--{name}", str(value)]
    if apart:
        command.append("--apart")
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def along(axis: str, args: argparse.Namespace) -> list[dict]:
    """The points of one axis, the other settings at their defaults."""
    points = []
    for settings in AXES[axis][: args.points]:
        points.append(settings | point(settings, False, args))
        print(json.dumps(points[-1]), flush=True)
    return points


def prefix_grid(args: argparse.Namespace) -> list[dict]:
    """Shared prompt against a copy a response; speedup and memory are ratios, above 1: ours."""
    points = []
    for prompt, response in LENGTHS[: args.points]:
        for responses in RESPONSES:
            settings = {"prompt": prompt, "response": response, "responses": responses, "batch": 1}
            shared = point(settings, False, args)
            copied = point(settings, True, args)
            settings["shared"] = shared
            settings["copied"] = copied
            settings["speedup"] = copied["cpu_seconds"] / shared["cpu_seconds"]
            settings["memory"] = copied["peak_bytes"] / shared["peak_bytes"]
            settings["tokens"] = copied["tokens"] / shared["tokens"]
            points.append(settings)
            print(json.dumps(settings), flush=True)
    return points


def plot(axis: str, points: list[dict], path: Path) -> None:
    """Seconds and memory along an axis; of the grid the speedup, a line a number of responses."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if axis == "prefix":
        figure, panel = plt.subplots(figsize=(6, 3))
        for responses in RESPONSES:
            own = [each for each in points if each["responses"] == responses]
            names = [f"{each['prompt']}/{each['response']}" for each in own]
            panel.plot(names, [each["speedup"] for each in own], "o-", label=f"{responses}")
        panel.axhline(1, color="#a0aec0", linewidth=0.8)
        panel.set_xlabel("prompt / response, tokens")
        panel.set_ylabel("times as fast")
        panel.legend(title="responses", fontsize=8)
    else:
        key = list(AXES[axis][0])[-1]
        at = [each[key] for each in points]
        figure, (seconds, memory) = plt.subplots(1, 2, figsize=(7, 2.8))
        seconds.plot(at, [each["cpu_seconds"] for each in points], "o-", color="#2b6cb0")
        seconds.set_ylabel("processor seconds")
        memory.plot(at, [each["peak_bytes"] / 2**20 for each in points], "o-", color="#2b6cb0")
        memory.set_ylabel("peak MiB")
        for panel in (seconds, memory):
            panel.set_xlabel(axis)
            panel.set_xscale("log", base=2)
            panel.set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("axis", choices=[*AXES, "prefix"])
    parser.add_argument("--name", default="cpu", help="of the result's file")
    parser.add_argument("--points", type=int, help="only so many: a quick look")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=256)
    args = parser.parse_args(argv)

    points = prefix_grid(args) if args.axis == "prefix" else along(args.axis, args)
    name = f"growth-{args.axis}-{args.name}"
    path = machine.save(name, {"settings": vars(args), "points": points})
    plot(args.axis, points, path.with_suffix(".png"))
    print(path)


if __name__ == "__main__":
    main()
