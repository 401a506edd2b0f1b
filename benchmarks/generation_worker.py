"""One generator on rendered prompts, timed: started by benchmarks/generation.py, prints one JSON
line. Greedy, float32, up to so many new tokens; the model is loaded before the clock starts."""

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import Clock, peak_bytes  # noqa: E402

STOP = "<|im_end|>"


def ours(args: argparse.Namespace, prompts: list[list[int]], stop: int) -> dict:
    """model/generate.py, one batch after another."""
    from model.devices import pick_device
    from model.generate import generate
    from model.weights import load_model

    model = load_model(args.model, torch.float32, pick_device("cpu"))
    answers = []
    with Clock() as clock:
        for at in range(0, len(prompts), args.batch):
            answers += generate(model, prompts[at : at + args.batch], args.new, {stop})
    return {"clock": clock, "answers": answers}


def transformers(args: argparse.Namespace, prompts: list[list[int]], stop: int) -> dict:
    """`generate` of transformers, its default cache, prompts padded on the left."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    answers = []
    with Clock() as clock, torch.no_grad():
        for at in range(0, len(prompts), args.batch):
            batch = prompts[at : at + args.batch]
            longest = max(map(len, batch))
            ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in batch])
            real = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch]
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.tensor(real),
                max_new_tokens=args.new,
                do_sample=False,
                eos_token_id=stop,
                pad_token_id=0,
            )
            for row in out[:, longest:].tolist():
                answers.append(row[: row.index(stop)] if stop in row else row)
    return {"clock": clock, "answers": answers}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("generator", choices=["ours", "transformers"])
    parser.add_argument("model")
    parser.add_argument("data", help="JSON lines with rendered `prompt`s")
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)

    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{args.model}/tokenizer.json")
    lines = [json.loads(line) for line in Path(args.data).read_text().splitlines()]
    prompts = [tokenizer.encode(line["prompt"], add_special_tokens=False).ids for line in lines]
    stop = tokenizer.token_to_id(STOP)
    result = {"ours": ours, "transformers": transformers}[args.generator](args, prompts, stop)
    clock = result.pop("clock")
    tokens = sum(map(len, result["answers"]))
    print(
        json.dumps(
            {
                "tokens": tokens,
                "wall_seconds": clock.wall,
                "cpu_seconds": clock.cpu,
                "peak_bytes": peak_bytes(),
                **result,
            }
        )
    )


if __name__ == "__main__":
    main()
