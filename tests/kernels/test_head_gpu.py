"""What only a GPU can show: rounding of half precision, races, sizes beyond 32 bits. Same checks, `-m gpu`."""

import pytest
import torch

from kernels import linear_logp_kl

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BACKENDS = ("torch", "triton", "triton-stream", "triton-chunk")


def inputs(R, D, V, dtype, shared=True):
    g = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(R, D, generator=g, device="cuda")
    ref = (hidden + 0.3 * torch.randn(R, D, generator=g, device="cuda")).to(dtype)
    weight = (torch.randn(V, D, generator=g, device="cuda") * D**-0.5).to(dtype)
    ref_weight = (
        None
        if shared
        else (weight.float() + 0.1 * torch.randn(V, D, generator=g, device="cuda") * D**-0.5).to(
            dtype
        )
    )
    rows, targets = (
        torch.arange(R, device="cuda"),
        torch.randint(0, V, (R,), generator=g, device="cuda"),
    )
    return hidden.to(dtype), weight, (rows, targets, rows // 50, R // 50 + 1), ref, ref_weight


def run(hidden, weight, index, ref, ref_weight, backend, train_head=False):
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_(train_head)
    out = linear_logp_kl(hidden, weight, *index, ref, ref_weight, backend=backend)
    grads = torch.autograd.grad(
        out.logp_S.sum() - 0.7 * out.kl_S.sum(), (hidden, weight) if train_head else (hidden,)
    )
    return [out.logp_S, out.kl_S, out.ref_logp_S, *grads]


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "two heads"])
@pytest.mark.parametrize("train_head", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "dtype, values, gradients",
    [(torch.float32, 1e-5, 1e-4), (torch.bfloat16, 1e-5, 1e-2), (torch.float16, 1e-5, 2e-3)],
    ids=str,
)
def test_accuracy_against_float64(dtype, values, gradients, backend, train_head, shared):
    case = inputs(700, 576, 49152, dtype, shared)
    got = run(*case, backend, train_head)
    hidden, weight, index, ref, ref_weight = case
    wide = (
        hidden.double(),
        weight.double(),
        index,
        ref.double(),
        None if shared else ref_weight.double(),
    )
    want = run(*wide, "dense", train_head)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert (a.double() - b).norm() <= (values if i < 3 else gradients) * b.norm(), i


@pytest.mark.parametrize("train_head", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_bits_every_time(backend, train_head):
    case = inputs(3000, 1024, 50257, torch.bfloat16)
    first = run(*case, backend, train_head)
    for _ in range(5):
        assert all(
            torch.equal(a, b) for a, b in zip(first, run(*case, backend, train_head), strict=True)
        )


@pytest.mark.parametrize("train_head", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("R, D, V", [(1, 4096, 128256), (777, 4096, 128256), (3000, 576, 50257)])
def test_equal_models_have_no_kl_and_no_gradient_of_it(R, D, V, backend, train_head):
    hidden, weight, index, _, _ = inputs(R, D, V, torch.bfloat16)
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_(train_head)
    out = linear_logp_kl(hidden, weight, *index, hidden.detach().clone(), backend=backend)
    grads = torch.autograd.grad(out.kl_S.sum(), (hidden, weight) if train_head else (hidden,))
    assert not out.kl_S.any() and not any(g.any() for g in grads)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_offsets_beyond_32_bits(backend):
    """17,000 rows x 128,256 logits, twice: more than 2^32 elements, in one workspace."""
    hidden, weight, index, ref, _ = inputs(17000, 64, 128256, torch.bfloat16)
    out = linear_logp_kl(hidden, weight, *index, ref, backend=backend, workspace_bytes=40 << 30)
    last = [x[-50:] for x in index[:2]]
    want = linear_logp_kl(
        hidden.double(),
        weight.double(),
        *last,
        torch.arange(50, device="cuda"),
        50,
        ref.double(),
        backend="dense",
    )
    each = linear_logp_kl(
        hidden,
        weight,
        *index[:2],
        torch.arange(17000, device="cuda"),
        17000,
        ref,
        backend=backend,
        workspace_bytes=40 << 30,
    )
    assert (
        torch.allclose(each.kl_S[-50:].double(), want.kl_S, rtol=1e-4, atol=1e-6)
        and out.kl_S.isfinite().all()
    )


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_more_row_blocks_than_the_second_grid_axis_has(backend):
    case = inputs(70000 * 32, 16, 40, torch.float32)
    got, want = run(*case, backend), run(*case, "torch")
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(got, want, strict=True))


def test_no_host_sync():
    hidden, weight, index, ref, _ = inputs(512, 256, 5000, torch.bfloat16)
    linear_logp_kl(hidden, weight, *index, ref, backend="triton")  # compile first
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(hidden, weight, index, ref, None, "triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")
