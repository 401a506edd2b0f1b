"""What generation does with numbers that are none."""

import pytest
import torch

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
