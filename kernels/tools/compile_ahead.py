"""python -m kernels.tools.compile_ahead: compile every kernel for chips that need not be here.

    python -m kernels.tools.compile_ahead [--arch 80 90 100] [--dtype bfloat16 ...]

The launchers run on shapes alone, and what they would launch is compiled, in every type and variant
(cases.py). Columns: registers of a thread, bytes that spill (0, or the row fails; 16 before Triton
3.9), shared memory against what one block may have, the matrix instruction found in the PTX, and
the order of a kernel that works in place: loads, a barrier, stores. Exit code 1 if a kernel spills,
does not fit, has a product without wgmma on sm_90, or stores before it has loaded.
"""

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kernels.common import INTERPRET, LAUNCH_OPTIONS, Parser
from kernels.tools.cases import DTYPES, POINTER, Case, cases


def triton_version() -> tuple[int, int]:
    """(0, 0) where it is not installed."""
    try:
        major, minor, *_ = importlib.metadata.version("triton").split(".")
    except importlib.metadata.PackageNotFoundError:
        return 0, 0
    return int(major), int(minor)


# Bytes that one block may have, by compute capability
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}

# Bytes of stack that are no problem. Triton before 3.9 leaves 8 or 16 in a few kernels, which costs
# nothing that matters.
ALLOWED_SPILL = 0 if triton_version() >= (3, 9) else 16

# Kernels whose results take the place of what they read, and the only order in which that is free
# of races: every load (L) of a block, a barrier (|), every store (S). Reductions have barriers too.
IN_PLACE = ("logp_kl_statistics", "logp_kl_dlogits", "slice_logp_kl")
IN_ORDER = re.compile(r"L[L|]*\|S+")
LETTERS = {"LDG": "L", "LD": "L", "BAR": "|", "STG": "S", "ST": "S"}
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/ +(?:@!?U?P\w+ +)?([A-Z][A-Z0-9]*)[.\w]*([^;]*);")


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
        if self.spilled > ALLOWED_SPILL:
            return f"spills {self.spilled} bytes"
        if self.shared > SHARED_LIMIT[self.arch]:
            return f"shared memory above {SHARED_LIMIT[self.arch]}"
        if self.arch == 90 and self.product == "mma":
            return "mma where wgmma was expected"
        if self.order != "-" and not IN_ORDER.fullmatch(self.order):
            return "stores before the loads and a barrier"
        return ""


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
