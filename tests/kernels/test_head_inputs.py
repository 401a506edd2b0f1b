"""linear_logp_kl on inputs that few callers have: every backend does the same, or one line says what is wrong."""

import pytest
import torch

from kernels import linear_logp_kl
from tests.kernels.test_head import BACKENDS, DEVICE, case, close, relative, run

every_backend = pytest.mark.parametrize("backend", BACKENDS)
both_heads = pytest.mark.parametrize("train_head", [False, True], ids=["frozen", "trained"])


@every_backend
@both_heads
def test_index_vectors_with_strides(train_head, backend):
    """Views of a table of indices, and one segment expanded over all rows."""
    floats, (rows, targets, segments, S), up = case(6, 9, 3, 16, 70, 16)
    table = torch.stack([rows, targets, segments], 1)
    strided = table[:, 0], table[:, 1], torch.ones(1, dtype=torch.int64, device=DEVICE).expand(9), S
    assert not any(x.is_contiguous() for x in strided[:3])
    want = run(
        [x.double() for x in floats],
        [x.contiguous() for x in strided[:3]] + [S],
        up.double(),
        train_head,
        "dense",
    )
    close(run(floats, strided, up, train_head, backend), want)


@every_backend
@both_heads
def test_an_equal_model_in_memory_of_its_own_has_no_kl(train_head, backend):
    (hidden, weight, _, _), index, _ = case(6, 9, 3, 16, 70, 16)
    hidden, copy = hidden.requires_grad_(), weight.clone()
    weight.requires_grad_(train_head)
    out = linear_logp_kl(hidden, weight, *index, hidden.detach().clone(), copy, backend=backend)
    out.kl_S.sum().backward()
    assert not out.kl_S.any() and torch.equal(out.logp_S, out.ref_logp_S) and not hidden.grad.any()
    assert not train_head or not weight.grad.any()


@every_backend
def test_mixed_dtypes(backend):
    floats, index, up = case(6, 9, 3, 16, 70, 16)
    mixed = [floats[0], floats[1].bfloat16(), floats[2].half(), floats[3]]
    want = run([x.double() for x in mixed], index, up.double(), True, "dense")
    got = run(mixed, index, up, True, backend)
    assert got["hidden.grad"].dtype == torch.float32 and got["weight.grad"].dtype == torch.bfloat16
    close(got, want, gradient=1e-2)


@every_backend
def test_no_segments_and_no_hidden_rows(backend):
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    hidden, weight = (
        torch.zeros(0, 8, device=DEVICE, requires_grad=True),
        torch.zeros(11, 8, device=DEVICE, requires_grad=True),
    )
    out = linear_logp_kl(hidden, weight, none, none, none, 0, hidden.detach(), backend=backend)
    (out.logp_S.sum() + out.kl_S.sum()).backward()
    assert (
        out.logp_S.shape == out.kl_S.shape == out.tokens_S.shape == (0,)
        and hidden.grad.shape == (0, 8)
        and not weight.grad.any()
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_TD": None}, "hidden_TD: expected a tensor, got NoneType"),
        ({"weight_VD": [[0.0]]}, "weight_VD: expected a tensor, got list"),
        ({"rows_R": [0, 1]}, "rows_R: expected a tensor, got list"),
        (
            {"weight_VD": torch.zeros(0, 8)},
            r"weight_VD: expected at least one row, got shape \[0, 8\]",
        ),
        (
            {"hidden_TD": torch.zeros(1, 4, 8)},
            r"hidden_TD: expected a matrix, got shape \[1, 4, 8\]",
        ),
        ({"weight_VD": torch.zeros(9, 8, device="meta")}, "weight_VD: expected device"),
        (
            {"ref_weight_VD": torch.zeros(9, 8)},
            "ref_weight_VD: expected None without ref_hidden_TD, got a tensor",
        ),
        ({"num_segments": 2.0}, "num_segments: expected an int >= 0, got 2.0"),
        ({"num_segments": 0}, r"segments_R: expected values in \[0, 0\), got 0"),
        ({"workspace_bytes": -1}, "workspace_bytes: expected an int >= 0, got -1"),
        ({"workspace_bytes": "1M"}, "workspace_bytes: expected an int >= 0, got 1M"),
        (
            {"backend": None},
            "backend: expected one of auto, dense, torch, triton, triton-stream, triton-chunk, got None",
        ),
    ],
)
@pytest.mark.parametrize("backend", ["dense", "torch"])
def test_errors_name_the_argument(change, message, backend):
    arguments = {
        "hidden_TD": torch.zeros(4, 8),
        "weight_VD": torch.zeros(9, 8),
        "rows_R": torch.tensor([0, 1]),
        "backend": backend,
        "targets_R": torch.tensor([0, 1]),
        "segments_R": torch.tensor([0, 1]),
        "num_segments": 2,
    }
    with pytest.raises(ValueError, match=f"linear_logp_kl: {message}"):
        linear_logp_kl(**(arguments | change))


def test_a_dtensor_is_refused():
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    one = torch.tensor([0, 1])
    arguments = {
        "hidden_TD": torch.zeros(4, 8),
        "weight_VD": torch.zeros(9, 8),
        "rows_R": one,
        "targets_R": one,
        "segments_R": one,
        "num_segments": 2,
        "ref_hidden_TD": torch.zeros(4, 8),
    }
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        for name in ("hidden_TD", "weight_VD", "rows_R", "ref_hidden_TD"):
            sharded = distribute_tensor(arguments[name], init_device_mesh("cpu", (1,)), [Shard(0)])
            with pytest.raises(
                ValueError,
                match=rf"{name}: expected a plain tensor \(gather a sharded one first: full_tensor\(\)\), got DTensor",
            ):
                linear_logp_kl(**(arguments | {name: sharded}))
    finally:
        torch.distributed.destroy_process_group()


@every_backend
@both_heads
def test_a_second_derivative_is_refused_not_wrong(train_head, backend):
    floats, index, _ = case(6, 9, 3, 16, 70, 16)
    hidden, weight = floats[0].requires_grad_(), floats[1].requires_grad_(train_head)
    out = linear_logp_kl(hidden, weight, *index, *floats[2:], backend=backend)
    with pytest.raises(
        ValueError,
        match="linear_logp_kl: create_graph: expected False, since it is differentiable once, got True",
    ):
        torch.autograd.grad(out.kl_S.sum(), hidden, create_graph=True)


def test_compiled_once_for_every_number_of_rows_and_segments():
    (hidden, weight, ref_hidden, _), _, _ = case(12, 1, 1, 16, 70, 16)
    compilations = []

    def backend(graph, _):
        compilations.append(graph)
        return graph.forward

    @torch.compile(fullgraph=True, dynamic=True, backend=backend)
    def kl(rows, count):
        return linear_logp_kl(hidden, weight, rows, rows, rows % count, count, ref_hidden).kl_S

    for rows, count in ((5, 2), (9, 3), (11, 4)):
        rows = torch.arange(rows, device=DEVICE)
        want = linear_logp_kl(
            hidden.double(),
            weight.double(),
            rows,
            rows,
            rows % count,
            count,
            ref_hidden.double(),
            backend="dense",
        ).kl_S
        assert relative(kl(rows, count), want) < 1e-5
    assert len(compilations) == 1
