"""python -m kernels.aot [--arch 80 90 100]: compile every kernel for NVIDIA chips that need not be here, and print what it uses.

Columns: registers of a thread, bytes that spill (0, or the row fails), shared memory against what one block may have, and the matrix
instruction found in the PTX. Exit code 1 if a kernel spills, does not fit, or has a product without wgmma on sm_90.
"""

import importlib.util
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from kernels.common import INTERPRET, Parser

SHARED_LIMIT = {
    80: 163 << 10,
    90: 227 << 10,
    100: 227 << 10,
}  # bytes that one block may have, by compute capability
POINTER = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


@dataclass(frozen=True)
class Case:
    """A kernel with the types of its arguments; everything but `unaligned` is taken as a multiple of 16, as the launchers' tensors are."""

    name: str
    kernel: object
    types: dict
    constants: dict
    options: dict
    unaligned: tuple = ()
    has_dot: bool = False


@dataclass(frozen=True)
class Usage:
    case: str
    arch: int
    registers: int
    spilled: int
    shared: int
    product: str  # wgmma, tcgen05, mma, fma, or - for a kernel without one

    @property
    def problem(self):
        if self.spilled:
            return f"spills {self.spilled} bytes"
        if self.shared > SHARED_LIMIT[self.arch]:
            return f"shared memory above {SHARED_LIMIT[self.arch]}"
        if self.arch == 90 and self.product == "mma":
            return "mma where wgmma was expected"
        return ""


def cases():
    """Every kernel, in every type and variant that its launcher can choose on a GPU."""
    yield from head_cases()
    yield from layer_cases()


def layer_cases():
    """RMSNorm at its two largest blocks, of which the larger reads its rows twice for a trained weight; SwiGLU."""
    from kernels import rms_norm as n
    from kernels import swiglu as s

    for dtype, pointer in POINTER.items():
        kept = {"RSTD": "*fp32", "PART": "*fp32"}
        ints = dict.fromkeys(("dy_step", "x_step", "N", "D", "rows"), "i32")
        types = dict.fromkeys(("DY", "X", "W", "DX", "Y"), pointer) | kept | ints | {"eps": "fp32"}
        for D, kernel, train in ((n.WIDEST, n.rms_norm_forward, None), (n.WIDEST, n.rms_norm_backward, False),
                                 (n.WIDEST // 2, n.rms_norm_backward, True), (n.WIDEST, n.rms_norm_backward, True)):  # fmt: skip
            options = n.options(D)
            constants = {"BLOCK": options.pop("BLOCK")} | (
                {} if train is None else {"TRAIN": train}
            )
            name = (
                f"rms_norm {pointer[1:]} "
                + {None: "forward", False: "frozen", True: f"train {D}"}[train]
            )
            yield Case(
                name,
                kernel,
                {k: v for k, v in types.items() if k in kernel.arg_names},
                constants,
                options,
                ("eps", "N", "rows"),
            )
        types = dict.fromkeys(("DY", "G", "U", "DG", "DU", "Y"), pointer)
        types |= dict.fromkeys(("dy_step", "g_step", "u_step", "F", "blocks"), "i32")
        for name, kernel in (("forward", s.swiglu_forward), ("backward", s.swiglu_backward)):
            used = {k: v for k, v in types.items() if k in kernel.arg_names}
            yield Case(
                f"swiglu {pointer[1:]} {name}", kernel, used, {"BLOCK": s.BLOCK}, {}, ("blocks",)
            )


def head_cases():
    from kernels import head_triton as t

    for dtype, pointer in POINTER.items():
        floats = dict.fromkeys(("H", "W", "H0", "W0"), pointer)
        ints = dict.fromkeys(("R", "V", "D", "D0", "row_blocks", "span", "step"), "i32")
        for variant, (has_ref, shared) in {
            "logp": (False, False),
            "shared": (True, True),
            "two heads": (True, False),
        }.items():
            tiles = t.stream_tiles(dtype, has_ref, shared)
            options = {"num_warps": tiles.pop("num_warps"), "num_stages": tiles.pop("num_stages")}
            constants = {"HAS_REF": has_ref, "SHARED": shared, "WIDEN": False, **tiles}
            types = {**floats, "TARGET": "*i64", "PART": "*fp32", **ints}
            yield Case(
                f"stream {pointer[1:]} {variant}",
                t.stream,
                types,
                constants,
                options,
                ("R", "V", "row_blocks", "step"),
                True,
            )
        halves = 4 // dtype.itemsize
        types = {
            "Z": "*fp32",
            "TARGET": "*i64",
            "STATS": "*fp32",
            "OUT": pointer,
            "n": "i32",
            "stats_step": "i32",
            "V": "i32",
        }
        constants = {"HAS_REF": True, "JACOBIAN": True, "HALVES": halves, "BLOCK": t.BLOCK}
        yield Case(
            f"row_statistics {pointer[1:]}",
            t.row_statistics,
            types,
            constants,
            {"num_warps": 16},
            ("n", "stats_step"),
        )
        types = {
            "Z": "*fp32",
            "REF": "*fp32",
            "STATS": "*fp32",
            "G": "*fp32",
            "K": "*fp32",
            "TARGET": "*i64",
            "OUT": pointer,
        }
        constants = {"HAS_REF": True, "HALVES": halves, "BLOCK": t.BLOCK}
        types |= {"stats_step": "i32", "width": "i32"}
        yield Case(
            f"row_dlogits {pointer[1:]}",
            t.row_dlogits,
            types,
            constants,
            {"num_warps": 8},
            ("stats_step",),
        )
        types = dict.fromkeys(("ORDER", "OFFSETS"), "*i64") | dict.fromkeys(
            ("X", "Y", "G", "K"), "*fp32"
        )
        types |= {"SEGMENT": "*i64", "OUT": pointer, "D": "i32"}
        yield Case(
            f"segment_sum {pointer[1:]}",
            t.segment_sum,
            types,
            {"WEIGHTED": True, "HAS_Y": True, "BJ": 4, "BD": 256},
            {},
        )
    yield Case(
        "segment_sum scalars",
        t.segment_sum,
        types | {"OUT": "*fp32"},
        {"WEIGHTED": False, "HAS_Y": False, "BJ": 128, "BD": 4},
        {},
        ("D",),
    )
    types = {"PART": "*fp32", "STATS": "*fp32", "R": "i32", "spans": "i32", "step": "i32"}
    yield Case("merge", t.merge, types, {"HAS_REF": True, "BR": 128}, {}, ("R", "spans", "step"))


def compile_case(case, arch):
    """Usage of one kernel on one chip."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    types = {name: case.types.get(name, "constexpr") for name in names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if name in case.types and name not in case.unaligned
    }
    source = ASTSource(fn=case.kernel, signature=types, constexprs=case.constants, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=case.options)
    registers, spilled = resources(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    found = [name for name in ("tcgen05.mma", "wgmma", "mma.sync") if name in ptx] or ["fma"]
    product = found[0].removesuffix(".mma").removesuffix(".sync") if case.has_dot else "-"
    return Usage(case.name, arch, registers, spilled, compiled.metadata.shared, product)


def resources(cubin):
    """(registers, bytes of stack and local memory) from cuobjdump, which comes with Triton."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    used = {
        name: max(map(int, re.findall(rf"{name}:(\d+)", text)))
        for name in ("REG", "STACK", "LOCAL")
    }
    return used["REG"], used["STACK"] + used["LOCAL"]


def main(argv=None):
    parser = Parser(
        prog="python -m kernels.aot", description=__doc__.splitlines()[0].split(": ", 1)[1]
    )
    parser.add_argument(
        "--arch", type=int, nargs="+", default=sorted(SHARED_LIMIT), choices=sorted(SHARED_LIMIT)
    )
    args = parser.parse_args(argv)
    if INTERPRET:
        parser.error("TRITON_INTERPRET=1 replaces the compiler: unset it")
    if importlib.util.find_spec("triton") is None:
        parser.error("Triton is not installed: nothing to compile with")
    print(
        f"{'kernel':26}{'arch':>7}{'registers':>11}{'spilled':>9}{'shared':>9}{'limit':>8}  product"
    )
    failed = 0
    for case in cases():
        for arch in args.arch:
            u = compile_case(case, arch)
            failed += bool(u.problem)
            print(f"{u.case:26}  sm_{u.arch:<3}{u.registers:>10}{u.spilled:>9}{u.shared:>9}{SHARED_LIMIT[arch]:>8}  {u.product:8}{u.problem}".rstrip(),
                  flush=True)  # fmt: skip
    print(f"{failed} problems" if failed else "no spills, everything fits")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
