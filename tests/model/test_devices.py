"""What a CPU process does with memory that it frees."""

import platform
import resource

import pytest
import torch

from model.devices import keep_freed_memory, pick_device


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone is told")
def test_freed_memory_is_used_again():
    """A buffer of 16 MiB made a hundred times: its 4096 pages are asked for about once."""
    assert keep_freed_memory()
    torch.ones(4 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(100):
        torch.ones(4 << 20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 3 * 4096


def test_the_cpu_is_what_is_asked_for():
    assert pick_device("cpu") == "cpu"
