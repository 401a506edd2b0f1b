"""linear_logp_kl against float64 autograd on dense logits: every backend, on CUDA where there is one, else Triton's by its interpreter."""

import subprocess
import sys

import pytest
import torch

from kernels import head_chunks, head_triton, linear_logp_kl

BACKENDS = ("torch", "triton-stream", "triton-chunk")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
every_backend = pytest.mark.parametrize("backend", BACKENDS)
both_heads = pytest.mark.parametrize("train_head", [False, True], ids=["frozen", "trained"])
SHAPES = {  # T, R, S, D, V, width of the reference
    "plain": (40, 70, 5, 64, 1000, 64),
    "one token vocabulary": (8, 9, 2, 16, 1, 16),
    "odd vocabulary": (30, 60, 4, 24, 4097, 24),
    "wide reference": (20, 33, 3, 32, 515, 80),
    "one row": (3, 1, 1, 16, 129, 16),
    "many chunks": (50, 160, 7, 20, 1100, 20),
}
VOCABULARIES = [
    31,
    32,
    33,
    127,
    128,
    129,
    4095,
    4096,
    50257,
    128256,
    129920,
    151936,
]  # the tiles' own sizes and one off; real ones


def case(T, R, S, D, V, D0, dtype=torch.float32, scale=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden, ref_hidden = (scale * torch.randn(T, width, generator=g) for width in (D, D0))
    weight, ref_weight = (0.3 * torch.randn(V, width, generator=g) for width in (D, D0))
    rows, targets = torch.randint(0, T, (R,), generator=g), torch.randint(0, V, (R,), generator=g)
    segments = torch.randint(
        0, max(S - 1, 1), (R,), generator=g
    )  # unsorted; the last segment of several stays empty
    up = torch.randn(2, S, generator=g)
    floats = [x.to(DEVICE, dtype) for x in (hidden, weight, ref_hidden, ref_weight)]
    return floats, (rows.to(DEVICE), targets.to(DEVICE), segments.to(DEVICE), S), up.to(DEVICE)


def run(floats, index, up, train_head, backend, **options):
    hidden, weight, ref_hidden, ref_weight = (x.clone() for x in floats)
    hidden.requires_grad_()
    weight.requires_grad_(train_head)
    out = linear_logp_kl(hidden, weight, *index, ref_hidden, ref_weight, backend=backend, **options)
    ((out.logp_S * up[0]).sum() + (out.kl_S * up[1]).sum()).backward()
    return {
        "logp": out.logp_S,
        "kl": out.kl_S,
        "ref_logp": out.ref_logp_S,
        "hidden.grad": hidden.grad,
    } | ({"weight.grad": weight.grad} if train_head else {})


def relative(got, want):
    scale = want.abs().max().clamp(min=1e-12)
    return ((got.double() - want).abs().max() / scale).item()


def close(got, want, value=1e-5, gradient=1e-4):
    for name in want:
        limit = gradient if name.endswith("grad") else value
        if want[name].abs().max() < 1e-9:  # V = 1: everything is 0
            assert got[name].abs().max() < 1e-6, name
        else:
            assert relative(got[name], want[name]) <= limit, name


@every_backend
@both_heads
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_every_backend_equals_dense_float64(shape, train_head, backend):
    floats, index, up = case(*shape)
    want = run([x.double() for x in floats], index, up.double(), train_head, "dense")
    close(run(floats, index, up, train_head, backend), want)


@every_backend
@both_heads
@pytest.mark.parametrize("workspace_bytes", [1, 1 << 15, 1 << 17])
def test_a_small_workspace_changes_nothing(workspace_bytes, train_head, backend):
    floats, index, up = case(12, 20, 3, 24, 150 if workspace_bytes > 1 else 9, 24)
    want = run([x.double() for x in floats], index, up.double(), train_head, "dense")
    close(run(floats, index, up, train_head, backend, workspace_bytes=workspace_bytes), want)


@every_backend
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_sizes_of_the_vocabulary(vocabulary, backend, monkeypatch):
    if (
        vocabulary > 10000 and DEVICE == "cpu"
    ):  # fewer, wider tiles: the interpreter takes milliseconds for each
        tiles = head_triton.stream_tiles(torch.float32, True, False) | {"BV": 1024}
        monkeypatch.setattr(head_triton, "stream_tiles", lambda *_: dict(tiles))
    floats, index, up = case(4, 5, 2, 20, vocabulary, 20)
    index[1][:2] = torch.tensor([0, vocabulary - 1])  # the first and the last token
    for train_head in (False, True) if vocabulary < 10000 else (True,):
        want = run([x.double() for x in floats], index, up.double(), train_head, "dense")
        close(run(floats, index, up, train_head, backend), want)


@every_backend
@pytest.mark.parametrize("widths", [(576, 576), (2304, 576)], ids=str)
def test_real_widths(widths, backend):
    floats, index, up = case(20, 40, 3, widths[0], 300, widths[1], scale=0.3)
    want = run([x.double() for x in floats], index, up.double(), True, "dense")
    close(run(floats, index, up, True, backend), want)


@every_backend
@both_heads
def test_a_shared_head(train_head, backend):
    (hidden, weight, ref_hidden, _), index, up = case(*SHAPES["many chunks"])

    def both(dtype, backend):
        h, w = hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(train_head)
        out = linear_logp_kl(h, w, *index, ref_hidden.to(dtype), backend=backend)
        grads = torch.autograd.grad(
            (out.logp_S * up[0]).sum() + (out.kl_S * up[1]).sum(), (h, w) if train_head else (h,)
        )
        return {"logp": out.logp_S, "kl": out.kl_S} | dict(
            zip(("hidden.grad", "weight.grad"), grads, strict=False)
        )

    close(both(torch.float32, backend), both(torch.float64, "dense"))


@every_backend
def test_a_trained_head_over_frozen_hidden_states(backend):
    floats, index, up = case(*SHAPES["plain"])

    def grad(floats, backend):
        weight = floats[1].clone().requires_grad_()
        out = linear_logp_kl(floats[0], weight, *index, *floats[2:], backend=backend)
        return torch.autograd.grad((out.logp_S * up[0]).sum() + (out.kl_S * up[1]).sum(), weight)[0]

    assert relative(grad(floats, backend), grad([x.double() for x in floats], "dense")) < 1e-5


@every_backend
@both_heads
def test_one_output_alone_has_its_own_gradient(train_head, backend):
    floats, index, up = case(*SHAPES["wide reference"])
    for only in (0, 1):
        alone = up * torch.eye(2, device=DEVICE)[only][:, None]
        want = run([x.double() for x in floats], index, alone.double(), train_head, "dense")
        close(run(floats, index, alone, train_head, backend), want)
        hidden = floats[0].clone().requires_grad_()
        out = linear_logp_kl(hidden, floats[1], *index, *floats[2:], backend=backend)
        (got,) = torch.autograd.grad(
            ((out.logp_S, out.kl_S)[only] * up[only]).sum(), hidden
        )  # the other output is not used at all
        assert relative(got, want["hidden.grad"]) < 1e-5


@every_backend
@both_heads
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_inputs_give_float32_statistics(dtype, train_head, backend):
    floats, index, up = case(*SHAPES["many chunks"], dtype=dtype)
    want = run([x.double() for x in floats], index, up.double(), train_head, "dense")
    close(run(floats, index, up, train_head, backend), want, value=1e-5, gradient=1e-2)


def test_bfloat16_logits_keep_sixteen_bits():
    """The rounded product and what its rounding lost: 256 times finer than bfloat16 alone."""
    (hidden, weight, _, _), _, _ = case(64, 1, 1, 576, 4096, 576, dtype=torch.bfloat16)
    out, half = (
        torch.empty(64, 4096, device=DEVICE),
        torch.empty(64, 4096, device=DEVICE, dtype=torch.bfloat16),
    )
    head_chunks.logits(hidden, weight, out, half)
    want = hidden.double() @ weight.double().T
    assert ((out - want).abs() <= want.abs() * 2.0**-16 + 1e-5).all()


def test_dense_is_the_textbook_formula():
    floats, (rows, targets, segments, S), _ = case(*SHAPES["plain"])
    hidden, weight, ref_hidden, ref_weight = (x.double() for x in floats)
    got = linear_logp_kl(
        hidden, weight, rows, targets, segments, S, ref_hidden, ref_weight, backend="dense"
    )
    for s in range(S):
        logp = kl = 0.0
        for row, target in zip(rows[segments == s], targets[segments == s]):
            p, q = (
                torch.softmax(weight @ hidden[row], 0),
                torch.softmax(ref_weight @ ref_hidden[row], 0),
            )
            logp, kl = logp + p[target].log(), kl + (p * (p / q).log()).sum()
        assert abs(got.logp_S[s] - logp) < 1e-9 and abs(got.kl_S[s] - kl) < 1e-9
        assert got.tokens_S[s] == (segments == s).sum()


@every_backend
@both_heads
def test_huge_logits_stay_finite(train_head, backend):
    floats, index, up = case(20, 30, 3, 16, 700, 16, scale=1e4)
    got = run(floats, index, up, train_head, backend)
    assert all(value.isfinite().all() for value in got.values())
    close(
        got,
        run([x.double() for x in floats], index, up.double(), train_head, "dense"),
        value=1e-5,
        gradient=2e-2,
    )


@every_backend
@both_heads
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_model_gives_exactly_zero_kl_and_gradient(dtype, train_head, backend):
    (hidden, weight, _, _), index, _ = case(
        *SHAPES["plain" if backend == "triton-stream" else "many chunks"], dtype=dtype
    )  # stream has no chunks
    hidden.requires_grad_()
    weight.requires_grad_(train_head)
    out = linear_logp_kl(hidden, weight, *index, hidden, backend=backend)
    out.kl_S.sum().backward()
    assert (out.kl_S == 0).all() and torch.equal(out.logp_S, out.ref_logp_S)
    assert (hidden.grad == 0).all() and (not train_head or (weight.grad == 0).all())


@every_backend
def test_repeats_are_bitwise_equal(backend):
    floats, index, up = case(*SHAPES["wide reference"])
    for train_head in (False, True):
        first, second = (run(floats, index, up, train_head, backend) for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)


@every_backend
def test_no_rows_gives_zeros_attached_to_the_graph(backend):
    for train_head in (False, True):
        floats, _, _ = case(*SHAPES["plain"])
        none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
        got = run(
            floats, (none, none, none, 3), torch.ones(2, 3, device=DEVICE), train_head, backend
        )
        assert (
            got["logp"].requires_grad
            and not got["logp"].any()
            and not got["kl"].any()
            and not got["hidden.grad"].any()
        )


@every_backend
def test_without_a_reference_there_is_no_kl(backend):
    (hidden, weight, _, _), index, up = case(*SHAPES["plain"])
    hidden.requires_grad_()
    out = linear_logp_kl(hidden, weight, *index, backend=backend)
    assert out.kl_S is None and out.ref_logp_S is None
    want = linear_logp_kl(hidden.double(), weight.double(), *index, backend="dense")
    assert relative(out.logp_S, want.logp_S) < 1e-6
    (got_grad,) = torch.autograd.grad((out.logp_S * up[0]).sum(), hidden)
    (want_grad,) = torch.autograd.grad((want.logp_S * up[0].double()).sum(), hidden)
    assert relative(got_grad, want_grad) < 1e-5


@every_backend
def test_frozen_inputs_and_non_contiguous_ones(backend):
    (hidden, weight, ref_hidden, _), index, _ = case(*SHAPES["plain"])
    strided = torch.stack([hidden, hidden], -1)[..., 0]
    assert not strided.is_contiguous()
    out = linear_logp_kl(strided, weight.T.contiguous().T, *index, ref_hidden, backend=backend)
    want = linear_logp_kl(hidden, weight, *index, ref_hidden, backend="dense")
    assert not out.logp_S.requires_grad and relative(out.kl_S, want.kl_S.double()) < 1e-5


def test_splitting_a_segment_keeps_its_sum_and_kl_is_not_negative():
    floats, (rows, targets, _, _), _ = case(*SHAPES["plain"])
    hidden, weight, ref_hidden, ref_weight = floats
    each = linear_logp_kl(
        hidden, weight, rows, targets, torch.arange(70, device=DEVICE), 70, ref_hidden, ref_weight
    )
    whole = linear_logp_kl(
        hidden,
        weight,
        rows,
        targets,
        torch.zeros(70, dtype=torch.int64, device=DEVICE),
        1,
        ref_hidden,
        ref_weight,
    )
    assert (
        relative(each.kl_S.sum(), whole.kl_S[0].double()) < 1e-6
        and relative(each.logp_S.sum(), whole.logp_S[0].double()) < 1e-6
    )
    assert each.kl_S.min() >= -1e-5 and each.logp_S.max() <= 1e-5


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"targets_R": torch.tensor([0, 1000])},
            r"targets_R: expected values in \[0, 1000\), got 1000",
        ),
        ({"rows_R": torch.tensor([0, -1])}, r"rows_R: expected values in \[0, 40\), got -1"),
        ({"segments_R": torch.tensor([0, 2])}, r"segments_R: expected values in \[0, 2\), got 2"),
        ({"segments_R": torch.tensor([0])}, "segments_R: expected 2 entries"),
        ({"targets_R": torch.tensor([0.0, 1.0])}, "targets_R: expected a vector of int64"),
        ({"weight_VD": torch.zeros(1000, 63)}, "weight_VD: expected width 64"),
        ({"ref_hidden_TD": torch.zeros(39, 64)}, "ref_hidden_TD: expected 40 rows"),
        ({"ref_hidden_TD": torch.zeros(40, 32)}, r"ref_weight_VD: expected shape \[1000, 32\]"),
        (
            {"hidden_TD": torch.zeros(40, 64, dtype=torch.float64)},
            "hidden_TD: expected float32, bfloat16 or float16",
        ),
        (
            {"backend": "cuda"},
            "backend: expected one of auto, dense, torch, triton, triton-stream, triton-chunk, got 'cuda'",
        ),
        ({"num_segments": -1}, "num_segments: expected an int >= 0"),
    ],
)
def test_errors_name_the_argument(change, message):
    arguments = {
        "hidden_TD": torch.zeros(40, 64),
        "weight_VD": torch.zeros(1000, 64),
        "rows_R": torch.tensor([0, 1]),
        "targets_R": torch.tensor([0, 1]),
        "segments_R": torch.tensor([0, 1]),
        "num_segments": 2,
    }
    with pytest.raises(ValueError, match=message):
        linear_logp_kl(**(arguments | change))


class Sharded(torch.Tensor):
    """What a DTensor looks like from outside."""

    device_mesh = "mesh"


def test_a_sharded_weight_is_refused():
    weight = torch.zeros(1000, 64).as_subclass(Sharded)
    one = torch.tensor([0])
    with pytest.raises(
        ValueError,
        match=r"weight_VD: expected a plain tensor \(gather a sharded one first: full_tensor\(\)\)",
    ):
        linear_logp_kl(torch.zeros(40, 64), weight, one, one, one, 1)


@both_heads
def test_compile_takes_it_whole(train_head):
    """No graph break, and the operators' declared shapes are the real ones."""
    floats, index, up = case(*SHAPES["plain"])
    hidden, weight = floats[0].requires_grad_(), floats[1].requires_grad_(train_head)

    def loss(hidden, weight):
        out = linear_logp_kl(hidden * 2, weight, *index, *floats[2:])
        return (out.logp_S * up[0]).sum() + (out.kl_S * up[1]).sum()

    wanted = [hidden, weight] if train_head else [hidden]
    eager = torch.autograd.grad(loss(hidden, weight), wanted)
    compiled = torch.autograd.grad(
        torch.compile(loss, fullgraph=True, backend="aot_eager")(hidden, weight), wanted
    )
    assert all(torch.equal(a, b) for a, b in zip(eager, compiled, strict=True))
    arguments = (hidden, weight, *index, *floats[2:], "torch", 1 << 20, not train_head)
    torch.library.opcheck(
        torch.ops.ecliptica.linear_logp_kl.default,
        arguments,
        test_utils=("test_schema", "test_faketensor"),
    )


PEAK = """
import torch
from kernels import linear_logp_kl
R, D, V, train = 2048, 576, 49152, {train}
hidden, ref = torch.randn(R, D, requires_grad=True), torch.randn(R, D)
weight = torch.randn(V, D).mul_(0.05).requires_grad_(train)
rows = torch.arange(R)
peak = lambda: next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))  # this process's own
torch.mm(hidden.detach()[:64], weight.detach()[:64].T)  # the library's own buffers
if train: weight.grad = torch.ones_like(weight)
before = peak()
out = linear_logp_kl(hidden, weight, rows, rows, rows // 64, 32, ref, workspace_bytes=64 << 20)
(out.logp_S.sum() + out.kl_S.sum()).backward()
print(peak() - before)
"""


@pytest.mark.parametrize("train", [False, True], ids=["frozen", "trained"])
def test_peak_extra_memory_is_the_workspace_and_outputs_of_size_R_D(train):
    done = subprocess.run(
        [sys.executable, "-c", PEAK.format(train=train)], capture_output=True, text=True, check=True
    )
    outputs = (
        6 * 2048 * 576 * 4 + train * 49152 * 576 * 4
    )  # J, K, gradients, gathered rows; dW before it joins .grad
    assert int(done.stdout) <= (64 << 20) + outputs + (32 << 20), f"{int(done.stdout) >> 20} MiB"
