"""rms_norm against its torch reference in float64.

On CUDA where there is one, else in Triton's interpreter.
"""

import pytest
import torch

from kernels import rms_norm as module
from kernels.rms_norm import reference, rms_norm
from tests.kernels.head_cases import same_bits
from tests.kernels.layer_cases import DEVICE, close

SIZES = [  # N, D
    *((N, D) for D in (1, 576, 577, 4096, 4097) for N in (0, 1, 7)),  # blocks full and one over
    *((130, D) for D in (1, 577)),  # more rows than there are warps in a block
    (3, 16384),  # the widest: rows read twice in the backward
]
# Of the largest value; the interpreter cuts bfloat16 instead of rounding it.
LIMITS = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
FLOAT32 = LIMITS[torch.float32]


def inputs(N, D, dtype=torch.float32, seed=0):
    """x, weight, dy.

    Rows of unequal size, and a dy that leans on x, so that no term of the backward is small.
    """
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D, generator=g) * torch.logspace(-2, 1, max(N, 1))[:N, None]
    weight, dy = 1 + 0.5 * torch.randn(D, generator=g), torch.randn(N, D, generator=g)
    dy = dy + x / x.square().mean(1, keepdim=True).sqrt()
    return [tensor.to(DEVICE, dtype) for tensor in (x, weight, dy)]


def run(function, x, weight, dy, eps=1e-5, train=True):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_(train)
    y = function(x, weight, eps)
    grads = torch.autograd.grad(y, (x, weight) if train else (x,), dy)
    return {"y": y} | dict(zip(("x.grad", "weight.grad"), grads, strict=False))


def oracle(x, weight, dy, **options):
    return run(reference, x.double(), weight.double(), dy.double(), **options)


@pytest.mark.parametrize("N, D", SIZES)
def test_value_and_gradients_equal_float64(N, D):
    case = inputs(N, D)
    got = run(rms_norm, *case)
    close(got, oracle(*case), FLOAT32)
    if N < 100:  # the interpreter takes two milliseconds for each row
        same_bits(run(rms_norm, *case, train=False), got)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("D", [577, 4096])  # a block that is not full, and a full one
def test_half_precision(dtype, D):
    case = inputs(13, D, dtype)
    got = run(rms_norm, *case)
    assert {tensor.dtype for tensor in got.values()} == {dtype}
    close(got, oracle(*case), LIMITS[dtype])


def test_rounds_where_the_models_own_does():
    """Once. Rounding x r before the product with the weight would change every fourth float16."""
    x, weight, dy = inputs(64, 577, torch.float16)
    got, want = run(rms_norm, x, weight, dy), run(reference, x, weight, dy)
    assert (got["y"] != want["y"]).float().mean() < 2e-3


def test_eps_counts():
    case = inputs(7, 64)
    close(run(rms_norm, *case, eps=0.5), oracle(*case, eps=0.5), FLOAT32)
    zeros = run(rms_norm, torch.zeros_like(case[0]), *case[1:])
    assert not zeros["y"].any()
    assert zeros["x.grad"].isfinite().all()


# all rows in one program, an uneven share, a row each
@pytest.mark.parametrize("programs", [1, 3, 512])
def test_the_weights_gradient_whatever_the_number_of_programs(programs, monkeypatch):
    monkeypatch.setattr(module, "PROGRAMS", programs)
    case = inputs(31, 50)
    close(run(rms_norm, *case), oracle(*case), FLOAT32)


def test_strides_and_leading_axes():
    x, weight, dy = inputs(12, 70)
    want = oracle(x, weight, dy)
    strided = {
        "rows twice as far apart": torch.stack([x, 9 * x], 1)[:, 0],
        "a part of wider rows": torch.cat([x, x], 1)[:, :70],
        "columns first": x.T.contiguous().T,
        "elements apart": torch.stack([x, x], -1)[..., 0],
    }
    strided_weight = torch.stack([weight, weight], 1)[:, 0]
    strided_dy = torch.cat([dy, dy], 1)[:, 70:]
    for name, view in strided.items():
        assert not view.is_contiguous(), name
        close(run(rms_norm, view, strided_weight, strided_dy), want, FLOAT32)

    got = run(rms_norm, x.view(3, 4, 70), weight, dy.view(3, 4, 70))
    flat = {name: tensor.reshape(want[name].shape) for name, tensor in got.items()}
    close(flat, want, FLOAT32)
    same_bits({"y": rms_norm(x[0], weight, 1e-5)}, {"y": got["y"].detach()[0, 0]})


def test_an_expanded_gradient():
    """The dy of a plain sum is one number, expanded."""
    x, weight, dy = inputs(12, 70)
    x.requires_grad_()
    rms_norm(x, weight, 1e-5).sum().backward()
    want = oracle(x.detach(), weight, torch.ones_like(x))["x.grad"]
    close({"x.grad": x.grad}, {"x.grad": want}, FLOAT32)


def test_a_frozen_weight_has_no_gradient_and_costs_no_partial_sums(monkeypatch):
    x, weight, dy = inputs(7, 64)
    backward = module._backward
    results = []

    def watched(*arguments):
        results.append(backward(*arguments))
        return results[-1]

    monkeypatch.setattr(module, "_backward", watched)
    run(rms_norm, x, weight, dy, train=False)
    _, weight_grad = results[0]
    assert weight_grad.numel() == 0

    # And the other way round: a frozen x.
    weight.requires_grad_()
    rms_norm(x, weight, 1e-5).backward(dy)
    want = oracle(x, weight, dy)["weight.grad"]
    close({"weight.grad": weight.grad}, {"weight.grad": want}, FLOAT32)
    assert not rms_norm(x, weight.detach(), 1e-5).requires_grad


def test_repeats_are_bitwise_equal():
    case = inputs(40, 577)
    same_bits(run(rms_norm, *case), run(rms_norm, *case))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": [1.0]}, "x: expected a tensor, got list"),
        (
            {"x": torch.zeros(3, 4, dtype=torch.float64)},
            "x: expected float32, bfloat16 or float16, got torch.float64",
        ),
        ({"x": torch.zeros(())}, r"x: expected rows of 1 to 16384 elements, got shape \[\]"),
        ({"x": torch.zeros(3, 0)}, r"x: expected rows of 1 to 16384 elements, got shape \[3, 0\]"),
        ({"x": torch.zeros(3, 16385)}, r"x: expected rows of 1 to 16384 elements"),
        ({"weight_D": torch.zeros(5)}, r"weight_D: expected shape \[4\], got shape \[5\]"),
        (
            {"weight_D": torch.zeros(4, dtype=torch.float16)},
            "weight_D: expected torch.float32, as x, got torch.float16",
        ),
        ({"weight_D": torch.zeros(4, device="meta")}, "weight_D: expected device"),
        ({"eps": -1.0}, "eps: expected a float >= 0, got -1.0"),
        ({"eps": None}, "eps: expected a float >= 0, got None"),
    ],
)
def test_errors_name_the_argument(change, message):
    arguments = {
        "x": torch.zeros(3, 4, device=DEVICE),
        "weight_D": torch.zeros(4, device=DEVICE),
        "eps": 1e-5,
    }
    with pytest.raises(ValueError, match=f"rms_norm: {message}"):
        rms_norm(**(arguments | change))


def test_a_cpu_without_the_interpreter_is_refused(monkeypatch):
    monkeypatch.setattr(module, "INTERPRET", False)
    with pytest.raises(
        ValueError, match=r"rms_norm: x: expected a CUDA tensor \(or TRITON_INTERPRET=1\), got cpu"
    ):
        rms_norm(torch.zeros(3, 4), torch.zeros(4), 1e-5)


def test_compile_takes_it_whole():
    x, weight, dy = inputs(7, 64)
    x, weight = x.requires_grad_(), weight.requires_grad_()

    def loss(x, weight):
        return (rms_norm(x * 2, weight, 1e-5) * dy).sum()

    def gradients(loss):
        return dict(
            zip(("x.grad", "weight.grad"), torch.autograd.grad(loss(x, weight), (x, weight)))
        )

    same_bits(gradients(loss), gradients(torch.compile(loss, fullgraph=True, backend="aot_eager")))
    torch.library.opcheck(
        torch.ops.ecliptica.rms_norm.default,
        (x[:, :33].detach().requires_grad_(), weight[:33].detach().requires_grad_(), 1e-5),
    )
    for train in (False, True):
        arguments = (dy, x.detach(), weight.detach(), dy[:, 0].contiguous(), train)
        torch.library.opcheck(
            torch.ops.ecliptica.rms_norm_backward.default,
            arguments,
            test_utils=("test_schema", "test_faketensor"),
        )
