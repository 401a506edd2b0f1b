"""The switch suite's scoring, ours and transformers' alternating:

    python benchmarks/scoring.py MODEL_DIR [--prompts 100 --documents 24 --rounds 2]

The whole suite on that many test prompts is laid out, and a random sample of its documents (a
context with up to 32 of its responses) is scored, float32, chatml, by each of three in turn. Ours:
a context computed once, rows gathered before the head. transformers: one row a response,
log-softmax of its logits, (a) a response at a time, (b) in right-padded batches of similar lengths.
Prints scored responses per second, ratios (medians over the rounds), the largest difference between
two log-probs in nats, and what the suite asks.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ecliptica.evaluation import suites, systems
from ecliptica.evaluation.questions import Question
from ecliptica.evaluation.scoring import Job, documents, job_of, score_all


def layout(prompts: int) -> tuple[int, list[list[Question]]]:
    """(questions asked, the documents that answer them) of the suite on the first `prompts`. Joint
    and prompt match ask all that the other metrics ask."""
    suite = suites.get("switch")
    options = suite.Options(limit=prompts, controls=(), metrics=("joint", "prompt_match"))
    study = suite.prepare(options)
    asked = list(study.questions(study.units, with_control=True))
    return len(asked), documents(list(dict.fromkeys(asked)))


def ours(system: systems.System, jobs: Sequence[Job]) -> list[float]:
    """The log-prob of every response of every job."""
    return [logp for scored in score_all(system, jobs) for logp in scored.logps]


@torch.no_grad()
def transformers(peer, jobs: Sequence[Job], batch: int) -> list[float]:
    """The same. batch: rows of a forward; 1: a response at a time, in order, without padding."""
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
        log_probs = peer(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
        for row, number in enumerate(group):
            context, response = rows[number]
            predicting = torch.arange(len(context) - 1, len(context) + len(response) - 1)
            logps[number] = log_probs[row, predicting, torch.tensor(response)].sum().item()
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
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8, help="rows of a transformers batch")
    args = parser.parse_args(argv)
    from transformers import AutoModelForCausalLM

    # The sample, and both models.
    asked, parts = layout(args.prompts)
    sample = random.Random(0).sample(parts, min(args.documents, len(parts)))
    system = systems.load(args.model, template="chatml", device="cpu")
    peer = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    jobs = [job_of(system, part) for part in sample]

    seconds, worst = measure(
        {
            "ours": lambda: ours(system, jobs),
            "transformers, one by one": lambda: transformers(peer, jobs, 1),
            f"transformers, batches of {args.batch}": lambda: transformers(peer, jobs, args.batch),
        },
        args.rounds,
    )
    responses = sum(len(job.responses) for job in jobs)
    rate = {name: responses / statistics.median(values) for name, values in seconds.items()}
    report = {
        "suite": of_suite(args.prompts, asked, parts),
        "sample": of_sample(jobs),
        "per_second": rate,
        "ratio": {name: rate["ours"] / value for name, value in rate.items() if name != "ours"},
        "seconds": seconds,
        "largest_difference_nats": worst,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(report, indent=1))


def measure(
    scorers: dict[str, Callable[[], list[float]]], rounds: int
) -> tuple[dict[str, list[float]], float]:
    """({name: seconds of each round}, the largest difference to the first of them, nats)."""
    seconds = {name: [] for name in scorers}
    worst = 0.0
    for _ in range(rounds):
        first = None
        for name, scorer in scorers.items():
            start = time.perf_counter()
            logps = scorer()
            seconds[name].append(time.perf_counter() - start)
            first = first or logps
            worst = max(worst, *(abs(a - b) for a, b in zip(first, logps, strict=True)))
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
