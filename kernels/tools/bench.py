"""python -m kernels.tools.bench: time the fused head, forward + backward, beside dense torch and
the peers.

    python -m kernels.tools.bench [--device cpu|cuda] [--case NAME ...] [--rows R ...] [--dtype D
    ...]
        [--head frozen trained logp] [--peers] [--repeats N] [--json F] [--plot F]

Times forward + backward of log-prob and exact KL, every backend in turn (A B C A B C ...), against
dense torch under autograd, and against the peers that are installed. Columns: median ms; times
dense; TFLOP/s of the least work (4 products of R x D x V with a frozen head, 6 with a trained one);
share of the floor, that work at the rate of one large product measured in the same run; peak extra
memory, each backend in a process of its own on a CPU. A peer does less than we do: the column
`computes` says what.

--case rms_norm swiglu rope: those layers instead, see kernels/tools/bench_layers.py.
"""

import argparse
import importlib.util
import itertools
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kernels.common import Parser
from kernels.tools import bench_layers
from kernels.tools.bench_layers import LAYERS
from kernels.tools.measure import (
    CASES,
    DTYPES,
    HEADS,
    Case,
    Inputs,
    System,
    cpu_peak,
    milliseconds,
    peak,
    product_rate,
    systems,
)

PICTURES = (".png", ".svg", ".pdf")
ROWS = {"cpu": [2048], "cuda": [512, 2048, 8192, 16384]}
DEFAULT_DTYPES = {"cpu": ["float32", "bfloat16"], "cuda": ["bfloat16"]}
Row = dict[str, Any]

# The table


def times_in_turn(
    running: dict[str, System], x: Inputs, device: str, repeats: int
) -> dict[str, list[float]]:
    """Milliseconds of each system; one that runs out of memory has none."""
    times = {name: [] for name in running}
    failed = set()
    for turn in range(repeats + 1):
        for name, system in running.items():
            if name in failed:
                continue
            try:
                ms = milliseconds(system.step, x, device)
            except torch.OutOfMemoryError:
                failed.add(name)
                times[name].clear()
                x.clear()
                torch.cuda.empty_cache()
                continue
            # The first turn warms up.
            if turn:
                times[name].append(ms)
    return times


def measure(case: Case, device: str, repeats: int, with_peers: bool) -> Iterator[Row]:
    """Rows of the table for one case."""
    x = Inputs(case, device)
    rate = product_rate(x, device)
    running = systems(device, case.head, with_peers)
    times = times_in_turn(running, x, device, repeats)
    base = statistics.median(times["dense torch"]) if times["dense torch"] else None
    for name, system in running.items():
        row = {
            "case": case.name,
            "R": case.R,
            "D": case.D,
            "V": case.V,
            "dtype": case.dtype,
            "head": case.head,
            "system": name,
            "computes": system.computes,
        }
        if not times[name]:
            yield row | {"failed": "out of memory"}
            continue
        ms = statistics.median(times[name])
        x.clear()
        yield row | {
            "ms": ms,
            "times": times[name],
            "over_dense": ms / base if base else None,
            "tflops": case.least_flops / ms / 1e9,
            "floor_share": case.least_flops / rate / (ms / 1e3),
            "peak_bytes": peak(name, system.step, case, x, device),
        }


HEADER = (
    f"{'case':10}{'R':>6}  {'dtype':9}{'head':8} {'system':24}"
    f"{'ms':>9}{'dense':>8}{'TFLOP/s':>9}{'floor':>7}{'peak MiB':>10}  computes"
)


def line(row: Row) -> str:
    start = f"{row['case']:10}{row['R']:>6}  {row['dtype']:9}{row['head']:8} {row['system']:24}"
    if "failed" in row:
        return f"{start}{row['failed']}"
    ratio = f"{row['over_dense']:.2f}x" if row["over_dense"] else "-"
    speed = f"{row['ms']:>9.1f}{ratio:>8}{row['tflops']:>9.2f}{row['floor_share']:>7.0%}"
    return f"{start}{speed}{row['peak_bytes'] / 2**20:>10.0f}  {row['computes']}"


def run(cases: list[Case], device: str, repeats: int, with_peers: bool) -> list[Row]:
    """Print the table; returns its rows."""
    print(HEADER)
    results = []
    for case in cases:
        for row in measure(case, device, repeats, with_peers):
            results.append(row)
            print(line(row), flush=True)
    return results


def plot(rows: list[Row], path: str) -> None:
    """One panel for each case, R, dtype and head; bars are medians, dots the single runs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels: dict[str, list[Row]] = {}
    for row in rows:
        if "ms" in row:
            title = f"{row['case']}  R {row['R']}\n{row['dtype']}, {row['head']} head"
            panels.setdefault(title, []).append(row)
    columns = min(4, len(panels))
    lines = math.ceil(len(panels) / columns)
    size = (3.6 * columns, 3.4 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, group) in zip(axes.flat, panels.items()):
        names = [row["system"] for row in group]
        colors = ["#999999" if name == "dense torch" else "#2a6f97" for name in names]
        axis.bar(names, [row["ms"] for row in group], color=colors, width=0.6)
        for i, row in enumerate(group):
            axis.plot([i] * len(row["times"]), row["times"], ".", color="black", markersize=4)
        axis.set_title(title, fontsize=9)
        axis.set_ylabel("ms, forward + backward", fontsize=8)
        axis.tick_params(axis="x", rotation=35, labelsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=140)


# The command


def command_line() -> Parser:
    has_cuda = torch.cuda.is_available()
    parser = Parser(prog="python -m kernels.tools.bench", description=__doc__.split("\n\n")[2])
    add = parser.add_argument
    add("--device", choices=["cpu", "cuda"], default="cuda" if has_cuda else "cpu")
    add("--case", nargs="+", choices=[*CASES, *LAYERS], default=["smollm2"])
    add("--rows", nargs="+", type=int, help="default: 2048 on a CPU, 512 to 16384 on CUDA")
    dtypes = "default: float32 and bfloat16 on a CPU, bfloat16 on CUDA"
    add("--dtype", nargs="+", choices=list(DTYPES), help=dtypes)
    heads = "logp: a frozen head, no reference; default: frozen and trained"
    add("--head", nargs="+", choices=list(HEADS), default=["frozen", "trained"], help=heads)
    add("--repeats", type=int, default=5)
    peers = "also Liger-Kernel and Cut Cross-Entropy, if they are installed"
    add("--peers", action="store_true", help=peers)
    add("--json", help="write every number to this file")
    add("--plot", help="write a picture to this file")
    add("--peak-of", choices=list(systems("cpu")), help=argparse.SUPPRESS)
    return parser


def check(args: argparse.Namespace, parser: Parser) -> None:
    """What the choices of single options leave open."""
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device is here; use --device cpu")
    if args.repeats < 1 or (args.rows and min(args.rows) < 1):
        parser.error("--repeats and --rows take numbers of at least 1")
    for option, path in (("--json", args.json), ("--plot", args.plot)):
        if path and (Path(path).is_dir() or not Path(path).absolute().parent.is_dir()):
            parser.error(f"{option} {path}: expected a file in a directory that exists")
    if args.plot:
        drawable = Path(args.plot).suffix in PICTURES and importlib.util.find_spec("matplotlib")
        endings = ", ".join(PICTURES)
        if not drawable:
            needs = f"--plot takes a name that ends in {endings}, and needs matplotlib"
            parser.error(f"{needs}; got {args.plot}")

    layers = " ".join(name for name in args.case if name in LAYERS)
    heads = " ".join(name for name in args.case if name in CASES)
    if layers and heads:
        own = f"{layers} and {heads} have tables of their own"
        parser.error(f"--case: {own}; run one kind at a time")
    if layers and importlib.util.find_spec("triton") is None:
        parser.error(f"--case {layers}: Triton is not installed")
    if layers and args.peers:
        meant = " and ".join(CASES)
        parser.error(f"--peers: for {meant}; {layers} is compared with torch.compile")


def main(argv: list[str] | None = None) -> None:
    parser = command_line()
    args = parser.parse_args(argv)
    check(args, parser)
    rows = args.rows or ROWS[args.device]
    dtypes = args.dtype or DEFAULT_DTYPES[args.device]
    if args.peak_of:
        case = Case(args.case[0], rows[0], dtypes[0], args.head[0])
        print(cpu_peak(systems("cpu")[args.peak_of].step, Inputs(case, "cpu")))
        return

    where = f"CPU, {torch.get_num_threads()} threads"
    if args.device == "cuda":
        where = torch.cuda.get_device_name()
    print(f"{where}, torch {torch.__version__}; forward + backward, medians of {args.repeats}")
    if args.case[0] in LAYERS:
        cases = bench_layers.cases(args.case, args.rows, dtypes, args.head, args.device)
        results = bench_layers.run(cases, args.device, args.repeats)
    else:
        lines = itertools.product(args.case, rows, dtypes, args.head)
        cases = [Case(*line) for line in lines]
        results = run(cases, args.device, args.repeats, args.peers)

    if args.json:
        record = {
            "device": where,
            "torch": torch.__version__,
            "repeats": args.repeats,
            "rows": results,
        }
        Path(args.json).write_text(json.dumps(record, indent=1), encoding="utf-8")
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
