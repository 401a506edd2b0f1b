"""The likelihood suite's work, ours and transformers' alternating: python benchmarks/scoring.py MODEL_DIR [--prompts 2 --rounds 2].

The same (instruction, prompt, response) cells, float32, chatml. Ours: contexts computed once, rows gathered before the head. transformers: one
row a response, right-padded batches of similar lengths, log-softmax of its logits. Prints scored responses per second of each,
their ratio, and the largest difference between two log-probs, in nats.
"""

import argparse
import json
import statistics
import time

import torch

from ecliptica.evaluation.cells import RESPONSES_PER_DOCUMENT
from ecliptica.evaluation.grid import Grid
from ecliptica.evaluation.scoring import context_ids, response_ids, score_all
from ecliptica.evaluation.systems import System
from ecliptica.data.templates import get_template
from ecliptica.isd.bank import load_bank, load_instructions
from model.tokenizer import load_tokenizer
from model.weights import load_model


def ours(system, contexts):
    """{(context, response) ids: log-prob}."""
    parts = [(context, texts[at : at + RESPONSES_PER_DOCUMENT]) for context, texts in contexts.items() for at in range(0, len(texts), RESPONSES_PER_DOCUMENT)]
    found = score_all(system, [("", context, responses) for context, responses in parts])
    return {(context, response): logp for (context, responses), (logps, _, _) in zip(parts, found) for response, logp in zip(responses, logps)}


@torch.no_grad()
def transformers(peer, contexts, batch):
    rows = sorted(((context, response) for context, responses in contexts.items() for response in responses), key=lambda row: len(row[0]) + len(row[1]))
    found = {}
    for at in range(0, len(rows), batch):
        group = rows[at : at + batch]
        longest = max(len(c) + len(r) for c, r in group)
        ids = torch.tensor([[*c, *r] + [0] * (longest - len(c) - len(r)) for c, r in group])
        mask = torch.tensor([[1] * (len(c) + len(r)) + [0] * (longest - len(c) - len(r)) for c, r in group])
        logp = peer(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
        for n, (c, r) in enumerate(group):
            at_rows = torch.arange(len(c) - 1, len(c) + len(r) - 1)
            found[c, r] = logp[n, at_rows, torch.tensor(r)].sum().item()
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--instructions", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8, help="rows of a transformers batch")
    args = parser.parse_args(argv)
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(args.model)
    system = System(load_model(args.model, torch.float32, "cpu"), tokenizer, get_template("chatml", tokenizer), 4096, {})
    peer = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    bank = load_bank()
    entries = [entry for entry in bank if entry.split == "test" and entry.responses][: args.prompts]
    wording = {name: texts[-1] for name, texts in list(load_instructions().items())[: args.instructions]}
    contexts = {}
    for cell in {cell.digest: cell for cell in Grid(bank, entries, wording).cells()}.values():
        context = tuple(context_ids(system, cell.prompt, cell.instruction))
        contexts.setdefault(context, []).append(tuple(response_ids(system, cell.response)))
    count, seconds, worst = sum(map(len, contexts.values())), {"ours": [], "transformers": []}, 0.0
    for _ in range(args.rounds):
        start = time.perf_counter()
        a = ours(system, contexts)
        middle = time.perf_counter()
        b = transformers(peer, contexts, args.batch)
        seconds["ours"].append(middle - start)
        seconds["transformers"].append(time.perf_counter() - middle)
        worst = max(worst, *(abs(a[key] - b[key]) for key in b))
    rate = {name: count / statistics.median(values) for name, values in seconds.items()}
    print(json.dumps({"contexts": len(contexts), "responses": count, "per_second": rate, "ratio": rate["ours"] / rate["transformers"],
                      "seconds": seconds, "largest_difference_nats": worst, "torch": torch.__version__, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
