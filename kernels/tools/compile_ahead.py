"""python -m kernels.tools.compile_ahead: compile every kernel for NVIDIA chips that need not be
here.

    python -m kernels.tools.compile_ahead [--arch 80 90 100] [--dtype bfloat16 ...]

The launchers run on shapes alone, and what they would launch is compiled, in every type and
variant.
Columns: registers of a thread, bytes that spill (0, or the row fails), shared memory against what
one block may have, the matrix instruction found in the PTX, and the order of the loop of a kernel
that works in place: loads, a barrier, stores. Exit code 1 if a kernel spills, does not fit, has a
product without wgmma on sm_90, or stores before it has loaded.
"""

import importlib.util
import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.common import FLOATS, INTERPRET, LAUNCH_OPTIONS, Launch, Parser, recording

# Bytes that one block may have, by compute capability
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS}
POINTER = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
}
# Rows: a number that is no multiple of 16. Llama-3-8B's head.
ROWS, WIDTH, VOCABULARY = 1001, 4096, 128256
WORKSPACE = 64 << 20

# Kernels whose results take the place of what they read, and the only order in which that is free
# of races: every load (L) of a block, a barrier (|), every store (S). Reductions have barriers too.
IN_PLACE = ("logp_kl_statistics", "logp_kl_dlogits", "slice_logp_kl")
IN_ORDER = re.compile(r"L[L|]*\|S+")
LETTERS = {"LDG": "L", "LD": "L", "BAR": "|", "STG": "S", "ST": "S"}
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/ +(?:@!?U?P\w+ +)?([A-Z][A-Z0-9]*)[.\w]*([^;]*);")


@dataclass(frozen=True)
class Case:
    """A kernel and its launch, on shapes."""

    name: str
    launch: Launch


@dataclass(frozen=True)
class Compiled:
    case: Case
    arch: int
    ptx: str
    cubin: bytes
    shared: int


@dataclass(frozen=True)
class Usage:
    name: str
    arch: int
    registers: int
    spilled: int
    shared: int
    product: str  # wgmma, tcgen05, mma, or - for none
    order: str = "-"  # of the instructions in a loop that works in place

    @property
    def problem(self) -> str:
        if self.spilled:
            return f"spills {self.spilled} bytes"
        if self.shared > SHARED_LIMIT[self.arch]:
            return f"shared memory above {SHARED_LIMIT[self.arch]}"
        if self.arch == 90 and self.product == "mma":
            return "mma where wgmma was expected"
        if self.order != "-" and not IN_ORDER.fullmatch(self.order):
            return "stores before the loads and a barrier"
        return ""


# What there is to compile


def cases(dtypes: Iterable[torch.dtype] = FLOATS) -> list[Case]:
    """Every kernel, in every type and variant that its launcher can choose on a GPU."""
    by_name: dict[str, Case] = {}
    for dtype in dtypes:

        def record(launch: Launch, dtype: torch.dtype = dtype) -> None:
            name = variant_name(launch, dtype)
            by_name.setdefault(name, Case(name, launch))

        with recording(record):
            for call in [*head_calls(dtype), *layer_calls(dtype)]:
                call()
    return list(by_name.values())


def variant_name(launch: Launch, dtype: torch.dtype) -> str:
    """The kernel, the dtype, the flags that are set, and the block if it has one."""
    arguments = launch.arguments
    pointers = {x.dtype for x in arguments.values() if isinstance(x, Tensor)}
    one_type = dtype if dtype in pointers else torch.float32
    flags = [name.lower() for name, value in arguments.items() if value is True]
    blocks = [str(arguments["BLOCK"])] if "BLOCK" in arguments else []
    return " ".join([launch.kernel.__name__, POINTER[one_type][1:], *flags, *blocks])


def head_calls(dtype: torch.dtype) -> Iterator[Callable[[], Any]]:
    """The fused head: log-prob alone, a shared head, two heads; a frozen head, a trained one."""
    from kernels.head import operators
    from kernels.head.rows import Wanted

    def matrix(rows: int) -> Tensor:
        return torch.empty(rows, WIDTH, dtype=dtype, device="meta")

    index_R = torch.empty(ROWS, dtype=torch.int64, device="meta")
    hidden_TD = matrix(ROWS)
    weight_VD = matrix(VOCABULARY)
    policy = (hidden_TD, weight_VD, index_R, index_R, index_R, ROWS)
    references = [(None, None), (matrix(ROWS), None), (matrix(ROWS), matrix(VOCABULARY))]
    for reference in references:
        streamed = (*reference, "triton-stream", WORKSPACE, Wanted.NONE)
        yield lambda options=streamed: operators.run_forward(*policy, *options)
    for reference in references[:2]:
        for backend, wanted in itertools.product(("triton-chunk", "triton-sliced"), Wanted):
            options = (*reference, backend, WORKSPACE, wanted)
            yield lambda options=options: operators.run_forward(*policy, *options)

    grad_S = torch.empty(ROWS, device="meta")
    table_5R = torch.empty(5, ROWS, device="meta")
    wide_RD = torch.empty(ROWS, WIDTH, device="meta")
    saved = (table_5R, wide_RD, wide_RD, "triton-chunk", WORKSPACE)
    for reference in references[:2]:
        for wanted in (Wanted.NONE, Wanted.BOTH):
            options = (*reference, *saved, wanted, wanted == Wanted.NONE)
            yield lambda options=options: operators.run_backward(
                grad_S, grad_S, *policy[:5], *options
            )


def layer_calls(dtype: torch.dtype) -> Iterator[Callable[[], Any]]:
    """RMSNorm at its two largest blocks, the larger reading its rows twice if trained; SwiGLU."""
    from kernels import rms_norm, swiglu

    def matrix(width: int) -> Tensor:
        return torch.empty(ROWS, width, dtype=dtype, device="meta")

    r_N = torch.empty(ROWS, device="meta")
    for width in (rms_norm.WIDEST // 2, rms_norm.WIDEST):
        x_ND = matrix(width)
        yield lambda x_ND=x_ND: rms_norm.run_forward(x_ND, x_ND[0], 1e-5)
        for train in (False, True):
            yield lambda x_ND=x_ND, train=train: rms_norm.run_backward(
                x_ND, x_ND, x_ND[0], r_N, train
            )
    x_NF = matrix(14336)
    yield lambda: swiglu.run_forward(x_NF, x_NF)
    yield lambda: swiglu.run_backward(x_NF, x_NF, x_NF)


# Compiling


def compile_case(case: Case, arch: int) -> Compiled:
    """One kernel for one chip."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = case.launch.kernel
    arguments = dict(case.launch.arguments)
    types = {}
    constants = {}
    aligned = {}
    for parameter in kernel.params:
        value = arguments.pop(parameter.name)
        if parameter.is_constexpr:
            types[parameter.name] = "constexpr"
            constants[parameter.name] = value
            continue
        types[parameter.name] = type_of(value)
        if is_aligned(value) and not parameter.do_not_specialize:
            aligned[(parameter.num,)] = [["tt.divisibility", 16]]

    # What is no parameter of the kernel is an option of the launch: warps, stages.
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=aligned)
    target = GPUTarget("cuda", arch, 32)
    compiled = triton.compile(source, target=target, options=arguments | LAUNCH_OPTIONS)
    asm = compiled.asm
    return Compiled(case, arch, asm["ptx"], asm["cubin"], compiled.metadata.shared)


def type_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return POINTER[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def is_aligned(value: Any) -> bool:
    """As a launch takes it: tensors begin at multiples of 16 bytes, and numbers may be such."""
    return isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0)


def cuobjdump(cubin: bytes, option: str) -> str:
    """What the tool that comes with Triton says of a compiled kernel."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def order_of_stores(sass: str) -> str:
    """Loads, barriers and stores of global memory, in address order, where a kernel stores.

    That is its loops that store (a loop lies between a branch back and its target), or all of it if
    it has no loop. L load, | barrier, S store; - for loops that do not store.
    """
    instructions = [(int(a, 16), name, rest) for a, name, rest in INSTRUCTION.findall(sass)]
    loops = []
    for address, name, rest in instructions:
        target = re.search(r"0x([0-9a-f]+)", rest)
        if name == "BRA" and target and int(target[1], 16) < address:
            loops.append((int(target[1], 16), address))
    orders = []
    for first, last in loops or [(0, instructions[-1][0])]:
        body = [name for address, name, _ in instructions if first <= address <= last]
        orders.append("".join(LETTERS.get(name, "") for name in body))
    return " ".join(order for order in orders if "S" in order) or "-"


def usage(compiled: Compiled) -> Usage:
    """What a compiled kernel takes of the chip."""
    text = cuobjdump(compiled.cubin, "--dump-resource-usage")

    def most(name: str) -> int:
        return max(map(int, re.findall(rf"{name}:(\d+)", text)))

    products = {"tcgen05.mma": "tcgen05", "wgmma": "wgmma", "mma.sync": "mma"}
    used = [product for name, product in products.items() if name in compiled.ptx]
    order = "-"
    if compiled.case.launch.kernel.__name__ in IN_PLACE:
        order = order_of_stores(cuobjdump(compiled.cubin, "-sass"))
    return Usage(
        name=compiled.case.name,
        arch=compiled.arch,
        registers=most("REG"),
        spilled=most("STACK") + most("LOCAL"),
        shared=compiled.shared,
        product=used[0] if used else "-",
        order=order,
    )


# The command


def line(u: Usage) -> str:
    numbers = f"{u.registers:>10}{u.spilled:>9}{u.shared:>9}{SHARED_LIMIT[u.arch]:>8}"
    return f"{u.name:46}  sm_{u.arch:<3}{numbers}  {u.product:8}{u.order:14}{u.problem}".rstrip()


def main(argv: list[str] | None = None) -> int:
    description = __doc__.splitlines()[0].split(": ", 1)[1]
    parser = Parser(prog="python -m kernels.tools.compile_ahead", description=description)
    chips = sorted(SHARED_LIMIT)
    parser.add_argument("--arch", type=int, nargs="+", default=chips, choices=chips)
    parser.add_argument("--dtype", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    args = parser.parse_args(argv)
    if INTERPRET:
        parser.error("TRITON_INTERPRET=1 replaces the compiler: unset it")
    if importlib.util.find_spec("triton") is None:
        parser.error("Triton is not installed: nothing to compile with")

    numbers = f"{'registers':>11}{'spilled':>9}{'shared':>9}{'limit':>8}"
    print(f"{'kernel':46}{'arch':>7}{numbers}  product order")
    problems = 0
    for case in cases(DTYPES[name] for name in args.dtype):
        for arch in args.arch:
            row = usage(compile_case(case, arch))
            problems += bool(row.problem)
            print(line(row), flush=True)
    print(f"{problems} problems" if problems else "no spills, everything fits")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
