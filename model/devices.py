"""Which device a command computes on, and what is set up for it."""

import ctypes
import platform

import torch

from model.errors import InputError

DEVICES = ("auto", "cpu", "cuda")  # what --device and training.device may say

# Parameters of glibc's mallopt (malloc.h), and the largest value that it takes for the second.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LARGEST_THRESHOLD = 32 << 20
NEVER = 2**31 - 1


def pick_device(name: str) -> str:
    """The torch device that `name` of DEVICES asks for; "auto" is CUDA where there is one.

    A process that computes on the CPU keeps the memory that it frees from then on. Raises
    InputError for CUDA where there is none.
    """
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise InputError("device cuda: this torch sees no CUDA device; use cpu or auto")
    if name == "auto":
        name = "cuda" if has_cuda else "cpu"
    if name == "cpu":
        keep_freed_memory()
    return name


def keep_freed_memory() -> bool:
    """Tell glibc to reuse freed memory, not to give it back to the system after every layer.

    A layer frees and allocates the same few megabytes again and again. By default each time the
    pages go back, and come again one page fault at a time, zeroed: a tenth of a training step.
    True if it was told; other C libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    kept = libc.mallopt(M_TRIM_THRESHOLD, NEVER)
    return bool(kept and libc.mallopt(M_MMAP_THRESHOLD, LARGEST_THRESHOLD))
