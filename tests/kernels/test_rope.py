"""rope against its torch reference in float64.

On CUDA where there is one, else in Triton's interpreter.
"""

import pytest
import torch

from kernels import rope as module
from kernels.rope import reference, rope
from tests.kernels.head_cases import same_bits
from tests.kernels.layer_cases import DEVICE, close

SIZES = [  # T, H, E
    (7, 4, 64),  # a block of heads and one of half a head, both full
    (7, 3, 48),  # neither full
    (5, 40, 128),  # more heads than one program takes
    (3, 1, 2),  # the narrowest
    (2, 2, 2048),  # the widest
    (0, 4, 64),
    (5, 0, 64),
]
# Of the largest value; the interpreter cuts bfloat16 instead of rounding it.
LIMITS = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
FLOAT32 = LIMITS[torch.float32]


def inputs(T, H, E, dtype=torch.float32):
    """x, cos, sin, dy."""
    g = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(T, H, E, generator=g) for _ in range(2))
    angle = (50 * torch.rand(T, E // 2, generator=g)).repeat(1, 2)
    return [tensor.to(DEVICE, dtype) for tensor in (x, angle.cos(), angle.sin(), dy)]


def run(function, x, cos, sin, dy):
    x = x.detach().requires_grad_()
    y = function(x, cos, sin)
    (grad,) = torch.autograd.grad(y, x, dy)
    return {"y": y.detach(), "x.grad": grad}


def oracle(*case):
    return run(reference, *(tensor.double() for tensor in case))


@pytest.mark.parametrize("T, H, E", SIZES)
def test_value_and_gradient_equal_float64(T, H, E):
    case = inputs(T, H, E)
    close(run(rope, *case), oracle(*case), FLOAT32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype):
    case = inputs(13, 3, 48, dtype)
    got = run(rope, *case)
    assert {tensor.dtype for tensor in got.values()} == {dtype}
    close(got, oracle(*case), LIMITS[dtype])


def test_rounds_where_the_models_own_does():
    """Both products, then their sum. Rounding only the sum would change every fourth float16."""
    case = inputs(64, 3, 48, torch.float16)
    got, want = run(rope, *case), run(reference, *case)
    for name in want:
        assert (got[name] != want[name]).float().mean() < 2e-3, name


def test_the_backward_turns_back():
    """Turned and turned back is where it was: the length of a head does not change."""
    x, cos, sin, _ = inputs(6, 3, 48)
    y = run(rope, x, cos, sin, x)
    back = run(rope, x, cos, sin, y["y"])["x.grad"]
    close({"x": back}, {"x": x.double()}, FLOAT32)
    close({"norm": y["y"].norm(dim=-1)}, {"norm": x.double().norm(dim=-1)}, FLOAT32)


def test_strides():
    x, cos, sin, dy = inputs(6, 3, 48)
    want = oracle(x, cos, sin, dy)
    strided = {
        "a part of wider rows": torch.cat([x, x], 1)[:, :3],
        "heads first": x.transpose(0, 1).contiguous().transpose(0, 1),
        "elements apart": torch.stack([x, x], -1)[..., 0],
    }
    tables = [torch.cat([table, table], 1)[:, :48] for table in (cos, sin)]
    apart = [torch.stack([table, table], -1)[..., 0] for table in (cos, sin)]
    for name, view in strided.items():
        assert not view.is_contiguous(), name
        for two in (tables, apart):
            close(run(rope, view, *two, torch.cat([dy, dy], 1)[:, 3:]), want, FLOAT32)


def test_an_expanded_gradient():
    """The dy of a plain sum is one number, expanded."""
    x, cos, sin, dy = inputs(6, 3, 48)
    x.requires_grad_()
    rope(x, cos, sin).sum().backward()
    want = oracle(x.detach(), cos, sin, torch.ones_like(dy))["x.grad"]
    close({"x.grad": x.grad}, {"x.grad": want}, FLOAT32)


def test_repeats_are_bitwise_equal():
    case = inputs(12, 3, 48)
    same_bits(run(rope, *case), run(rope, *case))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x_THE": [1.0]}, "x_THE: expected a tensor, got list"),
        ({"x_THE": torch.zeros(3, 4)}, "x_THE: expected three axes, the last even"),
        ({"x_THE": torch.zeros(3, 2, 5)}, r"x_THE: expected three axes.*got shape \[3, 2, 5\]"),
        ({"cos_TE": torch.zeros(3, 2)}, r"cos_TE: expected shape \[3, 4\], got shape \[3, 2\]"),
        ({"sin_TE": torch.zeros(3, 4, dtype=torch.float16)}, "sin_TE: expected torch.float32, as"),
        ({"sin_TE": torch.zeros(3, 4, requires_grad=True)}, "sin_TE: expected no gradient"),
    ],
)
def test_errors_name_the_argument(change, message):
    arguments = {
        "x_THE": torch.zeros(3, 2, 4, device=DEVICE),
        "cos_TE": torch.zeros(3, 4, device=DEVICE),
        "sin_TE": torch.zeros(3, 4, device=DEVICE),
    }
    with pytest.raises(ValueError, match=f"rope: {message}"):
        rope(**(arguments | change))


def test_a_cpu_without_the_interpreter_is_refused(monkeypatch):
    monkeypatch.setattr(module, "INTERPRET", False)
    words = r"rope: x_THE: expected a CUDA tensor \(or TRITON_INTERPRET=1\), got cpu"
    with pytest.raises(ValueError, match=words):
        rope(torch.zeros(3, 2, 4), torch.zeros(3, 4), torch.zeros(3, 4))


def test_compile_takes_it_whole():
    x, cos, sin, dy = inputs(6, 3, 48)

    def loss(x, cos, sin):
        return rope(x * 2, cos, sin)

    whole = torch.compile(loss, fullgraph=True, backend="aot_eager")
    same_bits(run(loss, x, cos, sin, dy), run(whole, x, cos, sin, dy))
    for back in (False, True):
        arguments = (x.detach().requires_grad_(), cos, sin, back)
        torch.library.opcheck(torch.ops.ecliptica.rope.default, arguments)
