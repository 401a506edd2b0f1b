"""The switch suite's scoring, ours and transformers' alternating: python benchmarks/scoring.py MODEL_DIR [--prompts 100 --documents 24 --rounds 2].

The whole suite on that many test prompts is laid out, and a random sample of its documents (a context with up to 32 of its responses) is scored,
float32, chatml, by each of three in turn. Ours: a context computed once, rows gathered before the head. transformers: one row a
response, log-softmax of its logits, (a) a response at a time, (b) in right-padded batches of similar lengths. Prints scored responses
per second, ratios (medians over the rounds), the largest difference between two log-probs in nats, and what the suite asks.
"""

import argparse
import json
import random
import statistics
import time

import torch
from ecliptica.evaluation.cells import documents

from ecliptica.data.templates import get_template
from ecliptica.evaluation.grid import Grid
from ecliptica.evaluation.scoring import context_ids, response_ids, score_all
from ecliptica.evaluation.systems import System
from ecliptica.isd.bank import load_bank, load_instructions
from model.tokenizer import load_tokenizer
from model.weights import load_model


def layout(prompts):
    """(questions asked, [[Cell]]: the documents that answer them) of the suite on the first `prompts`."""
    bank = load_bank()
    entries = [entry for entry in bank if entry.split == "test" and entry.responses][:prompts]
    asked = list(
        Grid(
            bank, entries, {name: texts[-1] for name, texts in load_instructions().items()}
        ).cells()
    )
    return len(asked), documents({cell.digest: cell for cell in asked}.values())


def ours(system, jobs):
    """[log-prob] of every response of every (context ids, [response ids])."""
    return [
        logp for logps, _, _ in score_all(system, [("", *job) for job in jobs]) for logp in logps
    ]


@torch.no_grad()
def transformers(peer, jobs, batch):
    """The same. batch: rows of a forward; 1: a response at a time, in order and without padding."""
    rows = [(context, response) for context, responses in jobs for response in responses]
    order = (
        sorted(range(len(rows)), key=lambda n: sum(map(len, rows[n])))
        if batch > 1
        else range(len(rows))
    )
    found = [0.0] * len(rows)
    for at in range(0, len(rows), batch):
        group = order[at : at + batch]
        texts = [[*rows[n][0], *rows[n][1]] for n in group]
        longest = max(map(len, texts))
        ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
        mask = (
            None
            if batch == 1
            else torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
        )
        logp = peer(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
        for row, n in enumerate(group):
            context, response = rows[n]
            predicting = torch.arange(len(context) - 1, len(context) + len(response) - 1)
            found[n] = logp[row, predicting, torch.tensor(response)].sum().item()
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument(
        "--documents", type=int, default=24, help="how many of the suite's documents are scored"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8, help="rows of a transformers batch")
    args = parser.parse_args(argv)
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(args.model)
    system = System(
        load_model(args.model, torch.float32, "cpu"),
        tokenizer,
        get_template("chatml", tokenizer),
        4096,
        {},
    )
    peer = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    asked, parts = layout(args.prompts)
    sample = random.Random(0).sample(parts, min(args.documents, len(parts)))
    jobs = [
        (
            context_ids(system, part[0].prompt, part[0].instruction),
            [response_ids(system, cell.response) for cell in part],
        )
        for part in sample
    ]
    count = sum(len(responses) for _, responses in jobs)
    scorers = {
        "ours": lambda: ours(system, jobs),
        "transformers, one by one": lambda: transformers(peer, jobs, 1),
        f"transformers, batches of {args.batch}": lambda: transformers(peer, jobs, args.batch),
    }
    seconds, worst = {name: [] for name in scorers}, 0.0
    for _ in range(args.rounds):
        found = {}
        for name, scorer in scorers.items():
            start = time.perf_counter()
            found[name] = scorer()
            seconds[name].append(time.perf_counter() - start)
            worst = max(
                worst, *(abs(a - b) for a, b in zip(found["ours"], found[name], strict=True))
            )
    rate = {name: count / statistics.median(values) for name, values in seconds.items()}
    print(
        json.dumps(
            {
                "suite": {
                    "prompts": args.prompts,
                    "questions": asked,
                    "contexts": len({(part[0].instruction, part[0].prompt) for part in parts}),
                    "distinct": sum(map(len, parts)),
                },
                "sample": {
                    "documents": len(jobs),
                    "responses": count,
                    "tokens_ours": sum(len(c) + sum(map(len, r)) for c, r in jobs),
                    "tokens_one_row_a_response": sum(
                        len(c) * len(r) + sum(map(len, r)) for c, r in jobs
                    ),
                },
                "per_second": rate,
                "ratio": {
                    name: rate["ours"] / value for name, value in rate.items() if name != "ours"
                },
                "seconds": seconds,
                "largest_difference_nats": worst,
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
