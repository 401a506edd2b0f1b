"""Model directories that say two things, or no number: transformers' answer, or one line."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import load_config, parse_config
from model.errors import InputError
from model.llama import rope_frequencies
from model.tensors import INDEX, read_tensor, tensor_files
from model.weights import copy_companions, load_model, save_model
from tests.conftest import TINY, write_tiny

LLAMA3 = TINY["rope_scaling"]
OTHER = LLAMA3 | {"factor": 4.0}


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the tiny model to break."""
    shutil.copytree(tiny, tmp_path / "m")
    return tmp_path / "m"


def changed(path, **changes):
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(config))


# RoPE


@pytest.mark.peer
@pytest.mark.parametrize(
    "settings",
    [
        {"rope_scaling": LLAMA3},
        {"rope_scaling": None, "rope_parameters": LLAMA3 | {"rope_theta": 5e5}, "rope_theta": None},
        {"rope_scaling": {}, "rope_parameters": LLAMA3},
        {"rope_parameters": LLAMA3, "rope_theta": 1e5},
        {"rope_scaling": LLAMA3 | {"type": "llama3"}},
        {"rope_scaling": {"type": "default"}},
        {
            "rope_scaling": None,
            "rope_theta": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 7e4},
        },
        {"rope_scaling": LLAMA3 | {"rope_theta": 10000.0}},
        {"rope_scaling": None, "rope_theta": 500000},
    ],
    ids=lambda settings: json.dumps(settings)[:60],
)
def test_frequencies_equal_transformers(settings):
    """Wherever RoPE is stated, if all that is stated agrees."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    raw = {key: value for key, value in (TINY | settings).items() if value is not None}
    want = LlamaRotaryEmbedding(LlamaConfig(**json.loads(json.dumps(raw)))).inv_freq
    got = rope_frequencies(parse_config(TINY | settings, "config.json"))
    assert (got - want).abs().max() <= 1e-6 * want.max()


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"rope_parameters": OTHER},
            "rope_parameters says .*4.0.*, rope_scaling says .*8.0.*; remove the one that is stale",
        ),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_parameters says None, rope_scaling"),
        (
            {"rope_scaling": LLAMA3 | {"rope_theta": 5e5}},
            "rope_theta says 10000.0, rope_scaling.rope_theta says 500000.0",
        ),
        (
            {"rope_scaling": LLAMA3 | {"type": "linear"}},
            "rope_scaling.rope_type says 'llama3', rope_scaling.type says 'linear'",
        ),
        (
            {"original_max_position_embeddings": 128},
            "original_max_position_embeddings says 128.0, rope_scaling.original",
        ),
        ({"rope_scaling": {"factor": 8.0}}, "rope_scaling.factor = 8.0 has no meaning"),
        (
            {"rope_scaling": None, "rope_parameters": {"full_attention": LLAMA3}},
            "rope_parameters.full_attention = .* has no meaning",
        ),
        ({"rope_scaling": LLAMA3 | {"attention_factor": 2.0}}, "attention_factor = 2.0 has no"),
        ({"rope_scaling": "linear"}, "rope_scaling: expected an object or null, got str 'linear'"),
        ({"rope_scaling": [LLAMA3]}, "rope_scaling: expected an object or null, got list"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2}}, "RoPE type 'linear' is not"),
        ({"rope_scaling": {"rope_type": ["llama3"]}}, r"RoPE type \['llama3'\] is not supported"),
        ({"rope_scaling": LLAMA3 | {"factor": "8"}}, "rope_scaling.factor: a number was expected"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "high_freq_factor 4.0 must be above"),
        ({"rope_theta": "10000"}, "rope_theta: a number was expected, above 0, got '10000'"),
        ({"rope_theta": 0}, "rope_theta: a number was expected, above 0, got 0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; only 1.0"),
    ],
)
def test_rope_that_is_stated_twice_or_not_at_all(settings, message):
    with pytest.raises(InputError, match=message):
        parse_config(TINY | settings, "config.json")


# The other numbers


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"hidden_size": "48"}, "hidden_size: a number was expected, from 1 to .*, got '48'"),
        ({"hidden_size": True}, "hidden_size: a number was expected"),
        ({"hidden_size": 48.5}, "hidden_size: a number was expected"),
        ({"hidden_size": [48]}, r"hidden_size: a number was expected, .* got \[48\]"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: a number was expected, from 1 to 1024"),
        ({"num_key_value_heads": 0}, "num_key_value_heads: a number was expected"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3 key-value heads"),
        ({"head_dim": 15}, "a head of width 15 has no halves"),
        ({"head_dim": None, "hidden_size": 50}, "50 is not a multiple of num_attention_heads 4"),
        ({"vocab_size": None}, "the key 'vocab_size' is missing"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps: a number was expected"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps: a number was expected, above 0"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings: expected true or false"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}; only None"),
        ({"attention_bias": True}, "attention_bias is True; only False"),
    ],
)
def test_numbers_that_are_none(settings, message):
    with pytest.raises(InputError, match=message):
        parse_config(TINY | settings, "config.json")


@pytest.mark.parametrize(
    "text, message",
    [
        ("[]", "expected a JSON object, got list"),
        ("null", "expected a JSON object, got NoneType"),
        ('{"rms_norm_eps": 1e999}', "1e999 is beyond 64 bits"),
        ('{"hidden_size": 1' + "0" * 400 + "}", "beyond 64 bits"),
        ('{"rope_theta": NaN}', "NaN is not JSON"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"model_type": "\\ud800"}', "no Unicode"),
    ],
    ids=lambda value: value[:30],
)
def test_json_that_is_none(text, message, copy):
    (copy / "config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        load_config(copy)


# Weights


@pytest.mark.parametrize("whole", [True, False], ids=["the new whole", "shards alone"])
def test_an_index_of_another_model(whole, copy, tiny, tmp_path):
    """Refused beside a whole file, and where a shard holds more than the index says."""
    other = write_tiny(tmp_path / "other", tiny, seed=5)
    save_model(load_model(other), copy, other, torch.float32, shard_bytes=1 << 20)
    if whole:
        with pytest.raises(InputError, match="both model.safetensors and .*index.json.* delete it"):
            load_model(copy)
        return
    (copy / "model.safetensors").unlink()
    load_model(copy)
    index = json.loads((copy / INDEX).read_text())
    names = sorted(set(index["weight_map"].values()))
    first = load_file(copy / names[0])
    save_file(first | {"model.norm.weight": torch.ones(48)}, copy / names[0])
    with pytest.raises(InputError, match="holds 'model.norm.weight', which .* does not place"):
        load_model(copy)


def test_an_index_that_names_the_one_file_is_no_contradiction(copy, tiny):
    names = load_file(copy / "model.safetensors")
    index = {"weight_map": dict.fromkeys(names, "model.safetensors")}
    (copy / INDEX).write_text(json.dumps(index))
    want, got = load_model(tiny), load_model(copy)
    assert all(torch.equal(a, b) for a, b in zip(got.parameters(), want.parameters()))


@pytest.mark.parametrize(
    "weight_map, message",
    [
        (None, "no weight_map"),
        ([], "no weight_map"),
        ({"model.norm.weight": None}, "'model.norm.weight' is in None; expected the name"),
        ({"model.norm.weight": 3}, "is in 3; expected the name"),
        ({"model.norm.weight": "../other/model.safetensors"}, "expected the name"),
        ({"model.norm.weight": ""}, "expected the name"),
        ({"model.norm.weight": "nowhere.safetensors"}, "both model.safetensors and"),
    ],
    ids=str,
)
def test_an_index_that_is_none(weight_map, message, copy):
    (copy / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match=message):
        tensor_files(copy)


def test_a_shard_that_is_a_directory(copy):
    names = tensor_files(copy)
    (copy / "model.safetensors").unlink()
    (copy / "shards").mkdir()
    (copy / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "shards")}))
    with pytest.raises(InputError, match="shards: "):
        load_model(copy)


def test_pickles_in_place_of_safetensors_are_named(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(InputError, match="pytorch_model.bin beside it is a pickle"):
        load_model(copy)


@pytest.mark.peer
def test_a_tied_head_that_is_repeated_loads_and_another_one_is_refused(smollm2, tmp_path):
    from transformers import LlamaForCausalLM

    path = write_tiny(tmp_path / "tied", smollm2, tie_word_embeddings=True)
    tensors = load_file(path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    peer = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
    assert torch.equal(load_model(path).head_weight_VD, peer.lm_head.weight)

    # transformers would use the head, and older ones the embedding.
    tensors["lm_head.weight"][5, 7] += 1
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="says tie_word_embeddings, but lm_head.weight differs"):
        load_model(path)
    changed(path, tie_word_embeddings=False)
    peer = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
    assert torch.equal(load_model(path).head_weight_VD, peer.lm_head.weight)


@pytest.mark.parametrize(
    "breakage, message",
    [
        (lambda t: t["model.norm.weight"].fill_(float("nan")), "model.norm.weight holds NaN"),
        (lambda t: t["lm_head.weight"][9, 9].fill_(float("inf")), "lm_head.weight holds NaN or"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(48, dtype=torch.int8)}),
            "model.norm.weight is stored as I8; expected one of",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(48).to(torch.float8_e4m3fn)}),
            "model.norm.weight is stored as F8_E4M3; expected one of",
        ),
    ],
)
def test_tensors_that_are_no_numbers(breakage, message, copy):
    tensors = load_file(copy / "model.safetensors")
    breakage(tensors)
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(InputError, match=message):
        load_model(copy)


def test_large_numbers_are_finite(copy):
    """Their sum is beyond float32, they are not."""
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"] = torch.full((48,), 3e38)
    save_file(tensors, copy / "model.safetensors")
    assert torch.equal(read_tensor(copy, "model.norm.weight"), tensors["model.norm.weight"])


# What travels with a model


def test_companions_of_every_kind_travel(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    travel = (
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
        "generation_config.json",
        "LICENSE.txt",
    )
    stay = ("config.json", "model.safetensors", INDEX, "pytorch_model.bin", "ecliptica.json")
    (source / "additional_chat_templates").mkdir(parents=True)
    out.mkdir()
    for name in (*travel, *stay):
        (source / name).write_text(name)
    copy_companions(source, out)
    copied = [path for path in out.rglob("*") if path.is_file()]
    assert {str(path.relative_to(out)) for path in copied} == set(travel)
    assert all(path.read_text() == str(path.relative_to(out)) for path in copied)


@pytest.mark.peer
def test_transformers_finds_every_chat_template_in_an_export(tiny, tmp_path):
    from transformers import AutoTokenizer

    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(tiny, source)
    out.mkdir()
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (source / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    save_model(load_model(source), out, source, torch.float32)
    want = AutoTokenizer.from_pretrained(source).chat_template
    assert want.keys() == {"default", "tool_use"}
    assert AutoTokenizer.from_pretrained(out).chat_template == want
