"""Inputs of the fused head's tests, the run of a backend, and the comparison with an oracle."""

import pytest
import torch

from kernels import linear_logp_kl

BACKENDS = ("torch", "triton-stream", "triton-chunk", "triton-sliced")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
every_backend = pytest.mark.parametrize("backend", BACKENDS)
both_heads = pytest.mark.parametrize("train_head", [False, True], ids=["frozen", "trained"])

SHAPES = {  # T, R, S, D, V, width of the reference
    "plain": (24, 40, 5, 64, 1000, 64),
    "one token vocabulary": (8, 9, 2, 16, 1, 16),  # logp is 0, KL is 0, softmax of one number
    "odd vocabulary": (8, 12, 4, 24, 4097, 24),  # one column more than a block of the row kernels
    "wide reference": (20, 33, 3, 32, 515, 80),  # two heads of two widths
    "one width": (20, 30, 7, 20, 1100, 20),
    "one row": (3, 1, 1, 16, 129, 16),
    "many chunks": (50, 160, 7, 20, 1100, 20),  # more rows than a chunk of the torch backend
}
SMALL = (6, 9, 3, 16, 70, 16)  # where the sizes do not matter


def case(T, R, S, D, V, D0, dtype=torch.float32, scale=1.0, seed=0):
    """Four matrices, (rows, targets, segments, S), and upstream gradients of logp and KL [2, S]."""
    g = torch.Generator().manual_seed(seed)
    hidden, ref_hidden = (scale * torch.randn(T, width, generator=g) for width in (D, D0))
    weight, ref_weight = (0.3 * torch.randn(V, width, generator=g) for width in (D, D0))
    rows = torch.randint(0, T, (R,), generator=g)
    targets = torch.randint(0, V, (R,), generator=g)
    # Unsorted; the last segment of several stays empty.
    segments = torch.randint(0, max(S - 1, 1), (R,), generator=g)
    up = torch.randn(2, S, generator=g)
    floats = [x.to(DEVICE, dtype) for x in (hidden, weight, ref_hidden, ref_weight)]
    return floats, (rows.to(DEVICE), targets.to(DEVICE), segments.to(DEVICE), S), up.to(DEVICE)


def run(floats, index, up, train_head, backend, **options):
    """Outputs and gradients by name, of fresh leaves."""
    hidden, weight, ref_hidden, ref_weight = (x.clone() for x in floats)
    hidden.requires_grad_()
    weight.requires_grad_(train_head)
    out = linear_logp_kl(hidden, weight, *index, ref_hidden, ref_weight, backend=backend, **options)
    ((out.logp_S * up[0]).sum() + (out.kl_S * up[1]).sum()).backward()
    named = {
        "logp": out.logp_S,
        "kl": out.kl_S,
        "ref_logp": out.ref_logp_S,
        "hidden.grad": hidden.grad,
    }
    if train_head:
        named["weight.grad"] = weight.grad
    return named


def oracle(floats, index, up, train_head):
    """`run` of dense float64."""
    return run([x.double() for x in floats], index, up.double(), train_head, "dense")


def relative(got, want):
    """Largest difference, in units of the largest wanted value."""
    scale = want.abs().max().clamp(min=1e-12)
    return ((got.double() - want).abs().max() / scale).item()


def close(got, want, value=1e-5, gradient=1e-4):
    """Every wanted tensor, within the limit of its kind."""
    for name, expected in want.items():
        what = f"{name} {list(expected.shape)}"
        limit = gradient if name.endswith("grad") else value
        if expected.abs().max() < 1e-9:  # V = 1: everything is 0
            most = got[name].abs().max().item()
            assert most < 1e-6, f"{what}: expected 0, got up to {most:.1e}"
            continue
        error = relative(got[name], expected)
        assert error <= limit, f"{what}: off by {error:.1e} of its largest, limit {limit:.0e}"


def same_bits(first, second):
    """Every tensor of two runs."""
    for name in first:
        different = (first[name] != second[name]).sum().item()
        assert different == 0, f"{name} {list(first[name].shape)}: {different} elements differ"


def all_zero(named):
    for name, x in named.items():
        most = x.abs().max().item() if x.numel() else 0
        assert most == 0, f"{name} {list(x.shape)}: expected exactly 0, got up to {most:.1e}"
