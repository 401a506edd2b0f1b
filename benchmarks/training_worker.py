"""One trainer's steps, timed: started by benchmarks/training.py, prints one JSON line.

ours: this project's optimizer step, CITA with exact KL. trl: DPOTrainer on the same preferences as
rendered text, no KL. Both: LoRA of rank 8, AdamW; the first step is not counted.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import Clock, gemm_rate, peak_bytes  # noqa: E402

TARGETS = {
    "qv": ["q_proj", "v_proj"],
    "all": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


def ours(args: argparse.Namespace) -> dict:
    """Steps of the demo's recipe on `args.data`, cita lines."""
    from ecliptica import objectives
    from ecliptica.config import load
    from ecliptica.data import offline
    from ecliptica.data.offline import Offline
    from ecliptica.objectives.contract import Step
    from ecliptica.planning.gpus import step_flops
    from ecliptica.recipe import Config
    from ecliptica.running.ranks import ALONE
    from ecliptica.training import reference
    from ecliptica.training.reference_cache import Maker
    from ecliptica.training.setup import adamw
    from ecliptica.training.step import Learner, optimizer_step
    from model.devices import pick_device

    place = tempfile.mkdtemp()
    overrides = [
        f"model.path={args.model}",
        f"model.dtype={args.dtype}",
        "data.format=cita",
        f"data.train={args.data}",
        f"lora.targets={json.dumps(TARGETS[args.targets])}",
        f"training.batch_preferences={args.pairs}",
        f"training.micro_preferences={args.micro or args.pairs}",
        f"training.max_steps={args.steps}",
        f"training.reference={args.reference}",
        f"run.dir={place}",
    ]
    config = load(Config, "demo", overrides)
    device = pick_device("cpu")
    objective = objectives.get(config.objective)
    data = offline.load(config.model.path, config.data, objective.RESPONSES)
    source = Offline(data.examples, config.training)
    policy = reference.starting_model(config, device, trained=True).train()
    maker = Maker(
        model=policy,
        device=device,
        ranks=ALONE,
        micro=config.training.micro_preferences,
        say=lambda line: None,
        pause=lambda: None,
    )
    learner = Learner(
        policy=policy,
        reference=reference.build(config, maker, source, data.held_out),
        objective=objective,
        settings=config.objective,
        optimizer=adamw(policy, config, device),
        clip_norm=config.training.clip_norm,
    )

    clocks = []
    flops = 0.0
    losses = []
    for step in range(args.steps):
        with Clock() as clock:
            batches = source.batches(step, ALONE)
            metrics = optimizer_step(learner, batches, Step(step, args.steps))
        losses.append(metrics["loss"])
        if step:
            clocks.append(clock)
            tokens = sum(batch.tokens_T.numel() for batch in batches)
            rows = sum(batch.rows_R.numel() for batch in batches)
            passes = int(args.reference != "cache")
            flops += step_flops(policy.config, tokens, rows, False, passes)
    return timed(clocks, args.pairs) | {"flops_per_step": flops / len(clocks), "losses": losses}


def trl(args: argparse.Namespace) -> dict:
    """Steps of DPOTrainer on `args.data`, lines of rendered text."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    lines = [json.loads(line) for line in Path(args.data).read_text().splitlines()]
    clocks: list[Clock] = []

    class Timer(TrainerCallback):
        """A clock a step, the batch's collation included."""

        def on_train_begin(self, *_, **__):
            clocks.append(Clock().__enter__())

        def on_step_end(self, *_, **__):
            clocks[-1].__exit__()
            clocks.append(Clock().__enter__())

    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype)),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_file=f"{args.model}/tokenizer.json",
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
        ),
        train_dataset=Dataset.from_list(lines),
        peft_config=LoraConfig(
            r=8, lora_alpha=16, target_modules=TARGETS[args.targets], task_type="CAUSAL_LM"
        ),
        callbacks=[Timer()],
        args=DPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=args.pairs,
            max_steps=args.steps,
            learning_rate=1e-4,
            beta=0.1,
            max_length=2048,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            fp16=False,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
    )
    trainer.train()
    return timed(clocks[1:-1], args.pairs)


def timed(clocks: list[Clock], pairs: int) -> dict:
    """Seconds of every counted step, and preferences a second."""
    wall = [clock.wall for clock in clocks]
    cpu = [clock.cpu for clock in clocks]
    return {
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "preferences_per_second": pairs * len(wall) / sum(wall),
        "preferences_per_cpu_second": pairs * len(cpu) / sum(cpu),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("trainer", choices=["ours", "trl"])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--targets", default="qv", choices=TARGETS)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--micro", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--reference", default="adapter-off", choices=["adapter-off", "cache"])
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    rate = gemm_rate()
    result = {"ours": ours, "trl": trl}[args.trainer](args)
    print(json.dumps({"gemm_flops_per_second": rate, "peak_bytes": peak_bytes(), **result}))


if __name__ == "__main__":
    main()
