"""Every kernel compiles for chips that are not here, without spills, within shared memory, and on
the matrix units."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kernels
from kernels.tools.compile_ahead import ALLOWED_SPILL, SHARED_LIMIT, Usage, order_of_stores

# Called by other kernels, never launched.
INSIDE_OTHERS = {"tile_logits", "tile_logits_of_two", "rounded"}
WORKS_IN_PLACE = re.compile(r"logp_kl_dlogits|(logp_kl_statistics|slice_logp_kl) .*\blogp\b")
PRODUCT = {"sm_80": "mma", "sm_90": "wgmma", "sm_100": "tcgen05"}


def kernels_in_the_sources():
    """Names of all functions under @triton.jit."""
    sources = Path(kernels.__file__).parent.rglob("*.py")
    found = [re.findall(r"@triton\.jit.*\ndef (\w+)", path.read_text()) for path in sources]
    return {name for names in found for name in names}


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's tools are for Linux")
def test_kernels_compile_without_spills_and_use_the_matrix_units():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    # Every chip for the usual dtype. Only the command compiles float32 for the others, and float16,
    # which makes the code of bfloat16 with other conversions.
    code = (
        "from kernels.tools.compile_ahead import main\n"
        "failed = main(['--dtype', 'bfloat16'])\n"
        "failed += main(['--dtype', 'float32', '--arch', '90'])\n"
        "raise SystemExit(failed)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    pattern = r"(.+?) +(sm_\d+) +\d+ +(\d+) +(\d+) +(\d+)  (\S+) +(\S+)"
    table = [m.groups() for m in map(re.compile(pattern).fullmatch, done.stdout.splitlines()) if m]
    for name, arch, spilled, shared, limit, product, order in table:
        where = f"{name} on {arch}"
        assert int(spilled) <= ALLOWED_SPILL, where
        assert int(shared) <= int(limit) == SHARED_LIMIT[int(arch[3:])], where
        if name.startswith("stream_logp_kl bf16"):
            assert product == PRODUCT[arch], where
        if WORKS_IN_PLACE.match(name):
            assert re.fullmatch(r"L[L|]*\|S+", order), f"{where}: {order}"

    compiled = {(name, arch) for name, arch, *_ in table}
    assert {name.split()[0] for name, _ in compiled} == kernels_in_the_sources() - INSIDE_OTHERS
    half = {name for name, _ in compiled if " bf16" in name}
    assert {(name, arch) for name in half for arch in PRODUCT} <= compiled
    assert {(name.replace(" bf16", " fp32"), "sm_90") for name in half} <= compiled


def test_what_counts_as_a_problem():
    good = {
        "name": "k",
        "arch": 90,
        "registers": 255,
        "spilled": 0,
        "shared": 1024,
        "product": "wgmma",
    }
    assert Usage(**good).problem == ""
    assert "spills 24" in Usage(**good | {"spilled": 24}).problem
    assert "shared memory" in Usage(**good | {"shared": 228 << 10}).problem
    assert "wgmma" in Usage(**good | {"product": "mma"}).problem
    assert Usage(**good | {"order": "LL|S"}).problem == ""
    assert "stores before" in Usage(**good | {"order": "LSL|S"}).problem
    assert "stores before" in Usage(**good | {"order": "LS"}).problem


def sass(*instructions):
    """As cuobjdump prints it, an instruction every 16 bytes."""
    lines = [f"        /*{16 * i:04x}*/    {text} ;" for i, text in enumerate(instructions)]
    return "\n".join(lines)


def test_the_order_of_a_loop_is_read_from_its_instructions():
    before = "LDG.E R1, desc[UR4][R2.64]"
    load = "@!P0 LDG.E.128 R8, desc[UR4][R2.64]"
    store = "@!P0 STG.E.64 desc[UR4][R2.64], R8"
    barrier = "BAR.SYNC.DEFER_BLOCKING 0x0"
    back = "@P1 BRA 0x10"
    assert order_of_stores(sass(before, load, load, barrier, store, back)) == "LL|S"
    assert order_of_stores(sass(before, load, store, load, barrier, back)) == "LSL|"
    assert order_of_stores(sass(before, load, barrier, back, store)) == "-"  # stores after the loop
    # No loop, but the end of a kernel: all of it counts.
    assert order_of_stores(sass(load, barrier, store, "BRA 0x30")) == "L|S"
