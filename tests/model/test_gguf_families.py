"""GGUF files of Qwen2, Qwen3 and Mistral, made by the gguf package: equal to transformers."""

import json

import pytest
import torch
from gguf import GGUFWriter
from tokenizers import Tokenizer as Fast
from tokenizers import models, normalizers, pre_tokenizers

from model import gguf_model, import_gguf
from model.config import parse_config
from model.families import FAMILIES
from model.llama import Llama
from model.tokenizer import load_tokenizer
from model.weights import load_model
from tests.families import peer_model
from tests.model.test_import_gguf import LETTERS
from tests.model.test_llama import logits

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", *LETTERS, "th", "the", "12"]
KINDS = [3, 3, 3, 4] + [1] * (len(TOKENS) - 4)
MERGES = ["t h", "th e", "1 2"]
SIZES = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": len(TOKENS),
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
}
# What is stored, and the architecture that llama.cpp stores it as.
CASES = {
    "qwen2": ("qwen2", {"head_dim": 12}),
    "qwen3": ("qwen3", {"head_dim": 128}),  # the width that transformers' reader takes for granted
    "mistral": ("llama", {"head_dim": 12, "sliding_window": None}),
}
IDS = torch.randint(0, len(TOKENS), (40,), generator=torch.Generator().manual_seed(0)).tolist()


def tensors_of(case):
    """{Hugging Face name: random values that bfloat16 can hold}."""
    raw = {"model_type": case, **SIZES, **CASES[case][1]}
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name, parameter in Llama(parse_config(raw, case)).named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        values = 1 + 0.1 * noise if name.endswith("norm.weight") else 0.2 * noise
        tensors[name] = values.bfloat16().float()
    return tensors


def stored_name(name):
    """llama.cpp's name of a tensor."""
    tops = {theirs: ours for ours, theirs in gguf_model.TOP.items()}
    if name in tops:
        return tops[name]
    blocks = {theirs: ours for ours, theirs in gguf_model.NAMES.items()}
    _, _, layer, rest = name.split(".", 3)
    part, _, side = rest.rpartition(".")
    return f"blk.{layer}.{blocks[part]}.{side}"


def pairs_together(weight, heads):
    """llama.cpp's order of a llama's rows: i and i + E/2 of a head become neighbours."""
    first, second = weight.unflatten(0, (heads, 2, -1)).unbind(1)
    return torch.stack((first, second), 2).flatten(0, 2)


def write(path, case, tensors, pre="qwen2", drop=()):
    """The GGUF of a tiny model."""
    architecture, settings = CASES[case]
    writer = GGUFWriter(path, architecture)
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(SIZES["rms_norm_eps"])
    writer.add_rope_freq_base(SIZES["rope_theta"])
    writer.add_vocab_size(SIZES["vocab_size"])
    if case == "qwen3":  # of the others it is what the hidden size divides to
        writer.add_key_length(settings["head_dim"])
        writer.add_value_length(settings["head_dim"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types(KINDS)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    for name, values in tensors.items():
        stored = stored_name(name)
        if stored in drop:
            continue
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        if heads and architecture == "llama":
            values = pairs_together(values, heads)
        writer.add_tensor(stored, values.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def imported(path):
    """The exit code of the command on path/m.gguf, to path/out."""
    return import_gguf.main([str(path / "m.gguf"), str(path / "out")])


@pytest.mark.peer
@pytest.mark.parametrize("case", CASES)
def test_the_logits_are_those_of_transformers(case, tmp_path):
    """Of the tensors that went in, of its own GGUF reader, and of the directory that is written."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tensors = tensors_of(case)
    write(tmp_path / "m.gguf", case, tensors)
    assert imported(tmp_path) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    kind = CASES[case][0]
    assert (config["model_type"], config["architectures"]) == (kind, [FAMILIES[kind].architecture])
    got = logits(load_model(tmp_path / "out"), IDS)

    raw = SIZES | CASES[case][1]
    source = AutoModelForCausalLM.from_config(AutoConfig.for_model(case, **raw)).eval()
    source.load_state_dict(tensors, strict=True)
    reader = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    peers = {"source": source, "reader": reader, "written": peer_model(tmp_path / "out")}
    for name, peer in peers.items():
        with torch.no_grad():
            want = peer.eval()(torch.tensor([IDS])).logits[0]
        off = float((got - want).abs().max() / (want.max() - want.min()))
        assert off <= 1e-5, (name, off)


def test_qwen_s_tokenizer_comes_along(tmp_path):
    """Its cut before merging, NFC, language tokens as text, and the ends of a turn."""
    write(tmp_path / "m.gguf", "qwen2", tensors_of("qwen2"))
    assert imported(tmp_path) == 0
    tokenizer = load_tokenizer(tmp_path / "out")
    assert tokenizer.eos_ids == (2, 0)
    assert tokenizer.encode("12") == [TOKENS.index("1"), TOKENS.index("2")], "digits stay apart"
    assert tokenizer.encode("the") == [TOKENS.index("the")]
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")
    assert tokenizer.encode("<think>") == [3] and 2 not in tokenizer.encode("<|im_end|>")

    # The same rules written down by hand.
    fast = Fast(
        models.BPE({t: n for n, t in enumerate(TOKENS)}, [tuple(m.split()) for m in MERGES])
    )
    fast.normalizer = normalizers.NFC()
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    for text in ("the other 12th", "naïve the, the"):
        assert tokenizer.encode(text) == fast.encode(text).ids, text


@pytest.mark.parametrize(
    "case, drop, message",
    [
        ("qwen2", ("blk.1.attn_k.bias",), "1 tensors are missing (first: blk.1.attn_k.bias)"),
        ("qwen3", ("blk.0.attn_q_norm.weight",), "(first: blk.0.attn_q_norm.weight)"),
    ],
)
def test_a_tensor_of_the_family_that_is_not_there_is_named(case, drop, message, tmp_path, capsys):
    write(tmp_path / "m.gguf", case, tensors_of(case), drop=drop)
    assert imported(tmp_path) == 2
    assert message in capsys.readouterr().err


def test_a_bias_in_a_llama_is_not_left_out(tmp_path, capsys):
    tensors = tensors_of("mistral") | {
        name: values for name, values in tensors_of("qwen2").items() if name.endswith("bias")
    }
    write(tmp_path / "m.gguf", "mistral", tensors)
    assert imported(tmp_path) == 2
    assert "blk.0.attn_k.bias is not of a plain llama model" in capsys.readouterr().err
