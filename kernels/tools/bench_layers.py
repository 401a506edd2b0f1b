"""RMSNorm, SwiGLU and RoPE for the benchmark: eager torch, torch.compile of it, and ours.

    python -m kernels.tools.bench --case rms_norm swiglu rope

The rule: a kernel is kept only if it beats torch.compile's in every line of the table. The time is
that of forward + backward, many steps between two looks at the clock, so that a device that is the
slower of the two hides the launching, as in a model. Columns: median ms; times torch.compile's;
GB/s of the least traffic (every input, output and gradient once); its share of what a large copy
reaches in the same run.
"""

import importlib
import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from kernels.tools.measure import DTYPES, clock, copy_rate, cuda_peak

LAYERS = ("rms_norm", "swiglu", "rope")
STEPS = {"cpu": 3, "cuda": 20}  # between two looks at the clock
Row = dict[str, Any]


@dataclass(frozen=True)
class LayerCase:
    """One line of the table, before it is measured."""

    name: str
    R: int
    width: int
    dtype: str
    weight: str


def module(name: str) -> ModuleType:
    return importlib.import_module(f"kernels.{name}")


def cases(
    names: list[str], rows: list[int] | None, dtypes: list[str], weights: list[str], device: str
) -> list[LayerCase]:
    """rows: to take instead of the kernel's own sizes, or None."""
    lines = []
    for name in names:
        sizes = module(name).SIZES[device]
        if rows:
            width = sizes[0][1]
            sizes = [(R, width) for R in rows]
        own = [w for w in module(name).WEIGHTS if w in weights or w == "-"]
        for (R, width), dtype, weight in itertools.product(sizes, dtypes, own):
            lines.append(LayerCase(name, R, width, dtype, weight))
    return lines


def systems(name: str, device: str) -> dict[str, Callable]:
    """By the name in the table; ours needs a GPU, since the interpreter's time says nothing."""
    reference = module(name).reference
    compiled = torch.compile(reference, fullgraph=True, dynamic=False)
    named = {"eager torch": reference, "torch.compile": compiled}
    if device == "cuda":
        named["fused"] = module(name).fused
    return named


def step(function: Callable, arguments: tuple, dy: Tensor) -> None:
    """Forward and backward."""
    wanted = [x for x in arguments if isinstance(x, Tensor) and x.requires_grad]
    y = function(*arguments)
    torch.autograd.grad(y, wanted, dy)


def least_bytes(arguments: tuple, dy: Tensor) -> int:
    """Forward: inputs and y; backward: dy, inputs and gradients."""
    total = 2 * dy.numel() * dy.element_size()
    for x in arguments:
        if isinstance(x, Tensor):
            times = 3 if x.requires_grad else 2
            total += times * x.numel() * x.element_size()
    return total


def times_in_turn(
    running: dict[str, Callable], arguments: tuple, dy: Tensor, device: str, repeats: int
) -> dict[str, list[float]]:
    """Milliseconds of a step of each system."""
    steps = STEPS[device]
    times = {name: [] for name in running}
    for turn in range(repeats + 1):
        for name, function in running.items():
            start = clock(device)
            for _ in range(steps):
                step(function, arguments, dy)
            # The first turn compiles.
            if turn:
                times[name].append(1e3 * (clock(device) - start) / steps)
    return times


def measure(case: LayerCase, device: str, repeats: int) -> Iterator[Row]:
    """Rows of the table for one case."""
    dtype = DTYPES[case.dtype]
    arguments = module(case.name).bench_inputs(case.R, case.width, dtype, device, case.weight)
    dy = torch.randn_like(arguments[0])
    least = least_bytes(arguments, dy)
    rate = copy_rate(device)
    torch.compiler.reset()
    running = systems(case.name, device)
    times = times_in_turn(running, arguments, dy, device, repeats)
    base = statistics.median(times["torch.compile"])
    for system, function in running.items():
        ms = statistics.median(times[system])
        peak_bytes = None
        if device == "cuda":
            peak_bytes = cuda_peak(lambda f=function: step(f, arguments, dy))
        yield {
            "case": case.name,
            "R": case.R,
            "D": case.width,
            "dtype": case.dtype,
            "head": case.weight,
            "system": system,
            "ms": ms,
            "times": times[system],
            "over_compile": ms / base,
            "gbps": least / ms / 1e6,
            "copy_share": least / rate / (ms / 1e3),
            "peak_bytes": peak_bytes,
        }


HEADER = (
    f"{'case':10}{'R':>6}{'width':>7}  {'dtype':9}{'weight':8} {'system':24}"
    f"{'ms':>9}{'compile':>9}{'GB/s':>7}{'copy':>6}{'peak MiB':>10}"
)


def line(row: Row) -> str:
    peak = "-"
    if row["peak_bytes"] is not None:
        peak = f"{row['peak_bytes'] / 2**20:.0f}"
    start = f"{row['case']:10}{row['R']:>6}{row['D']:>7}  {row['dtype']:9}{row['head']:8}"
    speed = f"{row['ms']:>9.3f}{row['over_compile']:>8.2f}x{row['gbps']:>7.0f}"
    return f"{start} {row['system']:24}{speed}{row['copy_share']:>6.0%}{peak:>10}"


def verdict(name: str, rows: list[Row]) -> str:
    """The rule, applied to every line of one kernel."""
    rule = f"{name}: kept only if it beats torch.compile's in every line"
    ours = [row for row in rows if row["case"] == name and row["system"] == "fused"]
    if not ours:
        return f"{rule}; not decided: the kernel was not measured, it needs --device cuda"
    ratios = [row["over_compile"] for row in ours]
    decision = "leave it out, and write these numbers into docs/kernels.md"
    if max(ratios) < 1:
        decision = "keep it"
    span = f"{min(ratios):.2f}x to {max(ratios):.2f}x of its time over {len(ratios)} lines"
    return f"{rule}; {span}: {decision}"


def run(cases: list[LayerCase], device: str, repeats: int) -> list[Row]:
    """Print the table and the verdicts; returns the rows."""
    print(HEADER)
    results = []
    for case in cases:
        for row in measure(case, device, repeats):
            results.append(row)
            print(line(row), flush=True)
    for name in dict.fromkeys(case.name for case in cases):
        print(verdict(name, results))
    return results
