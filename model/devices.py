"""Which device a command computes on."""

import torch

from model.errors import InputError

DEVICES = ("auto", "cpu", "cuda")  # what --device and training.device may say


def pick_device(name: str) -> str:
    """The torch device that `name` of DEVICES asks for; "auto" is CUDA where there is one.

    Raises InputError for CUDA where there is none.
    """
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise InputError("device cuda: this torch sees no CUDA device; use cpu or auto")
    if name != "auto":
        return name
    return "cuda" if has_cuda else "cpu"
