"""RMSNorm and SwiGLU for python -m kernels.bench --case rms_norm swiglu: eager torch, torch.compile of it, and the kernel of ours.

The rule: a kernel is kept only if it beats torch.compile's in every line of the table. The time is that of forward + backward, many steps
between two looks at the clock, so that a device that is the slower of the two hides the launching, as in a model. Columns: median ms; times
torch.compile's; GB/s of the least traffic (every input, output and gradient once); its share of what a large copy reaches in the same run.
"""

import importlib
import statistics

import torch

from kernels.bench import DTYPES, clock, peak_here

HEADER = f"{'case':10}{'R':>6}{'width':>7}  {'dtype':9}{'weight':8} {'system':24}{'ms':>9}{'compile':>9}{'GB/s':>7}{'copy':>6}{'peak MiB':>10}"


def module(name):
    return importlib.import_module(f"kernels.{name}")


def systems(name, device):
    """name -> function; ours needs a GPU: the interpreter's time says nothing."""
    reference = module(name).reference
    found = {
        "eager torch": reference,
        "torch.compile": torch.compile(reference, fullgraph=True, dynamic=False),
    }
    return found | ({"fused": module(name).fused} if device == "cuda" else {})


def step(function, arguments, dy):
    wanted = [x for x in arguments if isinstance(x, torch.Tensor) and x.requires_grad]
    y = function(*arguments)
    torch.autograd.grad(y, wanted, dy)


def copy_rate(device):
    """Bytes a second of one large copy, read and write, the best of 5."""
    source = torch.empty(64 << 20 if device == "cuda" else 4 << 20, device=device)
    target, times = torch.empty_like(source), []
    for _ in range(6):
        start = clock(device)
        target.copy_(source)
        times.append(clock(device) - start)
    return 2 * source.numel() * 4 / min(times[1:])


def measure(name, R, width, dtype, weight, device, repeats):
    """Rows of the table for one case, as dictionaries."""
    arguments = module(name).bench_inputs(R, width, DTYPES[dtype], device, weight)
    tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
    dy = torch.randn_like(arguments[0])
    # forward: inputs and y; backward: dy, inputs and gradients
    least = (
        sum((3 if x.requires_grad else 2) * x.numel() * x.element_size() for x in tensors)
        + 2 * dy.numel() * dy.element_size()
    )
    torch.compiler.reset()
    running, times, steps = systems(name, device), {}, 20 if device == "cuda" else 3
    rate = copy_rate(device)
    for turn in range(repeats + 1):  # the first turn compiles
        for system, function in running.items():
            start = clock(device)
            for _ in range(steps):
                step(function, arguments, dy)
            if turn:
                times.setdefault(system, []).append(1e3 * (clock(device) - start) / steps)
    base = statistics.median(times["torch.compile"])
    for system, function in running.items():
        ms = statistics.median(times[system])
        peak = (
            peak_here(lambda _, f=function: step(f, arguments, dy), None, device)
            if device == "cuda"
            else None
        )
        yield {"case": name, "R": R, "D": width, "dtype": dtype, "head": weight, "system": system, "ms": ms, "times": times[system],
               "over_compile": ms / base, "gbps": least / ms / 1e6, "copy_share": least / rate / (ms / 1e3), "peak_bytes": peak}  # fmt: skip


def line(row):
    peak = f"{row['peak_bytes'] / 2**20:.0f}" if row["peak_bytes"] is not None else "-"
    return (f"{row['case']:10}{row['R']:>6}{row['D']:>7}  {row['dtype']:9}{row['head']:8} {row['system']:24}{row['ms']:>9.3f}{row['over_compile']:>8.2f}x"
            f"{row['gbps']:>7.0f}{row['copy_share']:>6.0%}{peak:>10}")  # fmt: skip


def verdict(name, rows):
    """The rule, applied to every line of one kernel."""
    rule = f"{name}: kept only if it beats torch.compile's in every line"
    ratios = [
        row["over_compile"] for row in rows if row["case"] == name and row["system"] == "fused"
    ]
    if not ratios:
        return f"{rule}; not decided: the kernel was not measured, it needs --device cuda"
    decision = (
        "keep it"
        if max(ratios) < 1
        else "leave it out, and write these numbers into docs/kernels.md"
    )
    return f"{rule}; {min(ratios):.2f}x to {max(ratios):.2f}x of its time over {len(ratios)} lines: {decision}"


def run(names, sizes, dtypes, weights, device, repeats):
    """Print the table and the verdicts; returns the rows. sizes: rows to take instead of the kernel's own, or None."""
    print(HEADER)
    results = []
    for name in names:
        widths = module(name).SIZES[device]
        for R, width in [(R, widths[0][1]) for R in sizes] if sizes else widths:
            for dtype in dtypes:
                for weight in [w for w in module(name).WEIGHTS if w in weights or w == "-"]:
                    for row in measure(name, R, width, dtype, weight, device, repeats):
                        results.append(row)
                        print(line(row), flush=True)
    for name in names:
        print(verdict(name, results))
    return results
