"""What holds exactly: KL of equal models is 0, two runs agree bit for bit, segments add up."""

import pytest
import torch

from kernels import linear_logp_kl
from tests.kernels.head_cases import (
    DEVICE,
    SHAPES,
    SMALL,
    all_zero,
    both_heads,
    case,
    every_backend,
    relative,
    run,
    same_bits,
)


@every_backend
@both_heads
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_model_gives_exactly_zero_kl_and_gradient(dtype, train_head, backend):
    # Chunks of a CPU could differ: there a row's bits depend on its place in the product.
    shape = SHAPES["many chunks" if backend == "torch" else "one width"]
    (hidden, weight, _, _), index, _ = case(*shape, dtype=dtype)
    check_equal_models(hidden, weight, index, hidden, None, train_head, backend)


@every_backend
@both_heads
def test_an_equal_model_in_memory_of_its_own_has_no_kl(train_head, backend):
    (hidden, weight, _, _), index, _ = case(*SMALL)
    copies = hidden.clone(), weight.clone()
    check_equal_models(hidden, weight, index, *copies, train_head, backend)


def check_equal_models(hidden, weight, index, ref_hidden, ref_weight, train_head, backend):
    hidden = hidden.clone().requires_grad_()
    weight = weight.clone().requires_grad_(train_head)
    out = linear_logp_kl(hidden, weight, *index, ref_hidden, ref_weight, backend=backend)
    out.kl_S.sum().backward()
    same_bits({"logp": out.logp_S}, {"logp": out.ref_logp_S})
    all_zero({"kl": out.kl_S, "hidden.grad": hidden.grad})
    if train_head:
        all_zero({"weight.grad": weight.grad})


@every_backend
@both_heads
def test_repeats_are_bitwise_equal(train_head, backend):
    floats, index, up = case(*SHAPES["wide reference"])
    first = run(floats, index, up, train_head, backend)
    same_bits(first, run(floats, index, up, train_head, backend))


@every_backend
@both_heads
def test_no_rows_gives_zeros_attached_to_the_graph(train_head, backend):
    floats, _, _ = case(*SHAPES["plain"])
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    up = torch.ones(2, 3, device=DEVICE)
    got = run(floats, (none, none, none, 3), up, train_head, backend)
    assert got["logp"].requires_grad
    all_zero(got)


@every_backend
def test_no_segments_and_no_hidden_rows(backend):
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    hidden = torch.zeros(0, 8, device=DEVICE, requires_grad=True)
    weight = torch.zeros(11, 8, device=DEVICE, requires_grad=True)
    out = linear_logp_kl(hidden, weight, none, none, none, 0, hidden.detach(), backend=backend)
    (out.logp_S.sum() + out.kl_S.sum()).backward()
    for name in ("logp_S", "kl_S", "tokens_S"):
        assert getattr(out, name).shape == (0,), name
    assert hidden.grad.shape == (0, 8)
    all_zero({"weight.grad": weight.grad})


def test_splitting_a_segment_keeps_its_sum_and_kl_is_not_negative():
    (hidden, weight, *reference), (rows, targets, _, _), _ = case(*SHAPES["plain"])
    R = len(rows)
    each = torch.arange(R, device=DEVICE)
    split = linear_logp_kl(hidden, weight, rows, targets, each, R, *reference)
    whole = linear_logp_kl(hidden, weight, rows, targets, torch.zeros_like(each), 1, *reference)
    for name in ("kl_S", "logp_S"):
        total = getattr(whole, name)[0].double()
        assert relative(getattr(split, name).sum(), total) < 1e-6, name
    assert split.kl_S.min() >= -1e-5
    assert split.logp_S.max() <= 1e-5
