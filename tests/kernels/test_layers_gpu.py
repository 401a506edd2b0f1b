"""rms_norm, swiglu and rope where only a GPU tells: rounding to bfloat16, many programs at once,
sizes beyond 32 bits, the model. `-m gpu`."""

import pytest
import torch

from kernels import rms_norm, rope, swiglu
from model import llama
from model.attention import packed_attention
from model.config import LlamaConfig
from tests.kernels.head_cases import same_bits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
# A rounded gradient: half a unit in the last place, twice.
DTYPES = [(torch.float32, 3e-6), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)]
LAYERS = {"rms_norm": rms_norm, "swiglu": swiglu, "rope": rope}
every_layer = pytest.mark.parametrize("module", LAYERS.values(), ids=LAYERS)


def run(function, arguments):
    """y and the gradients of what needs one, by position."""
    wanted = [x for x in arguments if isinstance(x, torch.Tensor) and x.requires_grad]
    y = function(*arguments)
    dy = torch.linspace(-1, 1, y.numel(), device="cuda").view(y.shape).to(y.dtype)
    grads = torch.autograd.grad(y, wanted, dy)
    return {"y": y} | {f"gradient {i}": grad for i, grad in enumerate(grads)}


def arguments(module, dtype, N=3000, width=4096):
    torch.manual_seed(0)
    return module.bench_inputs(N, width, dtype, "cuda", module.WEIGHTS[-1])


def widened(x):
    if not isinstance(x, torch.Tensor):
        return x
    return x.detach().double().requires_grad_(x.requires_grad)


@every_layer
@pytest.mark.parametrize("dtype, limit", DTYPES, ids=str)
def test_value_and_gradients(module, dtype, limit):
    case = arguments(module, dtype)
    got = run(module.fused, case)
    for name, want in run(module.reference, [widened(x) for x in case]).items():
        assert got[name].dtype == dtype, name
        error = ((got[name].double() - want).norm() / want.norm()).item()
        assert error <= limit, f"{name} {list(want.shape)}: off by {error:.1e} of its norm"
    if dtype != torch.float32:  # rounded where torch rounds
        share = (got["y"] != run(module.reference, case)["y"]).float().mean().item()
        assert share < 1e-2, f"{share:.1%} of y differ from torch's"


@every_layer
def test_the_same_bits_every_time(module):
    case = arguments(module, torch.bfloat16, 5000, 577)
    first = run(module.fused, case)
    for _ in range(5):
        same_bits(first, run(module.fused, case))


@every_layer
def test_offsets_beyond_32_bits(module):
    case = arguments(module, torch.bfloat16, 530_000, 4096)
    assert case[0].numel() > 2**31
    y = module.fused(*case)
    (grad,) = torch.autograd.grad(y, case[0], torch.ones_like(y))

    def last_rows(x):
        if isinstance(x, torch.Tensor) and x.dim() >= 2:
            return x.detach()[-9:].requires_grad_()
        return x

    last = [last_rows(x) for x in case]
    want = module.reference(*last)
    (want_grad,) = torch.autograd.grad(want.sum(), last[0])
    torch.testing.assert_close(y[-9:].float(), want.float(), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(grad[-9:].float(), want_grad.float(), rtol=2e-2, atol=1e-2)


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
        one_document = torch.zeros_like(tokens)
        attend = packed_attention(one_document, one_document)
        hidden = model.forward_hidden(tokens, tokens, attend)
        hidden.square().mean().backward()
        named = {"hidden": hidden.detach()}
        return named | {name: p.grad for name, p in model.named_parameters()}

    ours = gradients()
    monkeypatch.setattr(llama, "fused", lambda x: False)
    for name, want in gradients().items():
        error = ((ours[name] - want).norm() / want.norm()).item()
        assert error <= 1e-3, f"{name}: off by {error:.1e} of its norm"


def test_no_host_sync():
    cases = [(module, arguments(module, torch.bfloat16, 512, 576)) for module in LAYERS.values()]
    for module, case in cases:
        run(module.fused, case)  # compile first
    torch.cuda.set_sync_debug_mode("error")
    try:
        for module, case in cases:
            run(module.fused, case)
    finally:
        torch.cuda.set_sync_debug_mode("default")
