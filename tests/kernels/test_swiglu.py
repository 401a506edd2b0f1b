"""swiglu against its torch reference in float64.

On CUDA where there is one, else in Triton's interpreter.
"""

import pytest
import torch

from kernels import swiglu as module
from kernels.swiglu import reference, swiglu
from tests.kernels.head_cases import same_bits
from tests.kernels.layer_cases import DEVICE, close

SIZES = [  # N, F
    *(
        (N, F) for F in (1, 577, 1024, 4097) for N in (0, 1, 7)
    ),  # blocks of 1024: part, full, 4 and 1
    *((130, F) for F in (1, 577)),  # more rows than a warp has lanes
]
# Of the largest value; the interpreter cuts bfloat16 instead of rounding it.
LIMITS = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 3e-2}
FLOAT32 = LIMITS[torch.float32]


def inputs(N, F, dtype=torch.float32, seed=0):
    """gate, up, dy."""
    g = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(N, F, generator=g)).to(DEVICE, dtype) for scale in (4, 2, 1)]


def run(function, gate, up, dy):
    gate, up = gate.detach().requires_grad_(), up.detach().requires_grad_()
    y = function(gate, up)
    gate_grad, up_grad = torch.autograd.grad(y, (gate, up), dy)
    return {"y": y, "gate.grad": gate_grad, "up.grad": up_grad}


def oracle(*case):
    return run(reference, *(tensor.double() for tensor in case))


@pytest.mark.parametrize("N, F", SIZES)
def test_value_and_gradients_equal_float64(N, F):
    case = inputs(N, F)
    close(run(swiglu, *case), oracle(*case), FLOAT32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype):
    case = inputs(13, 1025, dtype)
    got = run(swiglu, *case)
    assert {tensor.dtype for tensor in got.values()} == {dtype}
    close(got, oracle(*case), LIMITS[dtype])


def test_rounds_where_the_models_own_does():
    """silu first, then the product. Rounding only once would change every fourth float16."""
    case = inputs(64, 577, torch.float16)
    got, want = run(swiglu, *case), run(reference, *case)
    # dg: torch divides in another order.
    for name, limit in {"y": 2e-3, "up.grad": 2e-3, "gate.grad": 0.1}.items():
        share = (got[name] != want[name]).float().mean().item()
        assert share < limit, f"{share:.1%} of {name} differ from torch's"


# e^1e4 is infinite, as it should be
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_large_gates_stay_finite():
    gate = torch.tensor([[-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4]], device=DEVICE)
    case = gate, torch.full_like(gate, 3), torch.ones_like(gate)
    got = run(swiglu, *case)
    for name, tensor in got.items():
        assert tensor.isfinite().all(), name
    close(got, oracle(*case), FLOAT32)


def test_strides_and_leading_axes():
    case = inputs(12, 70)
    want = oracle(*case)
    both = torch.cat(case, 1)  # as one projection would leave gate and up
    close(run(swiglu, both[:, :70], both[:, 70:140], both[:, 140:]), want, FLOAT32)
    close(run(swiglu, *(x.T.contiguous().T for x in case)), want, FLOAT32)
    apart = torch.stack([case[1]] * 2, -1)[..., 0]
    close(run(swiglu, case[0], apart, case[2]), want, FLOAT32)

    got = run(swiglu, *(x.view(3, 4, 70) for x in case))
    close({name: tensor.reshape(12, 70) for name, tensor in got.items()}, want, FLOAT32)
    same_bits({"y": swiglu(case[0][0], case[1][0])}, {"y": got["y"].detach()[0, 0]})


def test_an_expanded_gradient():
    """The dy of a plain sum is one number, expanded."""
    gate, up, _ = inputs(12, 70)
    gate.requires_grad_()
    up.requires_grad_()
    swiglu(gate, up).sum().backward()
    want = run(swiglu, gate, up, torch.ones_like(up))
    same_bits({"gate.grad": gate.grad, "up.grad": up.grad}, want)


def test_only_the_gradients_that_are_wanted_and_no_saved_tensor_beside_the_inputs():
    gate, up, dy = inputs(7, 64)
    want = oracle(gate, up, dy)
    gate.requires_grad_()
    (got,) = torch.autograd.grad(swiglu(gate, up), gate, dy)
    close({"gate.grad": got}, {"gate.grad": want["gate.grad"]}, FLOAT32)
    up.requires_grad_()
    saved = []

    def note(x):
        saved.append(x.data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        swiglu(gate, up)
    assert saved == [gate.data_ptr(), up.data_ptr()]
    assert not swiglu(gate.detach(), up.detach()).requires_grad


def test_repeats_are_bitwise_equal():
    case = inputs(13, 577)
    same_bits(run(swiglu, *case), run(swiglu, *case))


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
    arguments = {"gate": torch.zeros(3, 4), "up": torch.zeros(3, 4)} | change
    for name, x in arguments.items():
        if isinstance(x, torch.Tensor) and x.device.type == "cpu":
            arguments[name] = x.to(DEVICE)
    with pytest.raises(ValueError, match=f"swiglu: {message}"):
        swiglu(**arguments)


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

    def gradients(loss):
        return dict(zip(("gate.grad", "up.grad"), torch.autograd.grad(loss(gate, up), (gate, up))))

    same_bits(gradients(loss), gradients(torch.compile(loss, fullgraph=True, backend="aot_eager")))
    torch.library.opcheck(
        torch.ops.ecliptica.swiglu.default,
        (gate[:, :33].detach().requires_grad_(), up[:, 31:].detach().requires_grad_()),
    )
    torch.library.opcheck(
        torch.ops.ecliptica.swiglu_backward.default,
        (dy, gate.detach(), up.detach()),
        test_utils=("test_schema", "test_faketensor"),
    )
