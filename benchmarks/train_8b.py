"""python benchmarks/train_8b.py OUT.json [--shape 8b|small] [--steps N]: CITA steps of a randomly initialised model with LoRA; tokens/s, MFU, peak memory.

Random weights and tokens: this measures speed, nothing else. MFU counts the products of the parameters that a token meets, 2 for the forward
and 2 for the backward through frozen weights, plus the reference's forward: 6 a parameter; attention and LoRA are left out.
"""

import argparse
import json
import statistics
import time

import torch

from ecliptica.data.packing import pack
from ecliptica.objectives import cita
from ecliptica.objectives.contract import Step
from ecliptica.policy import adapter_off_reference
from ecliptica.schema import Encoded
from ecliptica.training.step import Learner, optimizer_step
from model.config import LlamaConfig
from model.llama import Llama
from model.lora import add_lora

SHAPES = {
    "8b": (4096, 14336, 32, 32, 8, 128, 128256),
    "small": (64, 128, 2, 4, 2, 16, 512),
}  # hidden_size, intermediate_size, layers, heads, key-value heads, head_dim, vocabulary
PEAK_FLOPS = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "B200": 2250e12,
}  # dense bfloat16, data sheets


def batches(vocabulary, count, prompt, response, device):
    """`count` preferences of one packed batch: tokens at random."""
    g = torch.Generator().manual_seed(0)

    def tokens(n):
        return tuple(torch.randint(0, vocabulary, (n,), generator=g).tolist())

    return [
        pack(
            [
                Encoded(str(i), tokens(prompt), (tokens(response), tokens(response)), (1.0, 0.0))
                for i in range(count)
            ]
        ).to(device)
    ]


def main():
    parser = argparse.ArgumentParser(
        description="CITA steps of a randomly initialised model with LoRA"
    )
    parser.add_argument("out")
    parser.add_argument("--shape", choices=list(SHAPES), default="8b")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--preferences", type=int, default=8)
    parser.add_argument(
        "--tokens", type=int, nargs=2, default=(512, 256), metavar=("PROMPT", "RESPONSE")
    )
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = LlamaConfig(
        *SHAPES[args.shape],
        8192,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        rope_scaling=None,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16)
        model = Llama(config, torch.bfloat16)
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.fill_(1.0) if "norm" in name else p.normal_(0, 0.02)
    model.requires_grad_(False)
    parameters = (
        sum(p.numel() for p in model.parameters()) - model.model.embed_tokens.weight.numel()
    )
    add_lora(
        model, 16, 16, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    for block in model.model.layers:
        block.recompute = "full"
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    packed = batches(config.vocab_size, args.preferences, *args.tokens, device)
    tokens = packed[0].tokens_T.numel()
    seconds = []
    learner = Learner(
        policy=model,
        reference=adapter_off_reference(model),
        objective=cita,
        settings=cita.Config(),
        optimizer=optimizer,
        clip_norm=1.0,
    )
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for step in range(args.steps + 2):  # two warm up
        start = time.perf_counter()
        metrics = optimizer_step(learner, packed, Step(step, args.steps + 2))
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        print(
            f"step {step}: {seconds[-1]:.3f} s, loss {metrics['loss']:.4f}, kl {metrics['kl']:.4f}",
            flush=True,
        )
    median = statistics.median(seconds[2:])
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    peak = next((flops for kind, flops in PEAK_FLOPS.items() if kind in name), None)
    result = {
        "device": name, "torch": torch.__version__, "shape": args.shape, "parameters": parameters, "tokens_per_step": tokens, "seconds": seconds[2:],
        "tokens_per_second": tokens / median, "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        "mfu": 6 * parameters * tokens / median / peak if peak else None,
    }  # fmt: skip
    with open(args.out, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
    print(json.dumps({k: v for k, v in result.items() if k != "seconds"}))


if __name__ == "__main__":
    main()
