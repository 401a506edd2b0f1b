"""What generation does with numbers that are none."""

import pytest
import torch

from model import generate as generation
from model.attention import packed_attention
from model.errors import InputError
from model.generate import choose, generate
from model.weights import load_model


def test_a_model_that_computes_nan_gives_no_answer(tiny):
    model = load_model(tiny)
    model.model.layers[1].mlp.down_proj.weight.data.fill_(3e38)  # finite, its products are not
    for temperature in (0.0, 1.0):
        with pytest.raises(InputError, match="logits are NaN or infinite in torch.float32"):
            generate(model, [[5, 6], [7]], 3, {2}, temperature)


@pytest.mark.parametrize("temperature", [1e-38, 1e-45, 1e-300])
def test_a_temperature_near_zero_is_greedy(temperature):
    logits = torch.tensor([[1.0, 5.0, 3.0], [-2.0, -9.0, -1.0]])
    generators = [torch.Generator().manual_seed(n) for n in range(2)]
    assert choose(logits, temperature, 1.0, generators).tolist() == [1, 2]


def test_answers_that_end_leave_the_others_as_they_are(tiny):
    """Rows end at different steps and the rest moves up: every answer is what its prompt gives
    alone, cut at the first stop token."""
    model = load_model(tiny)
    generator = torch.Generator().manual_seed(0)
    prompts = [
        torch.randint(3, 400, (length,), generator=generator).tolist()
        for length in (4, 9, 2, 6, 11, 3)
    ]
    alone = [generate(model, [prompt], 12, set())[0] for prompt in prompts]

    # Stop tokens that end answers early, late and never.
    stops = {alone[0][0], alone[2][5], alone[3][2], alone[5][1]}
    want = []
    for answer in alone:
        ends = [place for place, token in enumerate(answer) if token in stops]
        want.append(answer[: ends[0]] if ends else answer)
    lengths = [len(answer) for answer in want]
    assert 0 in lengths and 12 in lengths and len(set(lengths)) > 3, lengths

    rows_computed = []
    forward_hidden = model.forward_hidden
    model.forward_hidden = lambda tokens, *rest: (
        rows_computed.append(len(tokens)) or forward_hidden(tokens, *rest)
    )
    assert generate(model, prompts, 12, stops) == want
    decoded = rows_computed[1:]  # after the prompts
    assert sum(decoded) == sum(min(length, 11) for length in lengths)


def test_a_rank_that_is_done_goes_on_until_all_are(tiny):
    """Its forwards are collectives of the others; its answers do not grow."""
    model = load_model(tiny)
    prompts = [[5, 6, 7], [8, 9]]
    first = [answer[0] for answer in generate(model, prompts, 1, set())]
    told = []

    def agreed(done):
        told.append(done)
        return len(told) == 4

    assert generate(model, prompts, 9, set(first), agreed=agreed) == [[], []]
    assert told == [True] * 4


def test_a_compiled_model_generates_outside_the_compiler(tiny):
    """Or every layer and length would be a graph, and the budget gone when training goes on."""
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    prompts = [[5, 6, 7], [8, 9]]
    want = generate(load_model(tiny), prompts, 6, {2})
    model = load_model(tiny)
    for block in model.model.layers:
        block.compile(backend=counting)

    def step(length):
        tokens = torch.arange(5, 5 + length)
        one_document = torch.zeros_like(tokens)
        attend = packed_attention(one_document, one_document)
        model.forward_hidden(tokens, torch.arange(length), attend).sum().backward()

    model.requires_grad_(True)
    step(9)
    before = len(graphs)
    assert before > 0
    assert generate(model, prompts, 6, {2}) == want
    assert len(graphs) == before, "generation made graphs of its own"
    step(9)
    assert len(graphs) == before, "training lost its graphs"


def test_attention_keeps_its_own_compiler_while_a_compiled_model_generates(tiny, monkeypatch):
    """FlexAttention run eagerly would hold every score."""
    calls = []

    def inner(x):
        calls.append(torch.compiler.is_compiling())
        return x + 0

    compiled = torch.compile(inner, backend="eager")

    def packed(document_T, branch_T):
        attend = packed_attention(document_T, branch_T)
        return lambda layer, q, k, v: attend(layer, compiled(q), k, v)

    monkeypatch.setattr(generation, "packed_attention", packed)
    model = load_model(tiny)
    for block in model.model.layers:
        block.compile(backend="eager")
    generate(model, [[5, 6, 7], [8, 9]], 2, {2})
    assert calls and all(calls)
