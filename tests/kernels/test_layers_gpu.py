"""rms_norm and swiglu where only a GPU tells: rounding to bfloat16, many programs at once, sizes beyond 32 bits, the model. `-m gpu`."""

import pytest
import torch

from kernels import rms_norm, swiglu
from model import llama
from model.attention import packed_attention
from model.config import LlamaConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DTYPES = [
    (torch.float32, 3e-6),
    (torch.bfloat16, 8e-3),
    (torch.float16, 1e-3),
]  # a rounded gradient: half a unit in the last place, twice


def run(function, arguments):
    wanted = [x for x in arguments if isinstance(x, torch.Tensor) and x.requires_grad]
    y = function(*arguments)
    return [
        y,
        *torch.autograd.grad(
            y, wanted, torch.linspace(-1, 1, y.numel(), device="cuda").view(y.shape).to(y.dtype)
        ),
    ]


def arguments(module, dtype, N=3000, width=4096):
    torch.manual_seed(0)
    return module.bench_inputs(N, width, dtype, "cuda", module.WEIGHTS[-1])


@pytest.mark.parametrize("module", [rms_norm, swiglu], ids=["rms_norm", "swiglu"])
@pytest.mark.parametrize("dtype, limit", DTYPES, ids=str)
def test_value_and_gradients(module, dtype, limit):
    case = arguments(module, dtype)
    wide = [
        x.detach().double().requires_grad_(x.requires_grad) if isinstance(x, torch.Tensor) else x
        for x in case
    ]
    got, torchs = run(module.fused, case), run(module.reference, case)
    for mine, other, want in zip(got, torchs, run(module.reference, wide), strict=True):
        assert mine.dtype == dtype and (mine.double() - want).norm() <= limit * want.norm()
    if dtype != torch.float32:  # rounded where torch rounds
        assert (got[0] != torchs[0]).float().mean() < 1e-2


@pytest.mark.parametrize("module", [rms_norm, swiglu], ids=["rms_norm", "swiglu"])
def test_the_same_bits_every_time(module):
    case = arguments(module, torch.bfloat16, 5000, 577)
    first = run(module.fused, case)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, run(module.fused, case), strict=True))


@pytest.mark.parametrize("module", [rms_norm, swiglu], ids=["rms_norm", "swiglu"])
def test_offsets_beyond_32_bits(module):
    case = arguments(module, torch.bfloat16, 530_000, 4096)
    assert case[0].numel() > 2**31
    y = module.fused(*case)
    (grad,) = torch.autograd.grad(y, case[0], torch.ones_like(y))
    last = [
        x.detach()[-9:].requires_grad_() if isinstance(x, torch.Tensor) and x.dim() == 2 else x
        for x in case
    ]
    want = module.reference(*last)
    assert torch.allclose(y[-9:].float(), want.float(), rtol=1e-2, atol=1e-3)
    assert torch.allclose(
        grad[-9:].float(), torch.autograd.grad(want.sum(), last[0])[0].float(), rtol=2e-2, atol=1e-2
    )


@pytest.mark.parametrize("recompute", llama.RECOMPUTE)
def test_an_eager_model_takes_the_kernels_and_stays_itself(recompute, monkeypatch):
    config = LlamaConfig(
        576,
        1536,
        2,
        9,
        3,
        64,
        1000,
        2048,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        rope_scaling=None,
        tie_word_embeddings=True,
    )
    with torch.device("cuda"):
        model = llama.Llama(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(1.0 if p.dim() == 1 else 0.0, 0.05)
    for block in model.model.layers:
        block.recompute = recompute
    tokens = torch.arange(200, device="cuda")

    def gradients():
        model.zero_grad()
        hidden = model.forward_hidden(
            tokens, tokens, packed_attention(torch.zeros_like(tokens), torch.zeros_like(tokens))
        )
        hidden.square().mean().backward()
        return [hidden.detach(), *(p.grad for p in model.parameters())]

    ours = gradients()
    monkeypatch.setattr(llama, "fused", lambda x: False)
    assert all((a - b).norm() <= 1e-3 * b.norm() for a, b in zip(ours, gradients(), strict=True))


def test_no_host_sync():
    cases = [(module, arguments(module, torch.bfloat16, 512, 576)) for module in (rms_norm, swiglu)]
    for module, case in cases:
        run(module.fused, case)  # compile first
    torch.cuda.set_sync_debug_mode("error")
    try:
        for module, case in cases:
            run(module.fused, case)
    finally:
        torch.cuda.set_sync_debug_mode("default")
