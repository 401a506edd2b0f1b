"""`score` and `generate` against transformers, and against themselves under every batching."""

import json

import pytest
import torch

import eval as evaluate
from ecliptica.evaluation.suites.generate import respond
from ecliptica.evaluation.systems import System
from model.generate import common_prefix, generate
from model.tokenizer import load_tokenizer
from model.weights import load_model
from tests.conftest import write_jsonl

CONTEXT = "<|im_start|>user\n### Alignment Instruction:\n{instruction}\n\n### User Prompt:\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def score(tmp_path, model, records, template="chatml", *options):
    data, out = write_jsonl(tmp_path / "in.jsonl", records), tmp_path / "out.jsonl"
    evaluate.main(
        [
            "score",
            "--model",
            str(model),
            "--template",
            template,
            "--data",
            str(data),
            "--out",
            str(out),
            *options,
        ]
    )
    return [json.loads(line) for line in out.read_text().splitlines()]


def worst(a, b):
    return max(
        abs(x - y)
        for p, q in zip(a, b, strict=True)
        for x, y in zip(p["logps"], q["logps"], strict=True)
    )


@pytest.fixture
def records(preferences):
    return [
        {
            "instruction": p["instruction"],
            "prompt": p["prompt"],
            "responses": [p["chosen"], p["rejected"], "Yes."],
        }
        for p in preferences
    ]


@pytest.mark.peer
def test_score_equals_transformers(records, smollm2, tmp_path):
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    got = score(tmp_path, smollm2, records[:4])
    peer = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    fast = PreTrainedTokenizerFast(tokenizer_file=str(smollm2 / "tokenizer.json"))
    for record, row in zip(records, got):
        context = fast.encode(CONTEXT.format(**record), add_special_tokens=False)
        for text, logp, tokens in zip(
            record["responses"], row["logps"], row["tokens"], strict=True
        ):
            response = fast.encode(text + "<|im_end|>", add_special_tokens=False)
            with torch.no_grad():
                table = peer(torch.tensor([context + response])).logits[0].log_softmax(-1)
            want = (
                table[range(len(context) - 1, len(context) + len(response) - 1), response]
                .sum()
                .item()
            )
            assert tokens == len(response) and abs(logp - want) < 1e-3


def test_scores_do_not_depend_on_batching_order_or_packing(records, tiny, tmp_path):
    want = score(tmp_path, tiny, records)
    assert worst(score(tmp_path, tiny, records, "chatml", "--batch-tokens", "1"), want) < 1e-4
    assert worst(score(tmp_path, tiny, records[::-1])[::-1], want) < 1e-4
    alone = [{**record, "responses": [text]} for record in records for text in record["responses"]]
    apart = score(tmp_path, tiny, alone)
    assert (
        worst(
            [
                {"logps": [row["logps"][0] for row in apart[n : n + 3]]}
                for n in range(0, len(apart), 3)
            ],
            want,
        )
        < 1e-4
    )


def test_rendered_contexts_give_the_same_scores(records, tiny, tmp_path):
    rendered = [
        {
            "context": CONTEXT.format(**r),
            "responses": [text + "<|im_end|>" for text in r["responses"]],
        }
        for r in records
    ]
    got, want = score(tmp_path, tiny, rendered, "none"), score(tmp_path, tiny, records)
    assert worst(got, want) < 1e-5 and [row["tokens"] for row in got] == [
        row["tokens"] for row in want
    ]


def test_without_an_instruction_the_body_is_the_prompt(tiny, tmp_path):
    plain = score(tmp_path, tiny, [{"prompt": "Hi?", "responses": ["Hello."]}])
    rendered = score(
        tmp_path,
        tiny,
        [
            {
                "context": "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n",
                "responses": ["Hello.<|im_end|>"],
            }
        ],
        "none",
    )
    assert worst(plain, rendered) < 1e-5


@pytest.mark.peer
@pytest.mark.parametrize(
    "prompts",
    [
        ["The capital of France is", "Once", "One, two, three, four,"],
        [
            "You are a helpful guide to the city. Where is the museum?",
            "You are a helpful guide to the city. Where is a cheap hotel, please?",
        ],
    ],
    ids=["unequal", "shared prefix"],
)
def test_greedy_generation_equals_transformers(prompts, smollm2):
    from transformers import AutoModelForCausalLM

    ids = [load_tokenizer(smollm2).encode(prompt) for prompt in prompts]
    assert (common_prefix(ids) > 3) == (len(prompts) == 2)
    got = generate(load_model(smollm2), ids, 24, [2])
    peer = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    for prompt, row in zip(ids, got):
        want = peer.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=24,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=2,
        )
        want = want[0, len(prompt) :].tolist()
        assert row == want[: want.index(2) if 2 in want else 24]


def test_generation_stops_and_samples_by_its_own_seed(tiny, tokenizer):
    model, prompts = load_model(tiny), [[5, 6, 7], [8, 9], [5, 6, 7, 8, 9, 10]]
    greedy = generate(model, prompts, 6, [])
    assert [len(row) for row in greedy] == [6, 6, 6]
    stop = greedy[0][3]
    assert generate(model, prompts, 6, [stop])[0] == greedy[0][: greedy[0].index(stop)]
    sampled = generate(model, prompts, 6, [], 1.0, seeds=[1, 2, 3])
    assert (
        sampled
        == generate(model, prompts, 6, [], 1.0, seeds=[1, 2, 3])
        != generate(model, prompts, 6, [], 1.0, seeds=[4, 5, 6])
    )
    assert generate(model, [prompts[1]], 6, [], 1.0, seeds=[2])[0] == sampled[1]
    assert generate(model, prompts, 6, [], 1.0, top_p=1e-6, seeds=[1, 2, 3]) == greedy
    system = System(model, tokenizer, None, 4096, {})
    assert respond(system, prompts, 6, 1.0, seed=1) == [tokenizer.decode(row) for row in sampled]


def test_sampling_follows_the_probabilities():
    from model.generate import choose

    logits, generators = (
        torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1),
        [torch.Generator().manual_seed(n) for n in range(4000)],
    )
    share = torch.bincount(choose(logits, 1.0, 1.0, generators), minlength=4) / 4000
    assert (share - torch.tensor([0.5, 0.3, 0.15, 0.05])).abs().max() < 0.03
    cut = torch.bincount(choose(logits, 1.0, 0.7, generators), minlength=4) / 4000
    assert (cut - torch.tensor([0.625, 0.375, 0.0, 0.0])).abs().max() < 0.03


def test_generate_suite_keeps_order_and_fields(records, tiny, tmp_path):
    data, out = (
        write_jsonl(
            tmp_path / "in.jsonl",
            [
                {"id": n, "prompt": r["prompt"], "instruction": r["instruction"]}
                for n, r in enumerate(records)
            ],
        ),
        tmp_path / "o.jsonl",
    )
    texts = []
    for budget in ("4096", "1"):
        evaluate.main(
            [
                "generate",
                "--model",
                str(tiny),
                "--template",
                "chatml",
                "--data",
                str(data),
                "--out",
                str(out),
                "--max-new-tokens",
                "5",
                "--batch-tokens",
                budget,
            ]
        )
        made = [json.loads(line) for line in out.read_text().splitlines()]
        assert [row["id"] for row in made] == list(range(12)) and all(
            isinstance(row["text"], str) for row in made
        )
        texts.append([row["text"] for row in made])
    assert texts[0] == texts[1]
