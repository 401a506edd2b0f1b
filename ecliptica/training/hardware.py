"""What a device can do, by its data sheet, and what this process has used of it."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Gpu:
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


def peak_flops(device):
    """Of the CUDA device that this process uses; None for a CPU or one that is not in the table."""
    if torch.device(device).type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).lower()
    return next((gpu.flops for kind, gpu in GPUS.items() if kind.split("-")[0] in name), None)


def forget_peak(device):
    """Measure the peak from here on."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device):
    """Bytes: allocated on a CUDA device at most, or the resident set of this process at most (0 where the system does not say)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else 0


def step_flops(shape, tokens, rows, full, extra_forwards):
    """Products that a step needs, without attention's own and without recomputation: 2 FLOPs a weight and token for each product.

    Blocks: forward, the gradient of the inputs, of the weights too in full fine-tuning, and extra_forwards: the reference's, if it runs.
    Head: policy and reference logits, the gradient of the hidden states, of the head too in full fine-tuning. rows: response rows. shape: a LlamaConfig.
    """
    c = shape
    blocks = (
        c.num_hidden_layers
        * c.hidden_size
        * (
            (2 * c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
            + 3 * c.intermediate_size
        )
    )
    head = c.vocab_size * c.hidden_size
    return 2 * (tokens * blocks * (2 + full + extra_forwards) + rows * head * (3 + full))


def mfu(model, batches, seconds, full, reference_forward, device):
    """Model FLOPs utilisation of a step: step_flops a second over the device's peak; None where the peak is not known."""
    peak = peak_flops(device)
    if peak is None:
        return None
    tokens, rows = sum(b.tokens_T.numel() for b in batches), sum(b.rows_R.numel() for b in batches)
    return step_flops(model.config, tokens, rows, full, reference_forward) / seconds / peak
