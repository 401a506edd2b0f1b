"""swiglu against its torch reference in float64, on CUDA where there is one, else in Triton's interpreter."""

import pytest
import torch

from kernels import swiglu as module
from kernels.swiglu import reference, swiglu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WIDTHS, ROWS = (1, 576, 577, 1536, 4096, 4097), (0, 1, 7)
SIZES = [(N, F) for F in WIDTHS for N in ROWS] + [(130, 1), (130, 577), (130, 4097)]
LIMITS = {
    torch.float32: 3e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 3e-2,
}  # of the largest value; the interpreter cuts bfloat16 instead of rounding it


def inputs(N, F, dtype=torch.float32, seed=0):
    """gate, up, dy."""
    g = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(N, F, generator=g)).to(DEVICE, dtype) for scale in (4, 2, 1)]


def run(function, gate, up, dy):
    gate, up = gate.detach().requires_grad_(), up.detach().requires_grad_()
    y = function(gate, up)
    return dict(
        zip(
            ("y", "gate.grad", "up.grad"), (y, *torch.autograd.grad(y, (gate, up), dy)), strict=True
        )
    )


def close(got, want, limit):
    assert got.keys() == want.keys()
    for name in want:
        scale = want[name].abs().max().clamp(min=1e-12) if want[name].numel() else 1
        error = ((got[name].double() - want[name]).abs() / scale).flatten()
        assert got[name].shape == want[name].shape and (
            not error.numel() or error.max() <= limit
        ), name


def oracle(*case):
    return run(reference, *(tensor.double() for tensor in case))


@pytest.mark.parametrize("N, F", SIZES)
def test_value_and_gradients_equal_float64(N, F):
    case = inputs(
        min(N, 20) if F > 2000 and DEVICE == "cpu" else N, F
    )  # the interpreter takes a millisecond for each block
    close(run(swiglu, *case), oracle(*case), LIMITS[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype):
    case = inputs(13, 1025, dtype)
    got = run(swiglu, *case)
    assert {tensor.dtype for tensor in got.values()} == {dtype}
    close(got, oracle(*case), LIMITS[dtype])


def test_rounds_where_the_models_own_does():
    """silu first, then the product, both ways. Rounding only once would change every fourth float16."""
    case = inputs(64, 577, torch.float16)
    got, want = run(swiglu, *case), run(reference, *case)
    for name, share in {
        "y": 2e-3,
        "up.grad": 2e-3,
        "gate.grad": 0.1,
    }.items():  # dg: torch divides in another order
        assert (got[name] != want[name]).float().mean() < share, name


@pytest.mark.filterwarnings(
    "ignore:overflow encountered in exp"
)  # e^1e4 is infinite, as it should be
def test_large_gates_stay_finite():
    gate = torch.tensor([[-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4]], device=DEVICE)
    case = gate, torch.full_like(gate, 3), torch.ones_like(gate)
    got = run(swiglu, *case)
    assert all(tensor.isfinite().all() for tensor in got.values())
    close(got, oracle(*case), LIMITS[torch.float32])


def test_strides_and_leading_axes():
    case = inputs(12, 70)
    want = oracle(*case)
    both = torch.cat(case, 1)  # as one projection would leave gate and up
    close(run(swiglu, both[:, :70], both[:, 70:140], both[:, 140:]), want, LIMITS[torch.float32])
    close(run(swiglu, *(x.T.contiguous().T for x in case)), want, LIMITS[torch.float32])
    close(
        run(swiglu, case[0], torch.stack([case[1]] * 2, -1)[..., 0], case[2]),
        want,
        LIMITS[torch.float32],
    )
    got = run(swiglu, *(x.view(3, 4, 70) for x in case))
    close(
        {name: tensor.reshape(12, 70) for name, tensor in got.items()}, want, LIMITS[torch.float32]
    )
    assert torch.equal(swiglu(case[0][0], case[1][0]), got["y"].detach()[0, 0])
    gate, up = case[0].requires_grad_(), case[1].requires_grad_()
    swiglu(gate, up).sum().backward()  # dy is one number, expanded
    assert torch.equal(gate.grad, run(swiglu, gate, up, torch.ones_like(up))["gate.grad"])


def test_only_the_gradients_that_are_wanted_and_no_saved_tensor_beside_the_inputs():
    gate, up, dy = inputs(7, 64)
    want = oracle(gate, up, dy)
    gate.requires_grad_()
    (got,) = torch.autograd.grad(swiglu(gate, up), gate, dy)
    close({"gate.grad": got}, {"gate.grad": want["gate.grad"]}, LIMITS[torch.float32])
    up.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x.data_ptr()) or x, lambda x: x
    ):
        swiglu(gate, up)
    assert kept == [gate.data_ptr(), up.data_ptr()]
    assert not swiglu(gate.detach(), up.detach()).requires_grad


def test_repeats_are_bitwise_equal():
    case = inputs(13, 577)
    first, second = run(swiglu, *case), run(swiglu, *case)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"gate": 1.0}, "gate: expected a tensor, got float"),
        (
            {"gate": torch.zeros(3, 4, dtype=torch.int64)},
            "gate: expected float32, bfloat16 or float16, got torch.int64",
        ),
        (
            {"gate": torch.zeros(()), "up": torch.zeros(())},
            "gate: expected at least one axis, got a scalar",
        ),
        ({"up": torch.zeros(4)}, r"up: expected shape \[3, 4\], as gate, got shape \[4\]"),
        (
            {"up": torch.zeros(3, 4, dtype=torch.float16)},
            "up: expected torch.float32, as gate, got torch.float16",
        ),
        ({"up": torch.zeros(3, 4, device="meta")}, "up: expected device"),
    ],
)
def test_errors_name_the_argument(change, message):
    change = {
        name: x.to(DEVICE) if isinstance(x, torch.Tensor) and x.device.type == "cpu" else x
        for name, x in change.items()
    }
    with pytest.raises(ValueError, match=f"swiglu: {message}"):
        swiglu(
            **(
                {"gate": torch.zeros(3, 4, device=DEVICE), "up": torch.zeros(3, 4, device=DEVICE)}
                | change
            )
        )


def test_a_cpu_without_the_interpreter_is_refused(monkeypatch):
    monkeypatch.setattr(module, "INTERPRET", False)
    with pytest.raises(
        ValueError, match=r"swiglu: gate: expected a CUDA tensor \(or TRITON_INTERPRET=1\), got cpu"
    ):
        swiglu(torch.zeros(3, 4), torch.zeros(3, 4))


def test_compile_takes_it_whole():
    gate, up, dy = inputs(7, 64)
    gate, up = gate.requires_grad_(), up.requires_grad_()

    def loss(gate, up):
        return (swiglu(gate * 2, up) * dy).sum()

    eager = torch.autograd.grad(loss(gate, up), (gate, up))
    compiled = torch.autograd.grad(
        torch.compile(loss, fullgraph=True, backend="aot_eager")(gate, up), (gate, up)
    )
    assert all(torch.equal(a, b) for a, b in zip(eager, compiled, strict=True))
    torch.library.opcheck(
        torch.ops.ecliptica.swiglu.default,
        (gate[:, :33].detach().requires_grad_(), up[:, 31:].detach().requires_grad_()),
    )
    torch.library.opcheck(
        torch.ops.ecliptica.swiglu_backward.default,
        (dy, gate.detach(), up.detach()),
        test_utils=("test_schema", "test_faketensor"),
    )
