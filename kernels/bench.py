"""python -m kernels.bench [--device cpu|cuda] [--case NAME ...] [--rows R ...] [--dtype D ...] [--head H ...] [--peers] [--repeats N] [--json F] [--plot F]

Times forward + backward of log-prob and exact KL, every backend in turn (A B C A B C ...), against dense torch under autograd, and against
the peers that are installed. Columns: median ms; times dense; TFLOP/s of the least work (4 products of R x D x V with a frozen head, 6 with
a trained one); share of the floor, that work at the rate of one large product measured in the same run; peak extra memory, each backend in a
process of its own on a CPU. A peer does less than we do: the column `computes` says what.

--case rms_norm swiglu: those two layers instead, see kernels/bench_layers.py.
"""

import argparse
import importlib.util
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from kernels import linear_logp_kl
from kernels.common import Parser

LAYERS = ("rms_norm", "swiglu")  # kernels/bench_layers.py
CASES = {"smollm2": (576, 49152), "llama3-8b": (4096, 128256)}  # D, V
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PICTURES = (".png", ".svg", ".pdf")
ROWS = {"cpu": [2048], "cuda": [512, 2048, 8192, 16384]}


class Inputs:
    """One batch of R response rows: 64 rows a sequence, a reference near the policy, both on one head."""

    def __init__(self, R, D, V, dtype, device, train_head):
        g = torch.Generator(device).manual_seed(0)
        self.hidden = torch.randn(R, D, generator=g, device=device)
        self.ref = (self.hidden + 0.1 * torch.randn(R, D, generator=g, device=device)).to(dtype)
        self.hidden = self.hidden.to(dtype).requires_grad_()
        self.weight = (
            torch.randn(V, D, generator=g, device=device, dtype=dtype)
            .mul_(D**-0.5)
            .requires_grad_(train_head)
        )
        self.rows, self.targets = (
            torch.arange(R, device=device),
            torch.randint(0, V, (R,), generator=g, device=device),
        )
        self.segments, self.count = self.rows // 64, math.ceil(R / 64)

    def clear(self):
        self.hidden.grad = self.weight.grad = None


def ours(backend):
    def step(x):
        out = linear_logp_kl(
            x.hidden, x.weight, x.rows, x.targets, x.segments, x.count, x.ref, backend=backend
        )
        (out.logp_S.sum() + out.kl_S.sum()).backward()

    return step


def dense(x):
    """What anybody would write: logits by the head in its own dtype, then float32."""
    logp_RV = (x.hidden @ x.weight.T).float().log_softmax(-1)
    with torch.no_grad():
        ref_RV = (x.ref @ x.weight.T).float().log_softmax(-1)
    kl_R = (logp_RV.exp() * (logp_RV - ref_RV)).sum(-1)
    (logp_RV.gather(1, x.targets[:, None]).sum() + kl_R.sum()).backward()


def peers():
    """name -> (step, what it computes); those that import."""
    found = {}
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import (
            LigerFusedLinearCrossEntropyFunction as LigerCE,
        )
        from liger_kernel.ops.fused_linear_jsd import LigerFusedLinearJSDFunction as LigerJSD

        found["liger fused_linear_jsd"] = (
            lambda x: LigerJSD.apply(
                x.hidden, x.weight, x.ref, x.weight.detach(), None, 1.0
            ).backward(),
            "KL, one scalar",
        )
        found["liger fused_linear_ce"] = (
            lambda x: LigerCE.apply(x.hidden, x.weight, x.targets)[0].backward(),
            "log-prob, one scalar",
        )
    except ImportError as e:
        print(f"liger-kernel: not measured ({e})", file=sys.stderr)
    try:
        from cut_cross_entropy import linear_cross_entropy

        found["cce_exact"] = (
            lambda x: linear_cross_entropy(
                x.hidden, x.weight, x.targets, impl="cce_exact"
            ).backward(),
            "log-prob",
        )
    except ImportError as e:
        print(f"cut-cross-entropy: not measured ({e})", file=sys.stderr)
    return found


def systems(device, with_peers):
    names = ["torch"] if device == "cpu" else ["torch", "triton", "triton-stream", "triton-chunk"]
    found = {"dense torch": (dense, "log-prob, KL")} | {
        name: (ours(name), "log-prob, KL per sequence") for name in names
    }
    return found | (peers() if with_peers else {})


def clock(device):
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(step, x, device):
    x.clear()
    start = clock(device)
    step(x)
    return 1e3 * (clock(device) - start)


def product_rate(x, device):
    """FLOP/s of one large product by the vendor's library, the best of 5: the floor's clock."""
    hidden, weight = x.hidden.detach()[:2048], x.weight.detach()[:49152]
    times = []
    for _ in range(6):
        start = clock(device)
        hidden @ weight.T
        times.append(clock(device) - start)
    return 2 * len(hidden) * weight.numel() / min(times[1:])


def peak_here(step, x, device):
    """Peak bytes beyond the inputs, in this process, which has done nothing else."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(x)
        return torch.cuda.max_memory_allocated() - before

    def resident():  # not getrusage's: that starts at the parent's
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(text.split()[1]) << 10 for text in file if text.startswith("VmHWM"))

    (x.hidden.detach()[:64] @ x.weight.detach()[:64].T).sum()  # the library's own buffers
    before = resident()
    step(x)
    return resident() - before


def peak_elsewhere(name, case, R, dtype, train):
    """peak_here in a fresh process: a process's peak never falls."""
    command = [
        sys.executable,
        "-m",
        "kernels.bench",
        "--peak-of",
        name,
        "--case",
        case,
        "--rows",
        str(R),
        "--dtype",
        dtype,
    ]
    done = subprocess.run(
        command + ["--trained"] * train, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def measure(case, R, dtype, train, device, repeats, with_peers):
    """Rows of the table for one case, as dictionaries."""
    D, V = CASES[case]
    x = Inputs(R, D, V, DTYPES[dtype], device, train)
    rate, flops = product_rate(x, device), (6 if train else 4) * 2 * R * D * V
    running, times, failed = systems(device, with_peers), {}, {}
    for turn in range(repeats + 1):  # the first turn warms up
        for name, (step, _) in running.items():
            if name in failed:
                continue
            try:
                ms = timed(step, x, device)
            except torch.OutOfMemoryError:
                failed[name] = "out of memory"
                x.clear()
                torch.cuda.empty_cache()
                continue
            if turn:
                times.setdefault(name, []).append(ms)
    base = statistics.median(times["dense torch"]) if "dense torch" in times else None
    for name, (step, computes) in running.items():
        row = {
            "case": case,
            "R": R,
            "D": D,
            "V": V,
            "dtype": dtype,
            "head": "trained" if train else "frozen",
            "system": name,
            "computes": computes,
        }
        if name in failed:
            yield row | {"failed": failed[name]}
            continue
        ms = statistics.median(times[name])
        x.clear()
        peak = (
            peak_here(step, x, device)
            if device == "cuda"
            else peak_elsewhere(name, case, R, dtype, train)
        )
        yield row | {"ms": ms, "times": times[name], "over_dense": ms / base if base else None, "tflops": flops / ms / 1e9,
                     "floor_share": flops / rate / (ms / 1e3), "peak_bytes": peak}  # fmt: skip


def line(row):
    start = f"{row['case']:10}{row['R']:>6}  {row['dtype']:9}{row['head']:8} {row['system']:24}"
    if "failed" in row:
        return f"{start}{row['failed']}"
    ratio = f"{row['over_dense']:.2f}x" if row["over_dense"] else "-"
    return f"{start}{row['ms']:>9.1f}{ratio:>8}{row['tflops']:>9.2f}{row['floor_share']:>7.0%}{row['peak_bytes'] / 2**20:>10.0f}  {row['computes']}"


def plot(rows, path):
    """One panel for each case, R, dtype and head; bars are medians, dots the single runs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {}
    for row in rows:
        if "ms" in row:
            panels.setdefault(
                f"{row['case']}  R {row['R']}\n{row['dtype']}, {row['head']} head", []
            ).append(row)
    columns = min(4, len(panels))
    figure, axes = plt.subplots(
        math.ceil(len(panels) / columns),
        columns,
        figsize=(3.6 * columns, 3.4 * math.ceil(len(panels) / columns)),
        squeeze=False,
    )
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, group) in zip(axes.flat, panels.items()):
        names = [row["system"] for row in group]
        axis.bar(
            names,
            [row["ms"] for row in group],
            color=["#999999" if n == "dense torch" else "#2a6f97" for n in names],
            width=0.6,
        )
        for i, row in enumerate(group):
            axis.plot([i] * len(row["times"]), row["times"], ".", color="black", markersize=4)
        axis.set_title(title, fontsize=9)
        axis.set_ylabel("ms, forward + backward", fontsize=8)
        axis.tick_params(axis="x", rotation=35, labelsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=140)


def run(cases, rows, dtypes, heads, device, repeats, with_peers):
    """Print the table; returns its rows."""
    print(
        f"{'case':10}{'R':>6}  {'dtype':9}{'head':8} {'system':24}{'ms':>9}{'dense':>8}{'TFLOP/s':>9}{'floor':>7}{'peak MiB':>10}  computes"
    )
    results = []
    for case in cases:
        for R in rows:
            for dtype in dtypes:
                for head in heads:
                    for row in measure(
                        case, R, dtype, head == "trained", device, repeats, with_peers
                    ):
                        results.append(row)
                        print(line(row), flush=True)
    return results


def main(argv=None):
    parser = Parser(prog="python -m kernels.bench", description=__doc__.split("\n\n")[1])
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--case", nargs="+", choices=[*CASES, *LAYERS], default=["smollm2"])
    parser.add_argument(
        "--rows", nargs="+", type=int, help="default: 2048 on a CPU, 512 to 16384 on CUDA"
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=list(DTYPES),
        help="default: float32 and bfloat16 on a CPU, bfloat16 on CUDA",
    )
    parser.add_argument(
        "--head", nargs="+", choices=["frozen", "trained"], default=["frozen", "trained"]
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--peers",
        action="store_true",
        help="also Liger-Kernel and Cut Cross-Entropy, if they are installed",
    )
    parser.add_argument("--json", help="write every number to this file")
    parser.add_argument("--plot", help="write a picture to this file")
    parser.add_argument("--peak-of", choices=list(systems("cpu", False)), help=argparse.SUPPRESS)
    parser.add_argument("--trained", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device is here; use --device cpu")
    if args.repeats < 1 or (args.rows and min(args.rows) < 1):
        parser.error("--repeats and --rows take numbers of at least 1")
    for option, path in (("--json", args.json), ("--plot", args.plot)):
        if path and (Path(path).is_dir() or not Path(path).absolute().parent.is_dir()):
            parser.error(f"{option} {path}: expected a file in a directory that exists")
    if args.plot and (
        Path(args.plot).suffix not in PICTURES or importlib.util.find_spec("matplotlib") is None
    ):
        parser.error(
            f"--plot takes a name that ends in {', '.join(PICTURES)}, and needs matplotlib; got {args.plot}"
        )
    layers, heads = (
        [name for name in args.case if name in LAYERS],
        [name for name in args.case if name in CASES],
    )
    if layers and heads:
        parser.error(
            f"--case: {' '.join(layers)} and {' '.join(heads)} have tables of their own; run one kind at a time"
        )
    if layers and importlib.util.find_spec("triton") is None:
        parser.error(f"--case {' '.join(layers)}: Triton is not installed")
    if layers and args.peers:
        parser.error(
            f"--peers: for {' and '.join(CASES)}; {' '.join(layers)} is compared with torch.compile"
        )
    rows, dtypes = (
        args.rows or ROWS[args.device],
        args.dtype or (["float32", "bfloat16"] if args.device == "cpu" else ["bfloat16"]),
    )
    if args.peak_of:
        x = Inputs(rows[0], *CASES[args.case[0]], DTYPES[dtypes[0]], "cpu", args.trained)
        print(peak_here(systems("cpu", False)[args.peak_of][0], x, "cpu"))
        return
    where = (
        torch.cuda.get_device_name()
        if args.device == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    print(f"{where}, torch {torch.__version__}; forward + backward, medians of {args.repeats}")
    if layers:
        from kernels import bench_layers

        results = bench_layers.run(layers, args.rows, dtypes, args.head, args.device, args.repeats)
    else:
        results = run(heads, rows, dtypes, args.head, args.device, args.repeats, args.peers)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(
                {
                    "device": where,
                    "torch": torch.__version__,
                    "repeats": args.repeats,
                    "rows": results,
                },
                file,
                indent=1,
            )
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
