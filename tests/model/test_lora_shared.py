"""LoRA layers of one input against float64 autograd; what a checkpoint computes again."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from model import llama
from model.attention import packed_attention
from model.llama import Linear, project
from model.lora import adapters_off, add_lora, lora_layers
from model.lora_layer import LoRALinear
from model.weights import load_model

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
T, D = 11, 24
RANK = 5


def layers_of(dtype, with_bias):
    """Three layers of unequal outputs and ranks, the second without an update."""
    torch.manual_seed(0)
    layers = []
    for outputs, rank in ((32, 3), (8, None), (16, 2)):
        layer = Linear(D, outputs, bias=with_bias).to(dtype)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter)
        layer.requires_grad_(False)
        if rank:
            layer = LoRALinear(layer, rank, alpha=2 * rank)
            torch.nn.init.normal_(layer.lora_A)
            torch.nn.init.normal_(layer.lora_B)
        layers.append(layer)
    return layers


def by_autograd(layers, x, upstream):
    """Results and gradients in float64, each layer by itself."""
    x = x.detach().double().requires_grad_()
    leaves, results = {"x": x}, []
    for number, layer in enumerate(layers):
        base = getattr(layer, "base", layer)
        bias = None if base.bias is None else base.bias.double()
        y = F.linear(x, base.weight.double(), bias)
        if base is not layer:
            A, B = (p.detach().double().requires_grad_() for p in (layer.lora_A, layer.lora_B))
            leaves |= {f"A {number}": A, f"B {number}": B}
            y = y + 2 * x @ A.T @ B.T
        results.append(y)
    loss = sum((y * up.double()).sum() for y, up in zip(results, upstream))
    grads = torch.autograd.grad(loss, list(leaves.values()))
    values = {f"y {number}": y.detach() for number, y in enumerate(results)}
    return values | {f"gradient of {name}": grad for name, grad in zip(leaves, grads)}


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype, limit", [(torch.float64, 1e-6), (torch.bfloat16, 2e-2)], ids=str)
def test_layers_of_one_input_equal_float64(dtype, limit, with_bias, monkeypatch):
    calls = []
    shared = llama.shared_products
    monkeypatch.setattr(llama, "shared_products", lambda *a: calls.append(len(a[1])) or shared(*a))
    layers = layers_of(dtype, with_bias)
    x = torch.randn(T, D).to(dtype).requires_grad_()
    results = project(layers, x)
    upstream = [torch.randn(y.shape).to(dtype) for y in results]
    loss = sum((y * up).sum() for y, up in zip(results, upstream))
    leaves = {"x": x}
    for number in (0, 2):
        leaves |= {f"A {number}": layers[number].lora_A, f"B {number}": layers[number].lora_B}
    grads = torch.autograd.grad(loss, list(leaves.values()))
    got = {f"y {number}": y.detach() for number, y in enumerate(results)}
    got |= {f"gradient of {name}": grad for name, grad in zip(leaves, grads)}
    for name, want in by_autograd(layers, x, upstream).items():
        distance = (got[name].double() - want).norm() / want.norm()
        assert distance < limit, f"{name}: {distance:.1e}"
    assert calls == [2], "the two updates were not computed together"


def test_an_update_of_nothing_leaves_the_base_bit_for_bit(tiny):
    """B = 0: policy and reference are one function, so that the KL is exactly 0 at the start."""
    model = add_lora(load_model(tiny, torch.bfloat16), 4, 8, SEVEN)
    with_it = run(model)
    with adapters_off(model):
        assert torch.equal(run(model), with_it)


def run(model, tokens=40):
    """Hidden states of one document."""
    ids = torch.arange(5, 5 + tokens)
    nothing = torch.zeros_like(ids)
    attend = packed_attention(nothing, nothing)
    return model.forward_hidden(ids, torch.arange(tokens), attend)


class Products(TorchDispatchMode):
    """Counts the products with a weight of the base that are really computed: what a checkpoint has
    kept does not get here. A product with a factor has an axis of at most three ranks."""

    def __init__(self):
        super().__init__()
        self.wide = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            x, y = args[-2:]
            self.wide += min(*x.shape, *y.shape) > 3 * RANK
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), SEVEN], ids=["two", "seven"])
def test_what_is_computed_again_in_the_backward(targets, tiny, monkeypatch):
    """selective: no product with a weight of the base, and no attention; full: all of it."""
    attended = []
    attention = packed_attention(*(torch.zeros(40, dtype=torch.int64),) * 2)

    def counted(document_T, branch_T):
        return lambda *of_heads: attended.append(1) or attention(*of_heads)

    monkeypatch.setitem(globals(), "packed_attention", counted)
    found, gradients = {}, {}
    for recompute in llama.RECOMPUTE:
        model = add_lora(load_model(tiny, torch.bfloat16), RANK, 10, targets)
        torch.manual_seed(0)
        for layer in lora_layers(model).values():
            torch.nn.init.normal_(layer.lora_B)
        for block in model.model.layers:
            block.recompute = recompute
        attended.clear()
        with Products() as products:
            loss = run(model).float().square().mean()
            before = (products.wide, len(attended))
            loss.backward()
        found[recompute] = (products.wide - before[0], len(attended) - before[1])
        gradients[recompute] = [p.grad for p in model.parameters() if p.requires_grad]
        assert before == (2 * 7, 2), recompute

    layers = 2
    # Of the backward itself: dx through every layer above the first adapter of the model.
    wide, _ = found["off"]
    assert found["off"] == (wide, 0)
    assert found["selective"] == (wide, 0)
    assert found["full"][0] >= wide + 6 * layers and found["full"][1] == layers
    for recompute in ("selective", "full"):
        for got, want in zip(gradients[recompute], gradients["off"]):
            assert torch.equal(got, want), recompute
