"""python -m kernels.tools.card: what this card can do at most, and where the head spends it.

    python -m kernels.tools.card [--device cpu|cuda] [--case llama3-8b] [--rows R] [--backend NAME]

Prints the rate of one large copy and of one large product, the two ceilings that predictions start
from (kernels/tools/predict.py), then the 15 kernels that take the most time in one step with a
frozen head and in one with a trained head, by torch's profiler.
"""

import sys
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from kernels.common import Parser
from kernels.head import BACKENDS
from kernels.tools.measure import CASES, Case, Inputs, best_seconds, copy_rate, ours

SIDE = {"cpu": 1024, "cuda": 8192}  # of the product's square matrices
TOP = 15


def square_product_rate(device: str) -> float:
    """FLOP/s of one product of square bfloat16 matrices."""
    side = SIDE[device]
    x = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    return 2 * side**3 / best_seconds(lambda: x @ x, device)


def kernels_of(step: Callable[[], None], device: str) -> str:
    """The profiler's table of one step, after one to warm up."""
    step()
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as seen:
        step()
    key = f"self_{device}_time_total"
    return seen.key_averages().table(sort_by=key, row_limit=TOP, max_name_column_width=80)


def main(argv: list[str] | None = None) -> int:
    has_cuda = torch.cuda.is_available()
    description = __doc__.splitlines()[0].split(": ", 1)[1]
    parser = Parser(prog="python -m kernels.tools.card", description=description)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if has_cuda else "cpu")
    parser.add_argument("--case", choices=list(CASES), default="llama3-8b")
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not has_cuda:
        parser.error("--device cuda: no CUDA device is here; use --device cpu")
    if args.rows < 1:
        parser.error("--rows takes a number of at least 1")

    side = SIDE[args.device]
    print(f"copy {copy_rate(args.device) / 1e12:.3f} TB/s, read and write")
    rate = square_product_rate(args.device) / 1e12
    print(f"product of {side} x {side} x {side}, bfloat16: {rate:.1f} TFLOP/s", flush=True)
    step = ours(args.backend)
    for head in ("frozen", "trained"):
        x = Inputs(Case(args.case, args.rows, "bfloat16", head), args.device)
        print(f"\n{args.case}, R {args.rows}, bfloat16, {head} head, backend {args.backend}")
        print(kernels_of(lambda x=x: step(x), args.device), flush=True)
        del x
    return 0


if __name__ == "__main__":
    sys.exit(main())
