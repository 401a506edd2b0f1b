"""linear_logp_kl on inputs that few callers have: every backend does the same."""

import pytest
import torch

from kernels import linear_logp_kl
from tests.kernels.head_cases import (
    DEVICE,
    SHAPES,
    SMALL,
    both_heads,
    case,
    close,
    every_backend,
    oracle,
    relative,
    run,
    same_bits,
)


@every_backend
@both_heads
def test_index_vectors_with_strides(train_head, backend):
    """Views of a table of indices, and one segment expanded over all rows."""
    floats, (rows, targets, segments, S), up = case(*SMALL)
    table = torch.stack([rows, targets, segments], 1)
    one = torch.ones(1, dtype=torch.int64, device=DEVICE)
    strided = (table[:, 0], table[:, 1], one.expand(len(rows)))
    assert not any(x.is_contiguous() for x in strided)
    plain = [x.contiguous() for x in strided]
    got = run(floats, (*strided, S), up, train_head, backend)
    close(got, oracle(floats, (*plain, S), up, train_head))


@every_backend
def test_mixed_dtypes(backend):
    floats, index, up = case(*SMALL)
    mixed = [floats[0], floats[1].bfloat16(), floats[2].half(), floats[3]]
    got = run(mixed, index, up, True, backend)
    assert got["hidden.grad"].dtype == torch.float32
    assert got["weight.grad"].dtype == torch.bfloat16
    close(got, oracle(mixed, index, up, True), gradient=1e-2)


@every_backend
@both_heads
def test_a_second_derivative_is_refused_not_wrong(train_head, backend):
    floats, index, _ = case(*SMALL)
    hidden = floats[0].requires_grad_()
    weight = floats[1].requires_grad_(train_head)
    out = linear_logp_kl(hidden, weight, *index, *floats[2:], backend=backend)
    message = "create_graph: expected False, since it is differentiable once, got True"
    with pytest.raises(ValueError, match=f"linear_logp_kl: {message}"):
        torch.autograd.grad(out.kl_S.sum(), hidden, create_graph=True)


@both_heads
def test_compile_takes_it_whole(train_head):
    """No graph break, and the operators' declared shapes are the real ones."""
    floats, index, up = case(*SHAPES["plain"])
    hidden = floats[0].requires_grad_()
    weight = floats[1].requires_grad_(train_head)
    wanted = {"hidden": hidden, "weight": weight} if train_head else {"hidden": hidden}

    def loss(hidden, weight):
        out = linear_logp_kl(hidden * 2, weight, *index, *floats[2:])
        return (out.logp_S * up[0]).sum() + (out.kl_S * up[1]).sum()

    def gradients(loss):
        return dict(zip(wanted, torch.autograd.grad(loss(hidden, weight), [*wanted.values()])))

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    same_bits(gradients(loss), gradients(compiled))
    arguments = (hidden, weight, *index, *floats[2:], "torch", 1 << 20, 0 if train_head else 2)
    operator = torch.ops.ecliptica.linear_logp_kl.default
    torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


def test_compiled_once_for_every_number_of_rows_and_segments():
    (hidden, weight, ref_hidden, _), _, _ = case(12, 1, 1, 16, 70, 16)
    compilations = []

    def backend(graph, _):
        compilations.append(graph)
        return graph.forward

    def kl(rows, count, *tensors, **options):
        segments = rows % count
        hidden, weight, ref_hidden = tensors
        out = linear_logp_kl(hidden, weight, rows, rows, segments, count, ref_hidden, **options)
        return out.kl_S

    compiled = torch.compile(kl, fullgraph=True, dynamic=True, backend=backend)
    for R, count in ((5, 2), (9, 3), (11, 4)):
        rows = torch.arange(R, device=DEVICE)
        wide = [x.double() for x in (hidden, weight, ref_hidden)]
        want = kl(rows, count, *wide, backend="dense")
        error = relative(compiled(rows, count, hidden, weight, ref_hidden), want)
        assert error < 1e-5, f"{R} rows, {count} segments: kl off by {error:.1e}"
    assert len(compilations) == 1
