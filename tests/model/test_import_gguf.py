"""GGUF import: synthetic files whose content is known, and the real one."""

import json

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
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
    """llama.cpp's order: within each head, rotate-half pairs (i, i + E/2) become neighbours (2i, 2i + 1)."""
    out = np.empty_like(weight)
    for h in range(heads):
        for i in range(E // 2):
            for half in range(2):
                out[h * E + 2 * i + half] = weight[h * E + half * (E // 2) + i]
    return out


def write(path, kind=GGMLQuantizationType.F16, tied=True, **changes):
    """A tiny llama GGUF; returns the Hugging Face tensors it holds."""
    g = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (len(TOKENS), D), "model.norm.weight": (D,)} | (
        {} if tied else {"lm_head.weight": (len(TOKENS), D)}
    )
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
    tensors = {name: g.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    writer = GGUFWriter(path, changes.get("architecture", "llama"))
    (
        writer.add_embedding_length(D),
        writer.add_feed_forward_length(F),
        writer.add_block_count(LAYERS),
        writer.add_context_length(512),
    )
    (
        writer.add_head_count(H),
        writer.add_head_count_kv(K),
        writer.add_layer_norm_rms_eps(1e-5),
        writer.add_rope_freq_base(10000.0),
    )
    (
        writer.add_tokenizer_model(changes.get("tokenizer", "gpt2")),
        writer.add_tokenizer_pre(changes.get("pre", "smollm")),
    )
    (
        writer.add_token_list(TOKENS),
        writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2)),
        writer.add_token_merges(["t h", "th e"]),
    )
    writer.add_bos_token_id(0), writer.add_eos_token_id(0)
    if "freqs" in changes:
        writer.add_tensor("rope_freqs.weight", changes["freqs"])
    back = {v: k for k, v in gguf_model.NAMES.items()}
    top = {v: k for k, v in gguf_model.TOP.items()}
    for name, value in tensors.items():
        part = name.split(".", 3)
        stored = top.get(name) or f"blk.{part[2]}.{back[part[3].removesuffix('.weight')]}.weight"
        heads = {"attn_q": H, "attn_k": K}.get(stored.split(".")[-2])
        value = interleaved(value, heads) if heads else value
        if value.ndim == 1:
            writer.add_tensor(stored, value)
        else:
            writer.add_tensor(stored, quantize(value, kind), raw_dtype=kind)
    (
        writer.write_header_to_file(),
        writer.write_kv_data_to_file(),
        writer.write_tensors_to_file(),
        writer.close(),
    )
    return {name: torch.from_numpy(value) for name, value in tensors.items()}


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


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"architecture": "gemma"}, "architecture 'gemma'; only 'llama'"),
        ({"pre": "deepseek"}, "pre-tokenizer 'deepseek'"),
        ({"tokenizer": "llama"}, "give --tokenizer tokenizer.model"),
        ({"freqs": np.linspace(1, 3, E // 2, dtype=np.float32)}, "is not Llama-3.1's scaling"),
    ],
)
def test_what_cannot_be_imported_is_said(changes, message, tmp_path, capsys):
    write(tmp_path / "m.gguf", **changes)
    assert import_gguf.main([str(tmp_path / "m.gguf"), str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1] and not (tmp_path / "out").exists()


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
