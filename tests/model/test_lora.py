"""LoRA against peft: outputs, files both ways; adapters off and merged against the base."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.errors import InputError
from model.llama import Linear
from model.lora import (
    LoRALinear,
    adapters_off,
    add_lora,
    load_adapter,
    lora_layers,
    merge_lora,
    save_adapter,
)
from model.weights import load_model
from tests.model.test_llama import logits

IDS = list(range(100, 160))
TARGETS = ("q_proj", "v_proj", "down_proj")


def adapted(tiny, seed=3):
    model = add_lora(load_model(tiny), 4, 16, TARGETS, seed=seed)
    g = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        layer.lora_B.data.normal_(generator=g, std=0.05)
    return model


@pytest.mark.peer
def test_peft_loads_our_adapter_and_agrees(tiny, tmp_path):
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    model = adapted(tiny)
    save_adapter(model, tmp_path, tiny)
    peer = PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(tiny, dtype=torch.float32), tmp_path
    ).eval()
    with torch.no_grad():
        want = peer(torch.tensor([IDS])).logits[0]
    base = logits(load_model(tiny), IDS)
    assert (logits(model, IDS) - want).abs().max() < 1e-4 and (base - want).abs().max() > 0.1


@pytest.mark.peer
def test_we_load_peft_s_adapter_and_agree(tiny, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(
        r=3,
        lora_alpha=6,
        target_modules=["k_proj", "up_proj"],
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    peer = get_peft_model(
        LlamaForCausalLM.from_pretrained(tiny, dtype=torch.float32), config
    ).eval()
    peer.save_pretrained(tmp_path)
    with torch.no_grad():
        want = peer(torch.tensor([IDS])).logits[0]
    assert (logits(load_adapter(load_model(tiny), tmp_path), IDS) - want).abs().max() < 1e-4


def test_step_zero_equals_the_base_bit_for_bit_and_so_do_adapters_off(tiny):
    base = logits(load_model(tiny), IDS)
    assert torch.equal(logits(add_lora(load_model(tiny), 8, 16, TARGETS), IDS), base)
    model = adapted(tiny)
    with adapters_off(model):
        assert torch.equal(logits(model, IDS), base)
    assert not torch.equal(logits(model, IDS), base)


def test_merging_keeps_the_function(tiny):
    model = adapted(tiny)
    want = logits(model, IDS)
    assert (logits(merge_lora(model), IDS) - want).abs().max() < 1e-4 and not lora_layers(model)


def test_only_adapters_are_trained_and_the_seed_draws_them(tiny):
    model = add_lora(load_model(tiny), 4, 8, TARGETS, seed=1)
    assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {
        "lora_A",
        "lora_B",
    }
    a = [layer.lora_A for layer in lora_layers(model).values()]
    assert all(
        torch.equal(x, y.lora_A)
        for x, y in zip(a, lora_layers(add_lora(load_model(tiny), 4, 8, TARGETS, seed=1)).values())
    )
    assert abs(a[0].std() * 48**0.5 - 3**-0.5) < 0.05  # uniform in +-1/sqrt(inputs)


def test_what_does_not_fit_is_named(tiny, tmp_path):
    with pytest.raises(InputError, match="no layer is named qproj; this model has .*q_proj"):
        add_lora(load_model(tiny), 4, 8, ("qproj",))
    save_adapter(adapted(tiny), tmp_path, tiny)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    removed = tensors.pop("base_model.model.model.layers.1.mlp.down_proj.lora_A.weight")
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError, match="layers.1.mlp.down_proj.lora_A.weight is missing"):
        load_adapter(load_model(tiny), tmp_path)
    tensors["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"] = removed[
        :, :-1
    ].contiguous()
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"has shape \[4, 95\]; this model needs \[4, 96\]"):
        load_adapter(load_model(tiny), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(InputError, match="use_dora = True is not supported"):
        load_adapter(load_model(tiny), tmp_path)


@pytest.mark.parametrize("rows", [5, 40], ids=["a product of its own", "merged"])
def test_an_adapted_layer_equals_float64(rows):
    """Few rows go through A and B, many through W + scale B A: one function, the same gradients."""
    torch.manual_seed(0)
    base = Linear(24, 32)
    torch.nn.init.normal_(base.weight)
    base.requires_grad_(False)
    layer = LoRALinear(base, rank=3, alpha=6)
    torch.nn.init.normal_(layer.lora_A)
    torch.nn.init.normal_(layer.lora_B)
    x = torch.randn(rows, 24, requires_grad=True)
    upstream = torch.randn(rows, 32)
    assert layer._merges(x) == (rows == 40)

    y = layer(x)
    got = [y, *torch.autograd.grad(y, [x, layer.lora_A, layer.lora_B], upstream)]
    leaves = [t.detach().double().requires_grad_() for t in (x, layer.lora_A, layer.lora_B)]
    wide = leaves[0] @ base.weight.double().T + 2 * leaves[0] @ leaves[1].T @ leaves[2].T
    want = [wide, *torch.autograd.grad(wide, leaves, upstream.double())]
    for name, ours, oracle in zip(("y", "dx", "dA", "dB"), got, want):
        distance = (ours.double() - oracle).abs().max() / oracle.abs().max()
        assert distance < 1e-6, (name, distance)


def test_what_does_not_merge():
    """Dropout needs A's input apart, half precision would round the update away."""
    layer = LoRALinear(Linear(8, 8), rank=2, alpha=4, dropout=0.5)
    x = torch.zeros(16, 8)
    assert not layer._merges(x) and not layer.eval()._merges(x.bfloat16()) and layer._merges(x)
