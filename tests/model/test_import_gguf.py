"""GGUF import: synthetic files whose content is known, and the real one."""

import json
import os
import shutil
import struct

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType
from gguf.quants import quantize
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import pre_tokenizers

from model import gguf_model, import_gguf
from model.config import load_config
from model.llama import rope_frequencies
from model.tokenizer import load_tokenizer

D, H, K, E, F, LAYERS = 64, 4, 2, 16, 96, 2
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = ["<s>", "<|im_end|>", *LETTERS, "th", "the"]


def interleaved(weight, heads):
    """llama.cpp's order: in each head the pairs (i, i + E/2) are neighbours (2i, 2i + 1)."""
    out = np.empty_like(weight)
    for h in range(heads):
        for i in range(E // 2):
            for half in range(2):
                out[h * E + 2 * i + half] = weight[h * E + half * (E // 2) + i]
    return out


def random_tensors(tied):
    """{Hugging Face name: values} of a tiny model."""
    shapes = {"model.embed_tokens.weight": (len(TOKENS), D), "model.norm.weight": (D,)}
    if not tied:
        shapes["lm_head.weight"] = (len(TOKENS), D)
    for n in range(LAYERS):
        at = f"model.layers.{n}."
        shapes |= {
            at + "input_layernorm.weight": (D,),
            at + "post_attention_layernorm.weight": (D,),
            at + "self_attn.q_proj.weight": (H * E, D),
            at + "self_attn.k_proj.weight": (K * E, D),
            at + "self_attn.v_proj.weight": (K * E, D),
            at + "self_attn.o_proj.weight": (D, H * E),
            at + "mlp.gate_proj.weight": (F, D),
            at + "mlp.up_proj.weight": (F, D),
            at + "mlp.down_proj.weight": (D, F),
        }
    g = np.random.default_rng(0)
    return {name: g.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def write_fields(writer, changes):
    """The metadata of a tiny model. changes: {what: other value}, see `write`."""
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(F)
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_head_count(changes.get("heads", H))
    writer.add_head_count_kv(changes.get("kv_heads", K))
    writer.add_layer_norm_rms_eps(changes.get("eps", 1e-5))
    writer.add_rope_freq_base(changes.get("theta", 10000.0))
    writer.add_tokenizer_model(changes.get("tokenizer", "gpt2"))
    writer.add_tokenizer_pre(changes.get("pre", "smollm"))
    writer.add_token_list(changes.get("tokens", TOKENS))
    writer.add_token_types(changes.get("types", [3, 3] + [1] * (len(TOKENS) - 2)))
    writer.add_token_merges(changes.get("merges", ["t h", "th e"]))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(changes.get("eos", 0))
    for method, *arguments in changes.get("more", ()):
        getattr(writer, method)(*arguments)


def write(path, kind=GGMLQuantizationType.F16, tied=True, drop=(), **changes):
    """A tiny llama GGUF; returns the Hugging Face tensors it holds.

    drop: names of tensors left out; freqs: rope_freqs.weight; more: (method of the writer, its
    arguments); the other changes: see write_fields.
    """
    tensors = random_tensors(tied)
    writer = GGUFWriter(path, changes.get("architecture", "llama"))
    write_fields(writer, changes)
    if "freqs" in changes:
        writer.add_tensor("rope_freqs.weight", changes["freqs"])
    blocks = {theirs: ours for ours, theirs in gguf_model.NAMES.items()}
    tops = {theirs: ours for ours, theirs in gguf_model.TOP.items()}
    for name, value in tensors.items():
        stored = tops.get(name)
        if stored is None:
            _, _, layer, rest = name.split(".", 3)
            stored = f"blk.{layer}.{blocks[rest.removesuffix('.weight')]}.weight"
        heads = {"attn_q": H, "attn_k": K}.get(stored.split(".")[-2])
        if heads:
            value = interleaved(value, heads)
        if stored in drop:
            continue
        if value.ndim == 1:
            writer.add_tensor(stored, value)
        else:
            writer.add_tensor(stored, quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {name: torch.from_numpy(value) for name, value in tensors.items()}


def imported(path, *options):
    """The exit code of the command on path/m.gguf, to path/out."""
    return import_gguf.main([str(path / "m.gguf"), str(path / "out"), *options])


@pytest.mark.parametrize(
    "kind, tied, tolerance",
    [
        (GGMLQuantizationType.F16, True, 0.006),
        (GGMLQuantizationType.F32, False, 0.004),
        (GGMLQuantizationType.Q8_0, False, 0.02),
    ],
    ids=["F16 tied", "F32 untied", "Q8_0 untied"],
)
def test_every_tensor_comes_back(kind, tied, tolerance, tmp_path):
    want = write(tmp_path / "m.gguf", kind, tied)
    assert import_gguf.main([str(tmp_path / "m.gguf"), str(tmp_path / "out")]) == 0
    got = load_file(tmp_path / "out" / "model.safetensors")
    assert got.keys() == want.keys() and all(t.dtype == torch.bfloat16 for t in got.values())
    for name, value in want.items():
        assert ((got[name].float() - value).abs() <= tolerance * value.abs().clamp(min=1)).all(), (
            name
        )
    config = load_config(tmp_path / "out")
    assert (
        config.tie_word_embeddings,
        config.num_key_value_heads,
        config.head_dim,
        config.rms_norm_eps,
        config.rope_scaling,
    ) == (tied, K, E, 1e-5, None)
    tokenizer = load_tokenizer(tmp_path / "out")
    assert tokenizer.encode("the 12") == [
        TOKENS.index(t) for t in ("the", "Ġ", "1", "2")
    ] and tokenizer.eos_ids == (0, 1)


def test_llama3_rope_factors_become_the_setting_that_made_them(tmp_path):
    write(tmp_path / "plain.gguf")
    import_gguf.main([str(tmp_path / "plain.gguf"), str(tmp_path / "plain")])
    plain = load_config(tmp_path / "plain")
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192.0,
    }
    factors = (
        rope_frequencies(plain)
        / rope_frequencies(type(plain)(**(vars(plain) | {"rope_scaling": scaling})))
    ).numpy()
    assert factors.max() == 8 and factors.min() == 1
    write(tmp_path / "m.gguf", freqs=factors)
    assert import_gguf.main([str(tmp_path / "m.gguf"), str(tmp_path / "out")]) == 0
    assert load_config(tmp_path / "out").rope_scaling == scaling


LINEAR = [("add_rope_scaling_type", RopeScalingType.LINEAR), ("add_rope_scaling_factor", 4.0)]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"architecture": "gemma"}, "architecture 'gemma'; only llama, qwen2, qwen3 can"),
        ({"pre": "deepseek"}, "pre-tokenizer 'deepseek'"),
        ({"tokenizer": "llama"}, "give --tokenizer tokenizer.model"),
        ({"freqs": np.linspace(1, 3, E // 2, dtype=np.float32)}, "is not Llama-3.1's scaling"),
        ({"freqs": np.ones(3, dtype=np.float32)}, "is not Llama-3.1's scaling"),
        ({"freqs": np.full(E // 2, np.nan, dtype=np.float32)}, "rope_freqs.weight holds NaN"),
        ({"more": LINEAR}, "llama.rope.scaling.type is 'linear', for which"),
        ({"more": LINEAR[1:]}, "llama.rope.scaling.factor is 4.0, for which"),
        ({"more": [("add_float32", "llama.rope.scale_linear", 2.0)]}, "scale_linear is 2.0"),
        ({"more": [("add_rope_scaling_type", RopeScalingType.YARN)]}, "scaling.type is 'yarn'"),
        ({"more": [("add_uint16", "split.count", 3)]}, "one part of 3; join them first"),
        ({"more": [("add_expert_count", 8)]}, "llama.expert_count is 8"),
        ({"more": [("add_causal_attention", False)]}, "llama.attention.causal is False"),
        ({"more": [("add_sliding_window", 64)]}, "llama.attention.sliding_window is 64"),
        ({"more": [("add_logit_scale", 0.5)]}, "llama.logit_scale is 0.5"),
        (
            {"more": [("add_rope_dimension_count", 8), ("add_key_length", 16)]},
            "key_length 16, llama.rope.dimension_count 8; heads of several widths",
        ),
        ({"kv_heads": [2, 1]}, "head_count_kv differs from layer to layer ([2, 1])"),
        ({"heads": [4, 8]}, "head_count differs from layer to layer"),
        ({"kv_heads": 3}, "4 attention heads cannot share 3"),
        ({"heads": 0}, "num_attention_heads: a number was expected"),
        ({"eps": float("nan")}, "layer_norm_rms_epsilon: expected a finite number, got nan"),
        ({"theta": float("inf")}, "rope.freq_base: expected a finite number, got inf"),
        ({"theta": -1.0}, "rope_theta: a number was expected, above 0"),
        ({"drop": ["blk.1.ffn_up.weight"]}, "1 tensors are missing (first: blk.1.ffn_up.weight)"),
        ({"drop": ["token_embd.weight"]}, "(first: token_embd.weight); it may be one part"),
        ({"tokens": [*TOKENS[:-1], "th"]}, "a token occurs twice"),
        ({"types": [1]}, "but 1 token types"),
        ({"merges": ["t h", "the"]}, "the merge 'the' does not join two tokens into a third"),
        ({"merges": ["x y"]}, "the merge 'x y' does not join"),
        ({"eos": 999}, "eos_token_id is 999; it has"),
        ({"kind": GGMLQuantizationType.F32, "drop": ["output_norm.weight"]}, "output_norm.weight"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_cannot_be_imported_is_said(changes, message, tmp_path, capsys):
    write(tmp_path / "m.gguf", **changes)
    assert imported(tmp_path) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_a_tensor_of_another_shape_is_said(tmp_path, capsys):
    """The vocabulary is as long as the list of tokens; the embeddings are not."""
    write(tmp_path / "m.gguf", tokens=[*TOKENS, "more"], types=[3, 3] + [1] * (len(TOKENS) - 1))
    assert imported(tmp_path) == 2
    want = f"token_embd.weight has shape [{len(TOKENS)}, 64]; its fields make it"
    assert want in capsys.readouterr().err


def test_one_head_count_for_every_layer_may_be_listed(tmp_path):
    want = write(tmp_path / "m.gguf", kv_heads=[K] * LAYERS, heads=[H] * LAYERS)
    assert imported(tmp_path) == 0
    config = load_config(tmp_path / "out")
    assert (config.num_attention_heads, config.num_key_value_heads) == (H, K)
    got = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    assert (got[name].float() - want[name]).abs().max() < 0.02


def test_a_scaling_that_scales_nothing_is_none(tmp_path):
    write(tmp_path / "m.gguf", more=[("add_rope_scaling_type", RopeScalingType.NONE)])
    assert imported(tmp_path) == 0 and load_config(tmp_path / "out").rope_scaling is None


def test_places_that_cannot_be_written_are_said_before_the_file_is_read(
    tmp_path, capsys, monkeypatch
):
    write(tmp_path / "m.gguf")
    (tmp_path / "out").write_text("a file")
    monkeypatch.setattr(import_gguf, "Gguf", lambda path: pytest.fail("read"))
    assert imported(tmp_path) == 2
    assert "out: is a file; expected a directory" in capsys.readouterr().err
    below = str(tmp_path / "out" / "deep" / "er")
    assert import_gguf.main([str(tmp_path / "m.gguf"), below]) == 2
    assert "is not a directory to write in" in capsys.readouterr().err
    (tmp_path / "out").unlink()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert imported(tmp_path) == 2
    assert "out: cannot be made" in capsys.readouterr().err


def test_a_disk_that_is_full_is_said_first_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    write(tmp_path / "m.gguf")
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        patch.setattr(import_gguf, "weights_of", lambda *arguments: pytest.fail("read"))
        assert imported(tmp_path) == 2
    assert "MiB free; make room" in capsys.readouterr().err

    # The disk fills up while it is written.
    def full(*arguments, **options):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("model.tensors.save_file", full)
    arguments = [str(tmp_path / "m.gguf"), str(tmp_path / "new" / "out")]
    assert import_gguf.main(arguments) == 2
    assert "could not be written (No space left on device)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("count", [2**20, 2**40, 2**63, 2**64 - 1])
def test_counts_beyond_the_file_are_said_at_once(count, tmp_path, capsys):
    """Of tensors, of fields, of the first array's items: wherever it stands in the header."""
    write(tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    array = data.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8
    for place in (8, 16, array):
        broken = data[:place] + struct.pack("<Q", count) + data[place + 8 :]
        (tmp_path / "m.gguf").write_bytes(broken)
        assert imported(tmp_path) == 2
        assert "not a whole GGUF file" in capsys.readouterr().err


def test_a_file_cut_short_is_said(tmp_path, capsys):
    write(tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    for share in (0.02, 0.3, 0.9):
        (tmp_path / "cut.gguf").write_bytes(data[: int(share * len(data))])
        assert import_gguf.main([str(tmp_path / "cut.gguf"), str(tmp_path / "out")]) == 2
        assert "not a whole GGUF file" in capsys.readouterr().err


def test_importing_again_changes_nothing_and_force_replaces(tmp_path, capsys):
    write(tmp_path / "m.gguf")
    arguments = [str(tmp_path / "m.gguf"), str(tmp_path / "out")]
    import_gguf.main(arguments)
    before = (tmp_path / "out" / "config.json").stat().st_mtime_ns
    assert import_gguf.main(arguments) == 0 and "already imported" in capsys.readouterr().out
    assert (tmp_path / "out" / "config.json").stat().st_mtime_ns == before
    write(tmp_path / "m.gguf", tied=False)
    assert import_gguf.main(arguments) == 2 and "--force" in capsys.readouterr().err
    assert (
        import_gguf.main([*arguments, "--force"]) == 0
        and not load_config(tmp_path / "out").tie_word_embeddings
    )


def test_the_real_model(smollm2):
    config, raw = load_config(smollm2), json.loads((smollm2 / "config.json").read_text())
    assert (
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
    ) == (576, 30, 9, 3)
    assert (
        config.rope_theta == 1e5
        and config.tie_word_embeddings
        and raw["ecliptica_source"]["file"].endswith(".gguf")
    )
    assert "chat_template" in json.loads((smollm2 / "tokenizer_config.json").read_text())


@pytest.mark.peer
def test_transformers_reads_the_real_model_and_knows_paris(smollm2):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = (
        AutoTokenizer.from_pretrained(smollm2),
        AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32),
    )
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert "Paris" in tokenizer.decode(model.generate(ids, max_new_tokens=5, do_sample=False)[0])
