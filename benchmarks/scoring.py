"""The switch suite's scoring, ours and transformers' alternating:

    python benchmarks/scoring.py MODEL_DIR [--prompts 100 --documents 24 --rounds 5]
    python benchmarks/scoring.py MODEL_DIR --design 4 --prompts 20 --documents 200

The whole suite on that many test prompts is laid out, and a random sample of its documents (a
context with up to 32 of its responses) is scored, float32, chatml, by each in turn. --design: what
column accuracy asks with so many responses a prompt, instead of joint and prompt match. Ours: a
tree of prefixes, rows gathered before the head; the same with documents batched by length alone;
the same in bfloat16 (--bfloat16). transformers: one row a response, log-softmax of its logits, (a)
a response at a time, (b) in right-padded batches of similar lengths, (c) as (b) with torch's
F.linear_cross_entropy over the response's rows in the place of logits, where torch has it. Prints
scored responses per second, ratios (medians over the rounds), the largest difference to ours in
float32 of each in nats, and what the suite asks.
"""

import argparse
import json
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import machine  # noqa: E402
from ecliptica.data.packing import by_prefix  # noqa: E402
from ecliptica.evaluation import scoring, suites, systems  # noqa: E402
from ecliptica.evaluation.questions import Question  # noqa: E402
from ecliptica.evaluation.scoring import Job, documents, job_of, score_all  # noqa: E402
from ecliptica.schema import Encoded  # noqa: E402


def layout(prompts: int, design: int | None) -> tuple[int, list[list[Question]]]:
    """(questions asked, the documents that answer them) of the suite on the first `prompts`. Joint
    and prompt match ask all that the other metrics ask."""
    suite = suites.get("switch")
    metrics = ("column_accuracy",) if design else ("joint", "prompt_match")
    options = suite.Options(
        limit=prompts, controls=(), metrics=metrics, responses_per_prompt=design
    )
    study = suite.prepare(options)
    asked = list(study.questions(study.units, with_control=True))
    return len(asked), documents(list(dict.fromkeys(asked)))


def ours(system: systems.System, jobs: Sequence[Job]) -> list[float]:
    """The log-prob of every response of every job."""
    return [logp for scored in score_all(system, jobs) for logp in scored.logps]


def by_length(examples: Sequence[Encoded], max_tokens: int) -> list[list[int]]:
    """Documents in batches by length alone: what `by_prefix` is compared with."""
    groups = []
    size = 0
    for index in sorted(range(len(examples)), key=lambda index: -examples[index].tokens):
        own = examples[index].tokens
        if not groups or size + own > max_tokens:
            groups.append([])
            size = 0
        groups[-1].append(index)
        size += own
    return groups


def ours_by_length(system: systems.System, jobs: Sequence[Job]) -> list[float]:
    scoring.by_prefix = by_length
    try:
        return ours(system, jobs)
    finally:
        scoring.by_prefix = by_prefix


@torch.no_grad()
def transformers(peer, jobs: Sequence[Job], batch: int, fused: bool = False) -> list[float]:
    """The same. batch: rows of a forward; 1: a response at a time, in order, without padding.
    fused: by F.linear_cross_entropy of the rows that predict the response, not from logits."""
    rows = [(job.context, response) for job in jobs for response in job.responses]
    order = list(range(len(rows)))
    if batch > 1:
        order.sort(key=lambda number: sum(map(len, rows[number])))
    logps = [0.0] * len(rows)
    for start in range(0, len(rows), batch):
        group = order[start : start + batch]
        texts = [[*rows[number][0], *rows[number][1]] for number in group]
        longest = max(map(len, texts))
        ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
        mask = None
        if batch > 1:
            mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
        where = []
        for row, number in enumerate(group):
            context, response = rows[number]
            where.append((row, number, len(context) - 1, torch.tensor(response)))
        if fused:
            hidden = peer.model(input_ids=ids, attention_mask=mask).last_hidden_state
            for row, number, start, targets in where:
                predicting = hidden[row, start : start + len(targets)]
                loss = F.linear_cross_entropy(
                    predicting, peer.lm_head.weight, targets, reduction="sum"
                )
                logps[number] = -loss.item()
            continue
        log_probs = peer(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
        for row, number, start, targets in where:
            predicting = torch.arange(start, start + len(targets))
            logps[number] = log_probs[row, predicting, targets].sum().item()
    return logps


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument(
        "--documents", type=int, default=24, help="how many of the suite's documents are scored"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--design", type=int, help="responses a prompt of an incomplete design")
    parser.add_argument(
        "--bfloat16", action="store_true", help="its speed and error too (slow where emulated)"
    )
    parser.add_argument("--name", help="write benchmarks/results/scoring-NAME.json")
    parser.add_argument("--batch", type=int, default=8, help="rows of a transformers batch")
    args = parser.parse_args(argv)
    from transformers import AutoModelForCausalLM

    # The sample, and both models.
    asked, parts = layout(args.prompts, args.design)
    sample = random.Random(0).sample(parts, min(args.documents, len(parts)))
    system = systems.load(args.model, template="chatml", device="cpu")
    peer = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    jobs = [job_of(system, part) for part in sample]

    scorers = {
        "ours": lambda: ours(system, jobs),
        "ours, batched by length alone": lambda: ours_by_length(system, jobs),
        "transformers, one by one": lambda: transformers(peer, jobs, 1),
        f"transformers, batches of {args.batch}": lambda: transformers(peer, jobs, args.batch),
    }
    if hasattr(F, "linear_cross_entropy"):
        scorers[f"transformers, batches of {args.batch}, F.linear_cross_entropy"] = lambda: (
            transformers(peer, jobs, args.batch, fused=True)
        )
    if args.bfloat16:
        coarse = systems.load(args.model, "chatml", dtype="bfloat16", device="cpu")
        scorers["ours, bfloat16"] = lambda: ours(coarse, jobs)
    seconds, worst = measure(scorers, args.rounds)
    responses = sum(len(job.responses) for job in jobs)
    rate = {name: responses / statistics.median(values) for name, values in seconds.items()}
    report = {
        "suite": of_suite(args.prompts, asked, parts),
        "sample": of_sample(jobs),
        "per_second": rate,
        "ratio": {name: rate["ours"] / value for name, value in rate.items() if name != "ours"},
        "seconds": seconds,
        "largest_difference_nats": worst,
    }
    print(json.dumps(report, indent=1))
    if args.name:
        print(machine.save(f"scoring-{args.name}", report))


def measure(
    scorers: dict[str, Callable[[], list[float]]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """({name: processor seconds of each round}, {name: the largest difference to the first, nats}).

    Processor seconds: on a shared machine they repeat, and wall time does not.
    """
    seconds = {name: [] for name in scorers}
    worst = dict.fromkeys(scorers, 0.0)
    for _ in range(rounds):
        first = None
        for name, scorer in scorers.items():
            with machine.Clock() as clock:
                logps = scorer()
            seconds[name].append(clock.cpu)
            first = first or logps
            differences = [abs(a - b) for a, b in zip(first, logps, strict=True)]
            worst[name] = max(worst[name], *differences)
    return seconds, worst


def of_suite(prompts: int, asked: int, parts: Sequence[Sequence[Question]]) -> dict[str, Any]:
    return {
        "prompts": prompts,
        "questions": asked,
        "contexts": len({(part[0].instruction, part[0].prompt) for part in parts}),
        "distinct": sum(map(len, parts)),
    }


def of_sample(jobs: Sequence[Job]) -> dict[str, int]:
    responses = [response for job in jobs for response in job.responses]
    rows = sum(len(job.context) * len(job.responses) for job in jobs)
    tokens = sum(map(len, responses))
    return {
        "documents": len(jobs),
        "responses": len(responses),
        "tokens_ours": sum(len(job.context) for job in jobs) + tokens,
        "tokens_one_row_a_response": rows + tokens,
    }


if __name__ == "__main__":
    main()
