"""linear_logp_kl against float64 autograd on dense logits, every backend.

On CUDA where there is one, else Triton's kernels by its interpreter.
"""

import pytest
import torch

from kernels import linear_logp_kl
from kernels.head.products import logits
from tests.kernels.head_cases import (
    BACKENDS,
    DEVICE,
    SHAPES,
    both_heads,
    case,
    close,
    every_backend,
    oracle,
    relative,
    run,
)


@every_backend
@both_heads
@pytest.mark.parametrize("shape", SHAPES)
def test_every_backend_equals_dense_float64(shape, train_head, backend):
    if shape == "many chunks" and backend != "torch":
        pytest.skip("the Triton backends make one chunk of it")
    floats, index, up = case(*SHAPES[shape])
    close(run(floats, index, up, train_head, backend), oracle(floats, index, up, train_head))


@every_backend
@both_heads
@pytest.mark.parametrize(
    "workspace_bytes, V",
    [
        (1, 9),  # one row at a time, one column at a time
        (1 << 15, 150),  # some rows at a time
        (1 << 17, 150),  # all rows at once
    ],
)
def test_a_small_workspace_changes_nothing(workspace_bytes, V, train_head, backend):
    floats, index, up = case(12, 20, 3, 24, V, 24)
    got = run(floats, index, up, train_head, backend, workspace_bytes=workspace_bytes)
    close(got, oracle(floats, index, up, train_head))


@every_backend
# the stream's tile of 32 and four of them, each one off; a pair of tiles that is not full
@pytest.mark.parametrize("vocabulary", [31, 32, 33, 127, 129])
def test_vocabularies_around_a_tile(vocabulary, backend, real_tiles):
    check_vocabulary(vocabulary, backend, heads=(False, True))


@every_backend
@pytest.mark.parametrize(
    "vocabulary",
    [
        4095,  # one less than two blocks of the row kernels, and than a slice
        50257,  # GPT-2: odd
        128256,  # Llama 3: a multiple of 64, the last slice of the sliced forward not full
        151936,  # Qwen, the largest
    ],
)
def test_vocabularies_of_models(vocabulary, backend):
    check_vocabulary(vocabulary, backend, heads=(True,))


def check_vocabulary(vocabulary, backend, heads):
    floats, index, up = case(4, 5, 2, 20, vocabulary, 20)
    index[1][:2] = torch.tensor([0, vocabulary - 1])  # the first and the last token
    for train_head in heads:
        got = run(floats, index, up, train_head, backend)
        close(got, oracle(floats, index, up, train_head))


@every_backend
# SmolLM2's width; a policy four times as wide as its reference
@pytest.mark.parametrize("widths", [(576, 576), (2304, 576)], ids=str)
def test_real_widths(widths, backend):
    floats, index, up = case(20, 40, 3, widths[0], 300, widths[1], scale=0.3)
    close(run(floats, index, up, True, backend), oracle(floats, index, up, True))


@every_backend
@both_heads
def test_a_shared_head(train_head, backend, real_tiles):
    (hidden, weight, ref_hidden, _), index, up = case(30, 50, 7, 20, 140, 20)

    def both(dtype, backend):
        h = hidden.to(dtype).requires_grad_()
        w = weight.to(dtype).requires_grad_(train_head)
        out = linear_logp_kl(h, w, *index, ref_hidden.to(dtype), backend=backend)
        loss = (out.logp_S * up[0]).sum() + (out.kl_S * up[1]).sum()
        grads = torch.autograd.grad(loss, (h, w) if train_head else (h,))
        names = ("hidden.grad", "weight.grad")
        return {"logp": out.logp_S, "kl": out.kl_S} | dict(zip(names, grads, strict=False))

    close(both(torch.float32, backend), both(torch.float64, "dense"))


@every_backend
def test_a_trained_head_over_frozen_hidden_states(backend):
    floats, index, up = case(*SHAPES["plain"])

    def grad(floats, backend):
        weight = floats[1].clone().requires_grad_()
        out = linear_logp_kl(floats[0], weight, *index, *floats[2:], backend=backend)
        loss = (out.logp_S * up[0]).sum() + (out.kl_S * up[1]).sum()
        return torch.autograd.grad(loss, weight)[0]

    want = grad([x.double() for x in floats], "dense")
    close({"weight.grad": grad(floats, backend)}, {"weight.grad": want}, gradient=1e-5)


@every_backend
@both_heads
@pytest.mark.parametrize("only", [0, 1], ids=["logp", "kl"])
def test_one_output_alone_has_its_own_gradient(only, train_head, backend):
    floats, index, up = case(*SHAPES["wide reference"])
    alone = up * torch.eye(2, device=DEVICE)[only][:, None]
    want = oracle(floats, index, alone, train_head)
    close(run(floats, index, alone, train_head, backend), want)

    # And where the other output is not used at all.
    hidden = floats[0].clone().requires_grad_()
    out = linear_logp_kl(hidden, floats[1], *index, *floats[2:], backend=backend)
    loss = ((out.logp_S, out.kl_S)[only] * up[only]).sum()
    (got,) = torch.autograd.grad(loss, hidden)
    close({"hidden.grad": got}, {"hidden.grad": want["hidden.grad"]}, gradient=1e-5)


@every_backend
@both_heads
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_inputs_give_float32_statistics(dtype, train_head, backend):
    floats, index, up = case(*SHAPES["one width"], dtype=dtype)
    want = oracle(floats, index, up, train_head)
    close(run(floats, index, up, train_head, backend), want, value=1e-5, gradient=1e-2)


def test_bfloat16_logits_keep_sixteen_bits():
    """The rounded product and what its rounding lost: 256 times finer than bfloat16 alone."""
    (hidden, weight, _, _), _, _ = case(64, 1, 1, 576, 4096, 576, dtype=torch.bfloat16)
    out = torch.empty(64, 4096, device=DEVICE)
    half = torch.empty(64, 4096, device=DEVICE, dtype=torch.bfloat16)
    logits(hidden, weight, out, half)
    want = hidden.double() @ weight.double().T
    over = ((out - want).abs() - want.abs() * 2.0**-16).max().item()
    assert over <= 1e-5, f"a logit is off by {over:.1e} beyond its last of 16 bits"


def test_dense_is_the_textbook_formula():
    floats, (rows, targets, segments, S), _ = case(*SHAPES["plain"])
    hidden, weight, ref_hidden, ref_weight = (x.double() for x in floats)
    got = linear_logp_kl(
        hidden, weight, rows, targets, segments, S, ref_hidden, ref_weight, backend="dense"
    )
    for s in range(S):
        logp = 0.0
        kl = 0.0
        for row, target in zip(rows[segments == s], targets[segments == s]):
            p = torch.softmax(weight @ hidden[row], 0)
            q = torch.softmax(ref_weight @ ref_hidden[row], 0)
            logp += p[target].log().item()
            kl += (p * (p / q).log()).sum().item()
        assert got.logp_S[s].item() == pytest.approx(logp, abs=1e-9), f"logp of segment {s}"
        assert got.kl_S[s].item() == pytest.approx(kl, abs=1e-9), f"kl of segment {s}"
        assert got.tokens_S[s].item() == (segments == s).sum().item(), f"tokens of segment {s}"


@every_backend
@both_heads
def test_huge_logits_stay_finite(train_head, backend):
    floats, index, up = case(20, 30, 3, 16, 700, 16, scale=1e4)
    got = run(floats, index, up, train_head, backend)
    for name, x in got.items():
        assert x.isfinite().all(), name
    close(got, oracle(floats, index, up, train_head), value=1e-5, gradient=2e-2)


@pytest.mark.parametrize("backend", ["dense", *BACKENDS])
@both_heads
def test_kl_that_nobody_differentiates(train_head, backend):
    """The same values, and the gradient of log-prob alone."""
    floats, index, up = case(*SHAPES["wide reference"])
    want = oracle(floats, index, up * torch.tensor([[1.0], [0.0]], device=DEVICE), train_head)
    hidden = floats[0].clone().requires_grad_()
    weight = floats[1].clone().requires_grad_(train_head)
    out = linear_logp_kl(hidden, weight, *index, *floats[2:], backend=backend, kl_gradient=False)
    assert not out.kl_S.requires_grad
    (out.logp_S * up[0]).sum().backward()
    got = {"logp": out.logp_S, "kl": out.kl_S, "hidden.grad": hidden.grad}
    close(got | {"weight.grad": weight.grad, "ref_logp": out.ref_logp_S}, want)


@every_backend
def test_without_a_reference_there_is_no_kl(backend):
    (hidden, weight, _, _), index, up = case(*SHAPES["plain"])

    def logp(hidden, weight, backend):
        hidden = hidden.clone().requires_grad_()
        out = linear_logp_kl(hidden, weight, *index, backend=backend)
        assert out.kl_S is None
        assert out.ref_logp_S is None
        (grad,) = torch.autograd.grad((out.logp_S * up[0]).sum(), hidden)
        return {"logp": out.logp_S, "hidden.grad": grad}

    want = logp(hidden.double(), weight.double(), "dense")
    close(logp(hidden, weight, backend), want, value=1e-6, gradient=1e-5)


@every_backend
def test_frozen_inputs_and_non_contiguous_ones(backend):
    (hidden, weight, ref_hidden, _), index, _ = case(*SHAPES["plain"])
    strided = torch.stack([hidden, hidden], -1)[..., 0]
    assert not strided.is_contiguous()
    out = linear_logp_kl(strided, weight.T.contiguous().T, *index, ref_hidden, backend=backend)
    want = linear_logp_kl(hidden, weight, *index, ref_hidden, backend="dense")
    assert not out.logp_S.requires_grad
    assert relative(out.kl_S, want.kl_S.double()) < 1e-5
