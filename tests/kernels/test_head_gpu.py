"""What only a GPU can show of the fused head: half precision, races, sizes beyond 32 bits.

The same checks as in the interpreter: `-m gpu`.
"""

import pytest
import torch

from kernels import linear_logp_kl
from tests.kernels.head_cases import all_zero, both_heads, same_bits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BACKENDS = ("torch", "triton", "triton-stream", "triton-chunk", "triton-sliced")
every_backend = pytest.mark.parametrize("backend", BACKENDS)
triton_backends = pytest.mark.parametrize("backend", BACKENDS[1:])


def inputs(R, D, V, dtype, shared=True):
    """hidden, weight, (rows, targets, segments, S), reference hidden, its head or None."""
    g = torch.Generator("cuda").manual_seed(0)

    def noise(rows):
        return torch.randn(rows, D, generator=g, device="cuda")

    hidden = noise(R)
    ref = (hidden + 0.3 * noise(R)).to(dtype)
    weight = (noise(V) * D**-0.5).to(dtype)
    ref_weight = None
    if not shared:
        ref_weight = (weight.float() + 0.1 * noise(V) * D**-0.5).to(dtype)
    rows = torch.arange(R, device="cuda")
    targets = torch.randint(0, V, (R,), generator=g, device="cuda")
    index = (rows, targets, rows // 50, R // 50 + 1)
    return hidden.to(dtype), weight, index, ref, ref_weight


def run(hidden, weight, index, ref, ref_weight, backend, train_head=False):
    """Outputs and gradients by name."""
    hidden = hidden.clone().requires_grad_()
    weight = weight.clone().requires_grad_(train_head)
    out = linear_logp_kl(hidden, weight, *index, ref, ref_weight, backend=backend)
    loss = out.logp_S.sum() - 0.7 * out.kl_S.sum()
    grads = torch.autograd.grad(loss, (hidden, weight) if train_head else (hidden,))
    values = {"logp": out.logp_S, "kl": out.kl_S, "ref_logp": out.ref_logp_S}
    return values | dict(zip(("hidden.grad", "weight.grad"), grads, strict=False))


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "two heads"])
@both_heads
@every_backend
@pytest.mark.parametrize(
    "dtype, value, gradient",
    [(torch.float32, 1e-5, 1e-4), (torch.bfloat16, 1e-5, 1e-2), (torch.float16, 1e-5, 2e-3)],
    ids=str,
)
def test_accuracy_against_float64(dtype, value, gradient, backend, train_head, shared):
    hidden, weight, index, ref, ref_weight = inputs(700, 576, 49152, dtype, shared)
    got = run(hidden, weight, index, ref, ref_weight, backend, train_head)
    wide_head = None if shared else ref_weight.double()
    wide = (hidden.double(), weight.double(), index, ref.double(), wide_head)
    for name, want in run(*wide, "dense", train_head).items():
        limit = gradient if name.endswith("grad") else value
        error = ((got[name].double() - want).norm() / want.norm()).item()
        assert error <= limit, f"{name} {list(want.shape)}: off by {error:.1e} of its norm"


@both_heads
@every_backend
def test_the_same_bits_every_time(backend, train_head):
    case = inputs(3000, 1024, 50257, torch.bfloat16)
    first = run(*case, backend, train_head)
    for _ in range(5):
        same_bits(first, run(*case, backend, train_head))


@both_heads
@every_backend
@pytest.mark.parametrize(
    "R, D, V",
    [
        (1, 4096, 128256),  # a product of one row takes another path of the library
        (777, 4096, 128256),  # several chunks, the last one not full
        (3000, 576, 50257),  # an odd vocabulary
    ],
)
def test_equal_models_have_no_kl_and_no_gradient_of_it(R, D, V, backend, train_head):
    hidden, weight, index, _, _ = inputs(R, D, V, torch.bfloat16)
    hidden.requires_grad_()
    weight.requires_grad_(train_head)
    out = linear_logp_kl(hidden, weight, *index, hidden.detach().clone(), backend=backend)
    out.kl_S.sum().backward()
    all_zero({"kl": out.kl_S, "hidden.grad": hidden.grad})
    if train_head:
        all_zero({"weight.grad": weight.grad})


@triton_backends
def test_offsets_beyond_32_bits(backend):
    """17,000 rows x 128,256 logits, twice: more than 2^32 elements, in one workspace."""
    R = 17000
    hidden, weight, (rows, targets, _, _), ref, _ = inputs(R, 64, 128256, torch.bfloat16)
    each = torch.arange(R, device="cuda")
    got = linear_logp_kl(
        hidden, weight, rows, targets, each, R, ref, backend=backend, workspace_bytes=40 << 30
    )
    wide = (hidden.double(), weight.double())
    last = (rows[-50:], targets[-50:], each[:50], 50)
    want = linear_logp_kl(*wide, *last, ref.double(), backend="dense")
    assert got.kl_S.isfinite().all()
    torch.testing.assert_close(got.kl_S[-50:].double(), want.kl_S, rtol=1e-4, atol=1e-6)


@triton_backends
def test_more_row_blocks_than_the_second_grid_axis_has(backend):
    case = inputs(70000 * 32, 16, 40, torch.float32)
    got = run(*case, backend)
    for name, want in run(*case, "torch").items():
        torch.testing.assert_close(
            got[name], want, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_no_host_sync():
    hidden, weight, index, ref, _ = inputs(512, 256, 5000, torch.bfloat16)
    linear_logp_kl(hidden, weight, *index, ref, backend="triton")  # compile first
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(hidden, weight, index, ref, None, "triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")
