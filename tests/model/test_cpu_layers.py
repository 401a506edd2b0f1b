"""The CPU's layers against float64 autograd of the formulas, and against themselves."""

import pytest
import torch
import torch.nn.functional as F

from model import cpu_layers
from model.llama import Llama, rope_tables
from model.weights import load_model


def halves_turned(x, cos, sin):
    first, second = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat((-second, first), -1) * sin[:, None]


def tables(tokens, width):
    frequencies = 10_000 ** (-torch.arange(0, width, 2) / width)
    return rope_tables(torch.arange(tokens) * 7, frequencies, torch.float32)


CASES = {
    "rms_norm": (
        lambda x, w: cpu_layers.rms_norm(x, w, 1e-5),
        lambda x, w: F.rms_norm(x, x.shape[-1:], w, 1e-5),
        [(13, 24), (24,)],
    ),
    "rotate": (
        lambda x: cpu_layers.rotate(x, *tables(13, 16)),
        lambda x: halves_turned(x, *(table.double() for table in tables(13, 16))),
        [(13, 3, 16)],
    ),
    "swiglu": (cpu_layers.swiglu, lambda g, u: F.silu(g) * u, [(13, 40), (13, 40)]),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_float64(name):
    ours, formula, shapes = CASES[name]
    generator = torch.Generator().manual_seed(0)
    inputs = [3 * torch.randn(shape, generator=generator) for shape in shapes]
    results = []
    for function, dtype in ((ours, torch.float32), (formula, torch.float64)):
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        y = function(*leaves)
        upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        results.append([y, *torch.autograd.grad(y, leaves, upstream)])
    for place, (got, want) in enumerate(zip(*results)):
        distance = (got.double() - want).abs().max() / want.abs().max()
        assert distance < 1e-6, (name, "value" if place == 0 else f"gradient {place}", distance)


@pytest.mark.parametrize("name", CASES)
def test_each_gradient_alone_is_the_same(name):
    """A frozen norm, a frozen branch: what is not wanted is not computed, the rest is unchanged."""
    ours, _, shapes = CASES[name]
    inputs = [torch.randn(shape) for shape in shapes]
    together = [x.clone().requires_grad_() for x in inputs]
    want = torch.autograd.grad(ours(*together).sum(), together)
    for place in range(len(inputs)):
        leaves = [x.clone().requires_grad_(at == place) for at, x in enumerate(inputs)]
        (got,) = torch.autograd.grad(ours(*leaves).sum(), [leaves[place]])
        assert torch.equal(got, want[place]), (name, place)
        assert all(torch.equal(leaf, x) for leaf, x in zip(leaves, inputs)), "an input was changed"


def test_with_and_without_a_gradient_the_bits_are_the_same(tiny):
    """Policy and reference are one function at step 0: their KL is exactly 0."""
    model: Llama = load_model(tiny).requires_grad_(True)
    tokens = torch.arange(5, 25)

    def attend(layer, q, k, v):
        return q + k.repeat(1, 2, 1) * v.repeat(1, 2, 1)

    with_gradient = model.forward_hidden(tokens, torch.arange(20), attend)
    with torch.no_grad():
        without = model.forward_hidden(tokens, torch.arange(20), attend)
    assert with_gradient.requires_grad and torch.equal(with_gradient, without)


def test_what_they_suit():
    x = torch.zeros(2, 2)
    assert cpu_layers.suits(x)
    assert not cpu_layers.suits(x.bfloat16()) and not cpu_layers.suits(x.to("meta"))
