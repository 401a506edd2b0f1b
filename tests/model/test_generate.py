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
        with pytest.raises(InputError, match="computes NaN or infinity in torch.float32"):
            generate(model, [[5, 6], [7]], 3, {2}, temperature)


@pytest.mark.parametrize("temperature", [1e-38, 1e-45, 1e-300])
def test_a_temperature_near_zero_is_greedy(temperature):
    logits = torch.tensor([[1.0, 5.0, 3.0], [-2.0, -9.0, -1.0]])
    generators = [torch.Generator().manual_seed(n) for n in range(2)]
    assert choose(logits, temperature, 1.0, generators).tolist() == [1, 2]
