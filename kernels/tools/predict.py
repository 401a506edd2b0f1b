"""python -m kernels.tools.predict: what the fused head computes, moves and holds, without a GPU.

    python -m kernels.tools.predict [--rows R] [--hidden D] [--vocab V] [--dtype bfloat16]
        [--backend NAME ...] [--workspace-mib N]

The head's forward and backward run on shapes alone; every product, every other operation and every
kernel launched is counted. Columns: products, and their TFLOP; launches, products included; GB that
they read and write; MB held at most beside the inputs; ms predicted; ms of the floor, the least
products (4 of R x D x V frozen, 6 trained, 2 for log-prob alone) at the card's rate. `ms` is
arithmetic, not a measurement: each launch takes the longer of its products at the card's rate, in
whole waves of tiles, and its bytes at the card's bandwidth; nothing overlaps, and the library is
taken to choose well.
"""

import math
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.common import FLOATS, Parser
from kernels.head import operators, strategy
from kernels.head.rows import Wanted
from kernels.tools.count import Counts, Event, count

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS}
STRATEGIES = ("triton", "triton-stream", "triton-chunk", "triton-sliced")
TASKS = ("frozen", "trained", "frozen, logp alone")


@dataclass(frozen=True)
class Card:
    """Rates as seen, not as advertised."""

    name: str
    flops: float  # of one large half-precision product, a second
    bandwidth: float  # bytes a second, of one large copy
    cache_bandwidth: float  # bytes a second out of L2
    multiprocessors: int
    launch_seconds: float  # between two kernels that wait for each other


H100 = Card("H100", 790e12, 3.0e12, 5.5e12, multiprocessors=132, launch_seconds=3e-6)


@dataclass(frozen=True)
class Shape:
    R: int
    D: int
    V: int
    dtype: torch.dtype
    workspace_bytes: int = 256 << 20


def head_step(shape: Shape, task: str, backend: str) -> Counts:
    """Forward and backward of one call, on a shared head; a reference unless it is logp alone."""
    train_head = task == "trained"
    wanted = Wanted.BOTH
    if train_head or backend == "triton-stream":
        wanted = Wanted.NONE

    def matrix(rows: int) -> Tensor:
        return torch.empty(rows, shape.D, dtype=shape.dtype, device="meta")

    index_R = torch.empty(shape.R, dtype=torch.int64, device="meta")
    segments = math.ceil(shape.R / 64)
    grad_S = torch.empty(segments, device="meta")
    ref_TD = None if task.endswith("alone") else matrix(shape.R)
    policy = (matrix(shape.R), matrix(shape.V), index_R, index_R, index_R)

    def step(policy: tuple, ref_TD: Tensor | None, grad_S: Tensor) -> tuple:
        options = (backend, shape.workspace_bytes, wanted)
        results = operators.run_forward(*policy, segments, ref_TD, None, *options)
        saved = results[4:]
        gradients = operators.run_backward(
            grad_S, grad_S, *policy, ref_TD, None, *saved, *options, train_head
        )
        return results, gradients

    return count(step, policy, ref_TD, grad_S)


# Columns of a product's tile of 128 rows, and the share of the card's rate that such tiles reach:
# a smaller one reads more for what it computes.
TILES = {256: 1.0, 128: 0.8}


def product_seconds(event: Event, card: Card) -> float:
    """At the card's rate, in whole waves of tiles, of the size that is faster here."""
    batch, rows, columns = event.tiles
    best = math.inf
    for tile_columns, rate in TILES.items():
        tiles = batch * math.ceil(rows / 128) * math.ceil(columns / tile_columns)
        waves = math.ceil(tiles / card.multiprocessors)
        busy = tiles / (waves * card.multiprocessors)
        best = min(best, event.flops / (card.flops * rate * busy))
    return best


def seconds(event: Event, card: Card) -> float:
    moving = max(event.bytes / card.bandwidth, event.cached_bytes / card.cache_bandwidth)
    computing = product_seconds(event, card) if event.flops else 0.0
    return max(moving, computing) + card.launch_seconds


def floor_seconds(shape: Shape, task: str, card: Card) -> float:
    """The least products: 4 frozen and 6 trained, 2 for log-prob alone with a frozen head."""
    products = {"frozen": 4, "trained": 6, "frozen, logp alone": 2}[task]
    return products * 2 * shape.R * shape.D * shape.V / card.flops


HEADER = (
    f"{'head':20}{'backend':16}{'products':>9}{'TFLOP':>8}{'launches':>10}{'GB':>8}"
    f"{'MB held':>9}{'ms':>8}{'floor':>8}"
)


def line(shape: Shape, task: str, backend: str, card: Card) -> str:
    counts = head_step(shape, task, backend)
    tflop = sum(event.flops for event in counts.events) / 1e12
    moved = sum(event.bytes for event in counts.events) / 1e9
    ms = 1e3 * sum(seconds(event, card) for event in counts.events)
    floor = 1e3 * floor_seconds(shape, task, card)
    numbers = f"{len(counts.products):>9}{tflop:>8.1f}{len(counts.events):>10}{moved:>8.1f}"
    held = f"{counts.peak_bytes / 1e6:>9.0f}"
    return f"{task:20}{backend:16}{numbers}{held}{ms:>8.1f}{floor:>8.1f}"


def main(argv: list[str] | None = None) -> int:
    paragraphs = __doc__.split("\n\n")
    parser = Parser(prog="python -m kernels.tools.predict", description=paragraphs[2])
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16")
    parser.add_argument("--backend", nargs="+", choices=STRATEGIES, default=["triton"])
    parser.add_argument("--workspace-mib", type=int, default=256)
    args = parser.parse_args(argv)
    if min(args.rows, args.hidden, args.vocab) < 1:
        parser.error("--rows, --hidden and --vocab take numbers of at least 1")
    shape = Shape(args.rows, args.hidden, args.vocab, DTYPES[args.dtype], args.workspace_mib << 20)
    print(f"predicted for one {H100.name}, not measured: R {shape.R}, D {shape.D}, V {shape.V}")
    print(HEADER)
    for task in TASKS:
        for name in args.backend:
            backend = name
            if name == "triton":
                backend = strategy(shape.R, needs_grad=True)
            print(line(shape, task, backend, H100))
    return 0


if __name__ == "__main__":
    sys.exit(main())
