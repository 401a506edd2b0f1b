"""Every kernel compiles for chips that are not here, without spills, within shared memory, and on the matrix units."""

import os
import subprocess
import sys

import pytest

from kernels.aot import SHARED_LIMIT, Usage


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's tools are for Linux")
def test_kernels_compile_without_spills_and_use_the_matrix_units():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "kernels.aot"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = [text.rsplit(None, 6) for text in done.stdout.splitlines()[1:-1]]
    kernels = {name.strip() for name, *_ in table}
    assert (
        len(table) == 3 * len(kernels)
        and {"merge", "segment_sum scalars", "row_statistics bf16", "row_dlogits fp16"} <= kernels
    )
    assert {"rms_norm bf16 frozen", "rms_norm fp32 train 16384", "swiglu fp16 backward"} <= kernels
    for name, arch, _, spilled, shared, limit, product in table:
        assert int(spilled) == 0 and int(shared) <= int(limit) == SHARED_LIMIT[int(arch[3:])], name
        if name.startswith(("stream bf16", "stream fp16")):
            assert product == {"sm_80": "mma", "sm_90": "wgmma", "sm_100": "tcgen05"}[arch], name


def test_what_counts_as_a_problem():
    good = {
        "case": "k",
        "arch": 90,
        "registers": 255,
        "spilled": 0,
        "shared": 1024,
        "product": "wgmma",
    }
    assert Usage(**good).problem == ""
    assert "spills 8" in Usage(**good | {"spilled": 8}).problem
    assert "shared memory" in Usage(**good | {"shared": 228 << 10}).problem
    assert "wgmma" in Usage(**good | {"product": "mma"}).problem
