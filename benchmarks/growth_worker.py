"""One point of benchmarks/growth.py in a process of its own: seconds and peak memory of a training
step on a random model. Prints one JSON line."""

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import Clock, peak_bytes  # noqa: E402
from ecliptica.data.packing import pack  # noqa: E402
from ecliptica.policy import adapter_off_reference, score  # noqa: E402
from ecliptica.schema import Encoded, PackedBatch  # noqa: E402
from model.config import LlamaConfig  # noqa: E402
from model.llama import Llama  # noqa: E402
from model.lora import add_lora  # noqa: E402

STD = 0.05  # of the random weights


def random_model(layers: int, hidden: int, vocabulary: int, window: int) -> Llama:
    """With LoRA of rank 8 on q and v; weights drawn, so that no product is of zeros."""
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        head_dim=64,
        vocab_size=vocabulary,
        max_position_embeddings=window,
        rms_norm_eps=1e-5,
        rope_theta=10_000.0,
        rope_scaling=None,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = Llama(config)
    for parameter in model.parameters():
        parameter.data.normal_(0, STD)
    return add_lora(model, 8, 16, ("q_proj", "v_proj")).train()


def random_examples(args: argparse.Namespace) -> list[Encoded]:
    """`batch` prompts with `responses` responses each."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(args.vocabulary, (count,), generator=generator).tolist())

    examples = []
    for number in range(args.batch):
        responses = tuple(ids(args.response) for _ in range(args.responses))
        scores = (0.0,) * args.responses
        examples.append(Encoded(str(number), ids(args.prompt), responses, scores))
    return examples


def apart(examples: list[Encoded]) -> list[Encoded]:
    """Every response with a prompt of its own: what a trainer without shared prefixes computes.

    The prompts are as long as before and differ in every token: `pack` would share copies.
    """
    generator = torch.Generator().manual_seed(1)
    largest = max(max(example.context) for example in examples)
    copies = []
    for example in examples:
        for response in example.responses:
            context = torch.randint(largest, (len(example.context),), generator=generator)
            copies.append(Encoded(example.id, tuple(context.tolist()), (response,), (0.0,)))
    return copies


def step(model: Llama, batch: PackedBatch, reference) -> None:
    """Log-prob and exact KL of every response, and the gradient of their sum."""
    model.zero_grad()
    stats = score(model, batch, reference)
    (stats.kl_S.sum() - stats.logp_S.sum()).backward()


def kept(reference):
    """A reference that computes a batch once, as the cache of a run with several epochs does."""
    known = {}

    def cached(batch: PackedBatch):
        if id(batch) not in known:
            known[id(batch)] = reference(batch)
        return known[id(batch)]

    return cached


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {
        "responses": 2,
        "prompt": 64,
        "response": 64,
        "vocabulary": 8192,
        "batch": 4,
        "epochs": 1,
        "layers": 2,
        "hidden": 256,
        "repeats": 5,
        "threads": 1,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--apart", action="store_true", help="a copy of the prompt a response")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)

    window = args.prompt + args.response
    model = random_model(args.layers, args.hidden, args.vocabulary, window)
    examples = random_examples(args)
    batch = pack(apart(examples) if args.apart else examples)

    # One step to warm up; then all epochs anew in every repeat.
    step(model, batch, adapter_off_reference(model))
    seconds = []
    for _ in range(args.repeats):
        reference = kept(adapter_off_reference(model))
        with Clock() as clock:
            for _ in range(args.epochs):
                step(model, batch, reference)
        seconds.append(clock.cpu)
    result = {
        "tokens": batch.tokens_T.numel(),
        "cpu_seconds": statistics.median(seconds),
        "peak_bytes": peak_bytes(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
