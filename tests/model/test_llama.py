"""Logits against transformers, weights in and out, the packed layout against separate sequences."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import llama
from model.attention import FlexPacked, PaddedPacked, packed_attention, visible
from model.config import load_config
from model.files import replaced_directory
from model.llama import RECOMPUTE, rope_frequencies
from model.weights import INDEX, load_model, save_model
from tests.conftest import write_tiny


def logits(model, ids):
    tokens = torch.tensor(ids)
    nothing = torch.zeros_like(tokens)
    with torch.no_grad():
        return model.forward_logits(
            tokens, torch.arange(len(ids)), packed_attention(nothing, nothing)
        )


@pytest.mark.peer
@pytest.mark.parametrize(
    "kind", ["smollm2", "untied, llama3 RoPE", "tied", "plain RoPE", "sharded"]
)
def test_logits_equal_transformers(kind, smollm2, tmp_path):
    from transformers import LlamaForCausalLM

    path = smollm2
    if kind != "smollm2":
        changes = {"tied": {"tie_word_embeddings": True}, "plain RoPE": {"rope_scaling": None}}.get(
            kind, {}
        )
        path = write_tiny(tmp_path / "tiny", smollm2, **changes)
    if kind == "sharded":
        path = tmp_path / "sharded"
        path.mkdir()
        save_model(
            load_model(tmp_path / "tiny"),
            path,
            tmp_path / "tiny",
            torch.float32,
            shard_bytes=1 << 20,
        )
        assert len(json.loads((path / INDEX).read_text())["weight_map"]) == 21
    ids = torch.randint(0, 49152, (150,), generator=torch.Generator().manual_seed(0)).tolist()
    peer = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        want = peer(torch.tensor([ids])).logits[0]
    got = logits(load_model(path), ids)
    assert (got - want).abs().max() <= 1e-5 * (want.max() - want.min())


@pytest.mark.peer
def test_transformers_loads_what_we_save(tiny, tmp_path):
    from transformers import LlamaForCausalLM

    save_model(load_model(tiny), tmp_path, tiny, torch.float32)
    peer = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    stored = load_file(tiny / "model.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in peer.state_dict().items())


def test_llama3_frequencies_by_the_definition(tiny):
    """Each wavelength by its own rule: short ones kept, long ones divided, some in between."""
    config = load_config(tiny)
    s = config.rope_scaling
    for i, got in enumerate(rope_frequencies(config).double()):
        freq = config.rope_theta ** (-2 * i / config.head_dim)
        wavelength, original = 2 * torch.pi / freq, s["original_max_position_embeddings"]
        if wavelength < original / s["high_freq_factor"]:
            want = freq
        elif wavelength > original / s["low_freq_factor"]:
            want = freq / s["factor"]
        else:
            smooth = (original / wavelength - s["low_freq_factor"]) / (
                s["high_freq_factor"] - s["low_freq_factor"]
            )
            want = (1 - smooth) * freq / s["factor"] + smooth * freq
        assert abs(got - want) < 1e-6 * want


LAYOUT = (torch.tensor([0] * 9 + [1] * 5), torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 3, 0, 0, 1, 2, 2]))


@pytest.mark.parametrize("head", [0, 4])
@pytest.mark.parametrize("strategy", [PaddedPacked, FlexPacked])
def test_attention_sees_the_prompt_and_its_own_branch_only(strategy, head):
    """And the head that all prompts of the batch begin with."""
    document_T = torch.cat((torch.full((head,), -1), LAYOUT[0]))
    branch_T = torch.cat((torch.zeros(head, dtype=torch.int64), LAYOUT[1]))
    T = 14 + head
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(T, heads, 16, generator=g) for heads in (4, 2, 2))
    got = strategy(document_T, branch_T)(0, q, k, v)
    mask = visible(document_T, branch_T, torch.arange(T)[:, None], torch.arange(T)[None])
    runs = sum(3 * b + n for b, n in ((0, 6), (2, 3), (3, 6), (1, 1))) + 3 + 3 + 7
    assert mask.sum() == runs + 14 * head + head * (head + 1) // 2
    for head in range(4):
        scores = (q[:, head].double() @ k[:, head // 2].double().T) / 4
        want = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v[:, head // 2].double()
        assert (got[:, head] - want).abs().max() < 1e-5


def test_activation_recomputation_changes_nothing(tiny):
    gradients = []
    for recompute in RECOMPUTE:
        model = load_model(tiny).requires_grad_(True)
        for block in model.model.layers:
            block.recompute = recompute
        tokens = torch.arange(5, 25)
        nothing = torch.zeros_like(tokens)
        model.forward_hidden(
            tokens, torch.arange(20), packed_attention(nothing, nothing)
        ).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    off, *others = gradients
    assert len(off) == 20 and all(torch.equal(a, b) for other in others for a, b in zip(off, other))


class OnCuda:
    is_cuda = True


def test_who_does_rms_norm_and_swiglu():
    """An eager block on CUDA: our kernels. A compiled one: the compiler. A CPU: torch."""
    assert llama.fused(OnCuda()) and not llama.fused(torch.zeros(1))
    compiled = torch.compile(
        lambda x, zero: zero + (1 if llama.fused(x) else 2), fullgraph=True, backend="eager"
    )
    assert compiled(OnCuda(), torch.zeros(())) == 2


@pytest.mark.skipif(
    torch.cuda.is_available(),
    reason="the interpreter is for machines without CUDA; test_layers_gpu.py has the same there",
)
@pytest.mark.parametrize(
    "recompute, dtype, limit",
    [*((name, torch.float32, 1e-5) for name in RECOMPUTE), ("off", torch.float16, 2e-2)],
    ids=str,
)
def test_the_kernels_and_torch_give_one_model(recompute, dtype, limit, tiny, monkeypatch):
    """What an eager model does on CUDA, here in Triton's interpreter."""
    hidden, gradients, calls = [], [], []
    rms_norm = llama.rms_norm
    monkeypatch.setattr(
        llama, "rms_norm", lambda *arguments: calls.append(1) or rms_norm(*arguments)
    )
    for ours in (False, True):
        monkeypatch.setattr(llama, "fused", lambda x, ours=ours: ours)
        model = load_model(tiny, dtype, param_dtype=torch.float32).requires_grad_(True)
        for block in model.model.layers:
            block.recompute = recompute
        tokens = torch.arange(5, 9)
        nothing = torch.zeros_like(tokens)
        hidden.append(
            model.forward_hidden(tokens, torch.arange(4), packed_attention(nothing, nothing))
        )
        hidden[-1].float().square().mean().backward()
        gradients.append(
            {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        )
    assert len(calls) == (
        5 if recompute == "off" else 9
    )  # two blocks of two, and the last norm; again in the backward
    assert (
        hidden[1].dtype == dtype
        and (hidden[1] - hidden[0]).abs().max() <= limit * hidden[0].abs().max()
    )
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) == 20
    for name, want in gradients[0].items():
        assert (gradients[1][name] - want).abs().max() <= 10 * limit * want.abs().max(), name


def test_loading_keeps_one_copy_and_the_stored_values(tiny):
    model = load_model(tiny, torch.bfloat16, param_dtype=torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(
        torch.equal(p, load_file(tiny / "model.safetensors")[n])
        for n, p in model.named_parameters()
    )
    hidden = logits(model, [5, 6, 7])
    assert hidden.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "breakage, message",
    [
        (lambda t: t.pop("model.norm.weight"), "1 missing .first: model.norm.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "not of this model .first: extra"),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(47)}),
            r"model.norm.weight has shape \[47\]; config.json makes it \[48\]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(breakage, message, tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    breakage(tensors)
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "m")


def test_a_directory_is_replaced_whole_or_not_at_all(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").touch()
    with pytest.raises(RuntimeError), replaced_directory(tmp_path / "d") as new:
        (new / "half").touch()
        raise RuntimeError
    assert [p.name for p in tmp_path.rglob("*")] == ["d", "old"]
    with replaced_directory(tmp_path / "d") as new:
        (new / "whole").touch()
    assert [p.name for p in tmp_path.rglob("*")] == ["d", "whole"]
