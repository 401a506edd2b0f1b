"""Adapters in the wild: peft's numbers, or one line that names what is not supported."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.errors import InputError
from model.lora import add_lora, load_adapter, lora_layers, merge_lora, save_adapter
from model.weights import load_model
from tests.model.test_llama import logits

IDS = list(range(100, 160))
LAST = r".*layers\.1\.self_attn\.(q|v)_proj"


def peft_adapter(base, path, **settings):
    """peft's logits with an adapter that it writes to `path`, its factors moved off their start."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]} | settings
    torch.manual_seed(1)
    peer = get_peft_model(
        LlamaForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(task_type="CAUSAL_LM", **options),
    )
    for parameter in peer.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    peer.save_pretrained(path)
    return peft_logits(base, path)


def peft_logits(base, path):
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    peer = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    peer = PeftModel.from_pretrained(peer, path).eval()
    with torch.no_grad():
        return peer(torch.tensor([IDS])).logits[0]


@pytest.mark.peer
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": LAST},
        {"target_modules": "All-Linear"},
        {"target_modules": ["q_proj", "model.layers.0.mlp.up_proj"]},
        {"layers_to_transform": [1]},
        {"layers_to_transform": 0, "layers_pattern": "layers"},
        {"exclude_modules": ["layers.0.self_attn.v_proj"]},
        {"rank_pattern": {"v_proj": 2, "layers.0.self_attn.q_proj": 6}},
        {"rank_pattern": {"layers.[01].self_attn.q_proj": 3}, "alpha_pattern": {"v_proj": 1}},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": False},
        {"lora_alpha": 1.5},
    ],
    ids=str,
)
def test_adapters_of_other_layers_and_ranks_equal_peft(settings, tiny, tmp_path):
    want = peft_adapter(tiny, tmp_path, **settings)
    got = logits(load_adapter(load_model(tiny), tmp_path), IDS)
    base = logits(load_model(tiny), IDS)
    assert (got - want).abs().max() < 1e-4
    assert (base - want).abs().max() > 0.01


@pytest.mark.peer
def test_a_start_that_rewrites_the_base_is_refused_and_its_conversion_loads(tiny, tmp_path):
    """peft converts PiSSA to plain LoRA of twice the rank, which is what the message asks for."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import LlamaForCausalLM

    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights="pissa")
    peer = get_peft_model(LlamaForCausalLM.from_pretrained(tiny, dtype=torch.float32), config)
    assert isinstance(peer, PeftModel)
    peer.save_pretrained(tmp_path / "start")
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if "lora_" in name:
                parameter += 0.05 * torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(2)
                )
        want = peer.eval()(torch.tensor([IDS])).logits[0]
    peer.save_pretrained(tmp_path / "raw")
    with pytest.raises(InputError, match="init_lora_weights = 'pissa'.*convert the adapter"):
        load_adapter(load_model(tiny), tmp_path / "raw")
    peer.save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=tmp_path / "start"
    )
    got = logits(load_adapter(load_model(tiny), tmp_path / "plain"), IDS)
    assert (got - want).abs().max() < 1e-3


@pytest.fixture
def ours(tiny, tmp_path):
    """An adapter directory of ours; edit(**changes) changes its config."""
    model = random_adapter(load_model(tiny), 4, 16, ("q_proj", "v_proj"), seed=3)
    save_adapter(model, tmp_path, tiny)

    def edit(**changes):
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return tmp_path

    return edit


def random_adapter(model, rank, alpha, targets, seed):
    add_lora(model, rank, alpha, targets, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        layer.lora_B.data.normal_(generator=generator, std=0.05)
    return model


@pytest.mark.parametrize(
    "changes, message",
    [
        *(
            ({"init_lora_weights": start}, f"init_lora_weights = '{start}'")
            for start in ("pissa_niter_4", "olora", "loftq", "eva", "corda", "lora_ga", "mica")
        ),
        ({"init_lora_weights": {}}, "init_lora_weights = {}"),
        ({"use_rslora": True}, "use_rslora = True is not supported"),
        ({"use_qalora": True}, "use_qalora = True is not supported"),
        ({"lora_bias": True}, "lora_bias = True is not supported"),
        ({"bias": "all"}, "bias = 'all' is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save = .* is not supported"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices = .* is not supported"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "layer_replication = .* is not supported"),
        ({"target_parameters": ["q_proj.weight"]}, "target_parameters = .* is not supported"),
        ({"kasa_config": {"beta": 1.0}}, "kasa_config = .* is not supported"),
        ({"a_key_of_tomorrow": 0.5}, "a_key_of_tomorrow = 0.5 is not supported"),
        ({"r": None}, "r: expected a rank, an integer from 1, got None"),
        ({"r": "4"}, "r: expected a rank"),
        ({"r": True}, "r: expected a rank"),
        ({"r": 8}, r"has shape \[4, 48\]; this model needs \[8, 48\]"),
        ({"lora_alpha": 0}, "lora_alpha: expected a number above 0"),
        ({"lora_alpha": [16]}, "lora_alpha: expected a number above 0"),
        ({"lora_dropout": "0.1"}, r"lora_dropout: expected a number in \[0, 1\)"),
        ({"lora_dropout": 1.5}, r"lora_dropout: expected a number in \[0, 1\)"),
        ({"target_modules": ["q_proj", "lm_head"]}, "target_modules name lm_head, which cannot"),
        ({"target_modules": "model.*"}, "target_modules name model.embed_tokens, which cannot"),
        ({"target_modules": None}, "names no layer of this model"),
        ({"target_modules": ["qproj"]}, "names no layer of this model"),
        ({"target_modules": {"q_proj": 1}}, "target_modules: expected names"),
        ({"target_modules": [None]}, "target_modules: expected names"),
        ({"target_modules": "(q_proj"}, r"'\(q_proj' is not a pattern of layer names"),
        ({"target_modules": ["q_proj"]}, "v_proj.lora_A.weight fits no layer that adapter_config"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "o_proj.lora_A.weight is missing"),
        ({"layers_to_transform": [0]}, "layers.1.* fits no layer that adapter_config"),
        ({"layers_to_transform": ["0"]}, "layers_to_transform: expected layer numbers"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern: expected an object"),
        ({"rank_pattern": {"q_proj": 2.5}}, "rank_pattern.q_proj: expected a rank"),
        ({"rank_pattern": {"*": 2}}, r"'\*' is not a pattern of layer names"),
        ({"alpha_pattern": {"q_proj": -1}}, "alpha_pattern.q_proj: expected a number"),
        ({"peft_type": ["LORA"]}, r"peft_type is \['LORA'\]"),
    ],
    ids=str,
)
def test_what_changes_the_formula_or_says_nothing_is_named(changes, message, ours, tiny):
    with pytest.raises(InputError, match=message):
        load_adapter(load_model(tiny), ours(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {
            "use_dora": False,
            "loftq_config": {},
            "eva_config": None,
            "megatron_core": "megatron.core",
        },
        {"auto_mapping": None, "peft_version": "0.18.0", "runtime_config": {"ephemeral": False}},
        {"a_key_of_tomorrow": None, "use_of_tomorrow": False, "qalora_group_size": 16},
        {"layers_to_transform": [], "target_modules": ["v_proj", "q_proj"]},
        {"lora_dropout": None, "init_lora_weights": None},
    ],
    ids=str,
)
def test_keys_that_change_nothing_pass(changes, ours, tiny):
    want = logits(load_adapter(load_model(tiny), ours()), IDS)
    assert torch.equal(logits(load_adapter(load_model(tiny), ours(**changes)), IDS), want)


def test_factors_that_are_no_numbers(ours, tiny):
    path = ours() / "adapter_model.safetensors"
    whole = load_file(path)
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    save_file(whole | {key: torch.full((64, 4), float("nan"))}, path)
    with pytest.raises(InputError, match="q_proj.lora_B.weight holds NaN"):
        load_adapter(load_model(tiny), ours())
    save_file(whole | {key: torch.ones(64, 4, dtype=torch.int32)}, path)
    with pytest.raises(InputError, match="q_proj.lora_B.weight is of torch.int32"):
        load_adapter(load_model(tiny), ours())


# Two adapters in one


@pytest.mark.peer
@pytest.mark.parametrize(
    "first_settings, targets",
    [
        ({}, ("q_proj", "v_proj")),
        ({"lora_alpha": 5}, ("v_proj", "down_proj")),
        ({"target_modules": LAST, "r": 6}, ("q_proj", "o_proj")),
        ({"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 3}}, ("q_proj", "v_proj")),
    ],
    ids=str,
)
def test_an_adapter_trained_on_another_is_saved_with_it(first_settings, targets, tiny, tmp_path):
    """Ours computes with the first merged in; peft loads what we save onto the bare base."""
    peft_adapter(tiny, tmp_path / "first", **first_settings)
    model = merge_lora(load_adapter(load_model(tiny), tmp_path / "first"))
    first_alone = logits(model, IDS)
    random_adapter(model, 3, 7, targets, seed=9)
    trained = logits(model, IDS)

    both = tmp_path / "both"
    both.mkdir()
    save_adapter(model, both, tiny, first_dir=tmp_path / "first")
    config = json.loads((both / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"]
    assert (peft_logits(tiny, both) - trained).abs().max() < 1e-4
    assert (logits(load_adapter(load_model(tiny), both), IDS) - trained).abs().max() < 1e-4
    assert (first_alone - trained).abs().max() > 0.01


def product(layer):
    """The update of a layer's weight, float64."""
    return layer.updates["policy"].scale * layer.lora_B.double() @ layer.lora_A.double()


def test_the_joint_factors_are_the_two_products(tiny, tmp_path):
    """float64: s1 B1 A1 + s2 B2 A2 of every layer, zero where neither is."""
    model = random_adapter(load_model(tiny), 4, 16, ("q_proj",), seed=1)
    save_adapter(model, tmp_path, tiny)
    first = {name: layer for name, layer in lora_layers(model).items()}
    model = random_adapter(load_model(tiny), 2, 3, ("q_proj", "up_proj"), seed=2)
    both = tmp_path / "both"
    both.mkdir()
    save_adapter(model, both, tiny, first_dir=tmp_path)
    stored = load_file(both / "adapter_model.safetensors")
    layers = lora_layers(model)
    assert len(stored) == 2 * len(layers) == 8
    for name, layer in layers.items():
        want = product(layer)
        if name in first:
            want += product(first[name])
        A_RD, B_FR = (
            stored[f"base_model.model.{name}.{side}.weight"] for side in ("lora_A", "lora_B")
        )
        assert A_RD.shape[0] == 6
        assert (B_FR.double() @ A_RD.double() - want).abs().max() < 1e-7, name
