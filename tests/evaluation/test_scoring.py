"""`score` and `generate` against transformers, and against themselves under every batching."""

import pytest
import torch

import eval as evaluate
from ecliptica.evaluation.answers import respond
from ecliptica.evaluation.questions import Sampling
from ecliptica.evaluation.systems import System
from model.errors import InputError
from model.generate import choose, common_prefix, generate
from model.tokenizer import load_tokenizer
from model.weights import load_model
from tests.conftest import write_jsonl
from tests.evaluation.conftest import lines_of

CONTEXT = (
    "<|im_start|>user\n### Alignment Instruction:\n{instruction}\n\n"
    "### User Prompt:\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
)


def score(tmp_path, model, records, template="chatml", *options):
    data, out = write_jsonl(tmp_path / "in.jsonl", records), tmp_path / "out.jsonl"
    words = ["score", "--model", model, "--template", template, "--data", data, "--out", out]
    evaluate.main([str(word) for word in [*words, *options]])
    return lines_of(out)


def worst(a, b):
    """The largest difference between two files of scores, nats."""
    pairs = [zip(p["logps"], q["logps"], strict=True) for p, q in zip(a, b, strict=True)]
    return max(abs(x - y) for pair in pairs for x, y in pair)


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


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(tiny)


@pytest.fixture(scope="module")
def peer(smollm2):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()


@pytest.mark.peer
def test_score_equals_transformers(records, smollm2, peer, tmp_path):
    from transformers import PreTrainedTokenizerFast

    got = score(tmp_path, smollm2, records[:4])
    fast = PreTrainedTokenizerFast(tokenizer_file=str(smollm2 / "tokenizer.json"))
    for record, row in zip(records, got):
        context = fast.encode(CONTEXT.format(**record), add_special_tokens=False)
        for n, text in enumerate(record["responses"]):
            response = fast.encode(text + "<|im_end|>", add_special_tokens=False)
            with torch.no_grad():
                table = peer(torch.tensor([context + response])).logits[0].log_softmax(-1)
            predicting = range(len(context) - 1, len(context) + len(response) - 1)
            want = table[predicting, response].sum().item()
            assert row["tokens"][n] == len(response), text
            assert row["logps"][n] == pytest.approx(want, abs=1e-3), text


def test_scores_do_not_depend_on_batching_order_or_packing(records, tiny, tmp_path):
    records = records[:6]
    want = score(tmp_path, tiny, records)
    one_by_one = score(tmp_path, tiny, records, "chatml", "--batch-tokens", "1")
    assert worst(one_by_one, want) < 1e-4
    reversed_order = score(tmp_path, tiny, records[::-1])[::-1]
    assert worst(reversed_order, want) < 1e-4

    alone = [record | {"responses": [text]} for record in records for text in record["responses"]]
    apart = [row["logps"][0] for row in score(tmp_path, tiny, alone)]
    packed = [logp for row in want for logp in row["logps"]]
    assert apart == pytest.approx(packed, abs=1e-4)


def test_rendered_contexts_give_the_same_scores(records, tiny, tmp_path):
    rendered = []
    for record in records[:6]:
        responses = [text + "<|im_end|>" for text in record["responses"]]
        rendered.append({"context": CONTEXT.format(**record), "responses": responses})
    rendered.append(
        {
            "context": "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n",
            "responses": ["Hello.<|im_end|>"],
        }
    )
    # Without an instruction the body is the prompt.
    plain = [*records[:6], {"prompt": "Hi?", "responses": ["Hello."]}]
    got = score(tmp_path, tiny, rendered, "none")
    want = score(tmp_path, tiny, plain)
    assert worst(got, want) < 1e-5
    assert [row["tokens"] for row in got] == [row["tokens"] for row in want]


UNEQUAL = ["The capital of France is", "Once", "One, two, three, four,"]
SHARED = [
    "You are a helpful guide to the city. Where is the museum?",
    "You are a helpful guide to the city. Where is a cheap hotel, please?",
]


@pytest.mark.peer
@pytest.mark.parametrize("prompts", [UNEQUAL, SHARED], ids=["unequal", "shared prefix"])
def test_greedy_generation_equals_transformers(prompts, smollm2, peer):
    ids = [load_tokenizer(smollm2).encode(prompt) for prompt in prompts]
    assert (common_prefix(ids) > 3) == (prompts is SHARED)
    got = generate(load_model(smollm2), ids, 24, [2])
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


PROMPTS = [[5, 6, 7], [8, 9], [5, 6, 7, 8, 9, 10]]


def test_generation_stops_where_it_is_told(model):
    greedy = generate(model, PROMPTS, 6, [])
    assert [len(row) for row in greedy] == [6, 6, 6]
    stop = greedy[0][3]
    stopped = generate(model, PROMPTS, 6, [stop])[0]
    assert stopped == greedy[0][: greedy[0].index(stop)]


def test_every_row_samples_by_its_own_seed(model, tokenizer):
    def sample(prompts, seeds, top_p=1.0):
        return generate(model, prompts, 6, [], 1.0, top_p, seeds=seeds)

    want = sample(PROMPTS, [1, 2, 3])
    assert sample(PROMPTS, [1, 2, 3]) == want
    assert sample(PROMPTS, [4, 5, 6]) != want
    assert sample([PROMPTS[1]], [2]) == want[1:2], "a row depends on its neighbours"
    greedy = generate(model, PROMPTS, 6, [])
    assert sample(PROMPTS, [1, 2, 3], top_p=1e-6) == greedy
    system = System(model, tokenizer, None)
    texts = respond(system, PROMPTS, Sampling(6, temperature=1.0, seed=1))
    assert texts == [tokenizer.decode(row) for row in want]


def test_sampling_follows_the_probabilities():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits_NV = torch.log(probabilities).repeat(4000, 1)
    generators = [torch.Generator().manual_seed(n) for n in range(4000)]

    def shares(top_p):
        tokens = choose(logits_NV, 1.0, top_p, generators)
        return (torch.bincount(tokens, minlength=4) / 4000).tolist()

    assert shares(1.0) == pytest.approx(probabilities.tolist(), abs=0.03)
    assert shares(0.7) == pytest.approx([0.625, 0.375, 0.0, 0.0], abs=0.03)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_choose_no_token(bad, temperature):
    logits_NV = torch.zeros(2, 5)
    logits_NV[1, 3] = bad
    generators = [torch.Generator().manual_seed(n) for n in range(2)]
    with pytest.raises(InputError, match="logits are NaN or infinite"):
        choose(logits_NV, temperature, 1.0, generators)
    logits_NV[1, 3] = float("-inf")  # a token that is masked is none that overflowed
    assert (choose(logits_NV, temperature, 1.0, generators) != 3).all()


def test_generate_keeps_order_and_fields(records, tiny, tmp_path):
    given = [
        {"id": n, "prompt": record["prompt"], "instruction": record["instruction"]}
        for n, record in enumerate(records)
    ]
    data, out = write_jsonl(tmp_path / "in.jsonl", given), tmp_path / "o.jsonl"
    words = ["generate", "--model", str(tiny), "--template", "chatml", "--data", str(data)]
    words += ["--out", str(out), "--max-new-tokens", "5", "--batch-tokens"]
    texts = []
    for budget in ("4096", "1"):
        evaluate.main([*words, budget])
        lines = lines_of(out)
        assert [{k: v for k, v in line.items() if k != "text"} for line in lines] == given
        texts.append([line["text"] for line in lines])
    assert texts[0] == texts[1], "a text depends on its batch"
