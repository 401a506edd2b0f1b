"""CITA steps of a randomly initialised model with LoRA: tokens/s, MFU, peak memory.

    python benchmarks/train_8b.py OUT.json [--shape 8b|small] [--steps N]
        [--recompute off|selective|full]

Random weights and tokens: this measures speed, nothing else. MFU counts the products of the
parameters that a token meets: 2 FLOP for the forward, 2 for the backward through frozen weights, 2
for the reference's forward; attention, LoRA and what is computed again are left out. It is given
with and without the reference: others, who train without one, count 4.
"""

import argparse
import statistics
import sys
import time
from dataclasses import replace

import torch

from ecliptica.data.packing import pack
from ecliptica.files import check_writable, write_json
from ecliptica.objectives import cita
from ecliptica.objectives.contract import Step
from ecliptica.planning import gpus
from ecliptica.policy import adapter_off_reference
from ecliptica.schema import Encoded, PackedBatch
from ecliptica.training.step import Learner, optimizer_step
from model import cli
from model.config import LlamaConfig
from model.llama import RECOMPUTE, Llama
from model.lora import add_lora

LLAMA3_8B = LlamaConfig(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=128256,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    rope_scaling=None,
    tie_word_embeddings=False,
)
SMALL = replace(
    LLAMA3_8B,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=512,
)
SHAPES = {"8b": LLAMA3_8B, "small": SMALL}
ALL_SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WARM_UP = 2  # steps that are run and not counted


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    check_writable(args.out, "OUT")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = SHAPES[args.shape]
    learner = learner_of(random_model(config, device, args.recompute), device)
    batch = random_batch(config.vocab_size, args.preferences, *args.tokens).to(device)
    gpus.forget_peak(device)
    seconds = run_steps(learner, batch, args.steps, device)
    result = summary(learner.policy, batch, seconds, device) | {"shape": args.shape}
    write_json(args.out, result | {"seconds": seconds})
    print(result)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("out", metavar="OUT.json")
    parser.add_argument("--shape", choices=list(SHAPES), default="8b")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--recompute", choices=RECOMPUTE, default="off")
    parser.add_argument("--preferences", type=int, default=8)
    parser.add_argument(
        "--tokens", type=int, nargs=2, default=(512, 256), metavar=("PROMPT", "RESPONSE")
    )
    return parser.parse_args(argv)


def random_model(config: LlamaConfig, device: str, recompute: str) -> Llama:
    """A frozen model in bfloat16 with LoRA of rank 16 on all seven projections."""
    torch.manual_seed(0)
    with torch.device(device):
        model = Llama(config, torch.bfloat16).to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0, 0.02)
    model.requires_grad_(False)
    add_lora(model, 16, 16, ALL_SEVEN)
    for block in model.model.layers:
        block.recompute = recompute
    return model


def learner_of(model: Llama, device: str) -> Learner:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Learner(
        policy=model,
        reference=adapter_off_reference(model),
        objective=cita,
        settings=cita.Config(),
        optimizer=torch.optim.AdamW(trained, lr=1e-5, fused=device == "cuda" or None),
        clip_norm=1.0,
    )


def random_batch(vocabulary: int, count: int, prompt: int, response: int) -> PackedBatch:
    """`count` preferences of random tokens, packed."""
    generator = torch.Generator().manual_seed(0)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, vocabulary, (length,), generator=generator).tolist())

    examples = [
        Encoded(str(number), tokens(prompt), (tokens(response), tokens(response)), (1.0, 0.0))
        for number in range(count)
    ]
    return pack(examples)


def run_steps(learner: Learner, batch: PackedBatch, steps: int, device: str) -> list[float]:
    """Seconds of each counted step."""
    seconds = []
    for number in range(steps + WARM_UP):
        start = time.perf_counter()
        metrics = optimizer_step(learner, [batch], Step(number, steps + WARM_UP))
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        print(
            f"step {number}: {seconds[-1]:.3f} s, loss {metrics['loss']:.4f}, "
            f"kl {metrics['kl']:.4f}",
            flush=True,
        )
    return seconds[WARM_UP:]


def summary(model: Llama, batch: PackedBatch, seconds: list[float], device: str) -> dict:
    """What the run says of this device."""
    median = statistics.median(seconds)
    tokens = batch.tokens_T.numel()
    frozen = [parameter for name, parameter in model.named_parameters() if "lora_" not in name]
    met = sum(p.numel() for p in frozen) - model.model.embed_tokens.weight.numel()
    peak = gpus.peak_flops(device)
    utilisation = {"mfu": None, "mfu_without_reference": None}
    if peak:
        met_a_second = met * tokens / median / peak
        utilisation = {"mfu": 6 * met_a_second, "mfu_without_reference": 4 * met_a_second}
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "torch": torch.__version__,
        "parameters": met,
        "tokens_per_step": tokens,
        "tokens_per_second": tokens / median,
        "peak_bytes": gpus.peak_memory(device),
    } | utilisation


if __name__ == "__main__":
    sys.exit(cli.run(main))
