"""What only the sliced forward does: scales and shifts that move from slice to slice."""

import pytest
import torch

from kernels.head import sliced, triton_sliced
from tests.kernels.head_cases import DEVICE, close, oracle, run


@pytest.fixture(autouse=True)
def narrow_slices(monkeypatch):
    """11 slices of 64 columns, the last one not full."""
    monkeypatch.setattr(sliced, "WIDTH", 64)


def growing(dtype, span):
    """Logits whose maximum, and whose distance to the reference, grow by `span` over the slices."""
    g = torch.Generator().manual_seed(0)
    T, D, V = 8, 16, 700
    hidden = torch.randn(T, D, generator=g).abs()
    weight = 0.3 * torch.randn(V, D, generator=g)
    weight[:, 0] += torch.linspace(0, span, V)
    hidden[:, 0] = 1.0
    ref_hidden = hidden + 0.5 * torch.randn(T, D, generator=g)
    ref_hidden[:, 0] = 0.8
    rows = torch.arange(T, device=DEVICE)
    targets = torch.randint(0, V, (T,), generator=g).to(DEVICE)
    index = (rows, targets, rows % 3, 3)
    matrices = (hidden, weight, ref_hidden, weight.clone())
    return [x.to(DEVICE, dtype) for x in matrices], index, torch.randn(2, 3, generator=g).to(DEVICE)


@pytest.mark.parametrize(
    "span, dtype, gradient",
    [
        (0.0, torch.bfloat16, 1e-2),  # nothing moves but the shift of the first slice
        (12.0, torch.bfloat16, 1e-2),  # the maximum grows within the slack of bfloat16
        (12.0, torch.float16, 1e-2),  # float16 has no slack
        (90.0, torch.bfloat16, 1e-2),  # the scale moves several times, and e^90 is beyond float32
        (90.0, torch.float32, 1e-4),
    ],
    ids=str,
)
def test_logits_that_grow_over_the_slices(span, dtype, gradient):
    floats, index, up = growing(dtype, span)
    got = run(floats, index, up, False, "triton-sliced")
    # A log-sum-exp of 90 has a last bit of 8e-6, and the KL is the difference of two.
    close(got, oracle(floats, index, up, False), value=3e-5, gradient=gradient)


def test_the_scale_moves_rarely_and_the_sums_follow(monkeypatch):
    """Of 11 slices, 10 could correct the sums; at a span of 90 a slack of 16 asks for a few."""
    floats, index, up = growing(torch.float32, 90.0)
    moves = []
    rescale = triton_sliced.rescale

    def watched(state, sums):
        moves.append((state[triton_sliced.FACTOR] != 1).float().mean().item())
        rescale(state, sums)

    monkeypatch.setattr(triton_sliced, "rescale", watched)
    run(floats, index, up, False, "triton-sliced")
    assert len(moves) == 10
    assert 3 <= sum(moves) <= 6
