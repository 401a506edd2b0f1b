"""Qwen2, Qwen3 and Mistral: one decoder, equal to transformers' and peft's of each."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from model.attention import FlexPacked, PaddedPacked
from model.config import load_config, parse_config
from model.errors import InputError
from model.families import FAMILIES
from model.generate import generate
from model.llama import RECOMPUTE
from model.lora import add_lora, load_adapter, lora_layers, merge_lora, save_adapter
from model.weights import load_model, save_model
from tests.conftest import TINY
from tests.families import FAMILY_SETTINGS, peer_model, write_family
from tests.model.test_llama import logits

IDS = torch.randint(0, 49152, (70,), generator=torch.Generator().manual_seed(5)).tolist()
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module", params=FAMILY_SETTINGS)
def path(request, tmp_path_factory, smollm2):
    """A tiny model's directory, one of each family."""
    return write_family(tmp_path_factory.mktemp(request.param) / "model", smollm2, request.param)


def peer_logits(peer, ids=IDS):
    with torch.no_grad():
        return peer(torch.tensor([ids])).logits[0]


def assert_equal(got, want, where):
    """Within 1e-5 of the range of what is wanted."""
    distance = float((got - want).abs().max() / (want.max() - want.min()))
    assert distance <= 1e-5, (where, distance)


def adapted(path, rank=4):
    """The model with LoRA on all seven layers, B not 0."""
    model = add_lora(load_model(path), rank, 8, TARGETS, seed=1)
    generator = torch.Generator().manual_seed(2)
    for layer in lora_layers(model).values():
        layer.lora_B.data.normal_(generator=generator, std=0.05)
    return model


@pytest.mark.peer
def test_logits_equal_transformers(path):
    peer = peer_model(path)
    assert type(peer).__name__ == FAMILIES[load_raw(path)["model_type"]].architecture
    assert_equal(logits(load_model(path), IDS), peer_logits(peer), path)


def load_raw(path):
    return json.loads((path / "config.json").read_text())


@pytest.mark.peer
@pytest.mark.parametrize("rows", [40, 70], ids=["a product of its own", "merged"])
def test_peft_loads_our_adapter_and_agrees(rows, path, tmp_path):
    """On few rows B (A x) is added, on many W + s B A is made: with the bias in both."""
    from peft import PeftModel

    model = adapted(path)
    base = logits(load_model(path), IDS[:rows])
    save_adapter(model, tmp_path, path)
    peer = PeftModel.from_pretrained(peer_model(path), tmp_path).eval()
    want = peer_logits(peer, IDS[:rows])
    assert_equal(logits(model, IDS[:rows]), want, rows)
    assert (base - want).abs().max() > 0.1


@pytest.mark.peer
def test_we_load_peft_s_adapter_and_agree(path, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(
        r=3,
        lora_alpha=6,
        target_modules=["q_proj", "v_proj", "up_proj"],
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    peer = get_peft_model(peer_model(path), config).eval()
    peer.save_pretrained(tmp_path)
    got = logits(load_adapter(load_model(path), tmp_path), IDS)
    assert_equal(got, peer_logits(peer), path)


@pytest.mark.peer
@pytest.mark.parametrize("shard_bytes", [1 << 20, 5 << 30], ids=["shards", "one file"])
def test_transformers_loads_what_we_merge_and_save(shard_bytes, path, tmp_path):
    """The export keeps architectures and model_type, every bias and every norm of a head."""
    model = adapted(path)
    want = logits(model, IDS)
    save_model(merge_lora(model), tmp_path, path, torch.float32, shard_bytes)
    saved, source = load_raw(tmp_path), load_raw(path)
    assert all(saved[key] == source[key] for key in ("architectures", "model_type"))
    assert_equal(peer_logits(peer_model(tmp_path)), want, "transformers")
    assert_equal(logits(load_model(tmp_path), IDS), want, "ours")
    stored = {}
    for file in tmp_path.glob("*.safetensors"):
        stored |= load_file(file)
    assert stored.keys() == {name for name, _ in load_model(path).named_parameters()}


@pytest.mark.peer
def test_greedy_generation_equals_transformers(path):
    """Through the cache, prompts of two lengths in one batch."""
    prompts = [IDS[:9], IDS[20:45]]
    got = generate(load_model(path), prompts, 12, stop_ids=())
    peer = peer_model(path)
    for prompt, answer in zip(prompts, got):
        want = peer.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None
        )
        assert answer == want[0, len(prompt) :].tolist()


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_recomputation_and_both_attentions_give_one_model(recompute, dtype, path):
    """Gradients of what a block makes again are the same bits; a packed batch, both layouts."""
    document_T = torch.tensor([0] * 6 + [1] * 5)
    branch_T = torch.tensor([0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 1])
    tokens, positions = torch.tensor(IDS[:11]), torch.tensor([0, 1, 2, 3, 2, 3, 0, 1, 2, 3, 4])
    gradients = []
    for name in ("off", recompute):
        model = load_model(path, dtype, param_dtype=torch.float32).requires_grad_(True)
        for block in model.model.layers:
            block.recompute = name
        attend = PaddedPacked(document_T, branch_T)
        model.forward_hidden(tokens, positions, attend).float().square().sum().backward()
        gradients.append(
            {name: p.grad for name, p in model.named_parameters() if "lm_" not in name}
        )
    off, again = gradients
    assert not [name for name in off if not torch.equal(off[name], again[name])]
    assert all(grad.abs().max() > 0 for name, grad in off.items() if "k_proj.bias" not in name)
    if dtype == torch.float32:
        with torch.no_grad():
            padded = model.forward_hidden(tokens, positions, attend)
            flex = model.forward_hidden(tokens, positions, FlexPacked(document_T, branch_T))
        assert (padded - flex).abs().max() < 1e-4


def test_a_product_with_a_bias_is_kept_and_not_made_again(tmp_path, smollm2):
    """Selective recomputation: of the seven products of a block none runs in the backward."""
    path = write_family(tmp_path / "model", smollm2, "qwen2")
    counted = {}
    for recompute in ("off", "selective", "full"):
        model = load_model(path, torch.bfloat16).requires_grad_(True)
        for block in model.model.layers:
            block.recompute = recompute
        tokens = torch.tensor(IDS[:8])
        nothing = torch.zeros_like(tokens)
        attend = PaddedPacked(nothing, nothing)
        hidden = model.forward_hidden(tokens, torch.arange(8), attend).float().sum()
        with Products() as products:
            hidden.backward()
        counted[recompute] = products.count
    # Two for the gradients of each product; "full" runs the products themselves again.
    assert counted["selective"] == counted["off"] < counted["full"]


class Products(TorchDispatchMode):
    """Counts matrix products, with a bias or without."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return function(*args, **(kwargs or {}))


# What is refused


@pytest.mark.parametrize(
    "family, settings, message",
    [
        ("llama", {"model_type": "gemma2"}, "'gemma2'; the models read here are llama, qwen2, qw"),
        ("llama", {"model_type": ["llama"]}, r"model_type is \['llama'\]; the models"),
        ("llama", {"attention_bias": True}, "attention_bias is True; only False"),
        ("qwen2", {"attention_bias": False}, "attention_bias is False; only True"),
        ("qwen3", {"attention_bias": True}, "attention_bias is True; only False"),
        ("qwen3", {"head_dim": ...}, "the key 'head_dim' is missing; every qwen3 config"),
        ("qwen2", {"num_key_value_heads": ...}, "the key 'num_key_value_heads' is missing"),
        ("mistral", {"sliding_window": ...}, r"sliding_window is 4096 \(by its absence\) in a"),
        ("mistral", {"sliding_window": 512}, "sliding_window is 512 in a context of 5000: tokens"),
        ("mistral", {"sliding_window": "512"}, "sliding_window: expected null or a number"),
        ("mistral", {"layer_types": ["sliding_attention"]}, "layer_types has 'sliding_attention'"),
        (
            "qwen2",
            {"use_sliding_window": True, "max_window_layers": 1},
            "sliding_window is 32 in a context of 5000",
        ),
        ("qwen2", {"use_sliding_window": "no"}, "use_sliding_window: expected true or false"),
        ("qwen3", {"layer_types": ["full_attention", "x"]}, "layer_types has 'x'; only 'full"),
        ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "RoPE type 'yarn'"),
    ],
)
def test_what_has_no_code_is_refused_by_name(family, settings, message):
    raw = TINY | FAMILY_SETTINGS.get(family, {}) | {"max_position_embeddings": 5000} | settings
    raw = {key: value for key, value in raw.items() if value is not ...}
    with pytest.raises(InputError, match=message):
        parse_config(raw, "config.json")


@pytest.mark.parametrize(
    "family, settings",
    [
        ("mistral", {"sliding_window": 5000}),
        ("mistral", {"sliding_window": ..., "max_position_embeddings": 4096}),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 2}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": None}),
        ("qwen2", {"use_sliding_window": True, "layer_types": ["full_attention"] * 2}),
        ("qwen3", {"layer_types": None}),
    ],
)
def test_a_window_that_hides_nothing_is_none(family, settings):
    raw = TINY | FAMILY_SETTINGS[family] | {"max_position_embeddings": 5000} | settings
    raw = {key: value for key, value in raw.items() if value is not ...}
    config = parse_config(raw, "config.json")
    assert (config.qkv_bias, config.qk_norm) == (family == "qwen2", family == "qwen3")


def test_a_config_without_head_dim_is_as_wide_as_it_divides(path):
    config = load_config(path)
    assert config.head_dim == {"qwen2": 12, "qwen3": 20, "mistral": 8}[load_raw(path)["model_type"]]
