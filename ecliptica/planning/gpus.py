"""What a device can do, by its data sheet, and what this process has used of it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ecliptica.schema import PackedBatch
from model.config import LlamaConfig


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    memory_gib: float
    flops: float  # dense bfloat16, a second
    link: float  # bytes a second to the others of its machine, one direction
    network: float  # bytes a second to other machines, each GPU's share


GPUS = {
    "a100-40gb": Gpu(40, 312e12, 300e9, 25e9),
    "a100-80gb": Gpu(80, 312e12, 300e9, 25e9),
    "h100-80gb": Gpu(80, 989e12, 450e9, 50e9),
    "h200-141gb": Gpu(141, 989e12, 450e9, 50e9),
    "b200-180gb": Gpu(180, 2250e12, 900e9, 50e9),
}


def peak_flops(device: torch.device | str) -> float | None:
    """Of the CUDA device that this process uses; None for a CPU or one that is not in the table."""
    if torch.device(device).type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).lower()
    return next((gpu.flops for kind, gpu in GPUS.items() if kind.split("-")[0] in name), None)


def forget_peak(device: torch.device | str) -> None:
    """Measure the peak from here on."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device | str) -> int:
    """Bytes: allocated on a CUDA device at most, or the resident set of this process at most (0
    where the system does not say)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    kilobytes = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    return int(kilobytes[1]) * 1024 if kilobytes else 0


def step_flops(
    shape: LlamaConfig, tokens: int, rows: int, full: bool, extra_forwards: float
) -> float:
    """Products that a step needs, without attention's own and without recomputation: 2 FLOPs a
    weight and token for each product.

    Blocks: forward, the gradient of the inputs, of the weights too in full fine-tuning, and
    extra_forwards: the reference's, if it runs. Head: policy and reference logits, the gradient of
    the hidden states, of the head too in full fine-tuning. rows: response rows.
    """
    heads = 2 * shape.num_attention_heads + 2 * shape.num_key_value_heads
    layer = shape.hidden_size * (heads * shape.head_dim + 3 * shape.intermediate_size)
    blocks = shape.num_hidden_layers * layer
    head = shape.vocab_size * shape.hidden_size
    return 2 * (tokens * blocks * (2 + full + extra_forwards) + rows * head * (3 + full))


def mfu(
    shape: LlamaConfig,
    batches: Sequence[PackedBatch],
    seconds: float,
    full: bool,
    extra_forwards: float,
    device: torch.device | str,
) -> float | None:
    """Model FLOPs utilisation of a step: step_flops a second over the device's peak; None where the
    peak is not known."""
    peak = peak_flops(device)
    if peak is None:
        return None
    tokens = sum(batch.tokens_T.numel() for batch in batches)
    rows = sum(batch.rows_R.numel() for batch in batches)
    return step_flops(shape, tokens, rows, full, extra_forwards) / seconds / peak
