"""Tiny random models of every family, for tests of all folders."""

from tests.conftest import write_tiny

# What makes the tiny LLaMA one of another family; each with a setting or two of its own kind.
FAMILY_SETTINGS = {
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "head_dim": None,
        "rope_scaling": None,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": 32,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 20,
        "rope_scaling": None,
        "layer_types": ["full_attention", "full_attention"],
    },
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "head_dim": 8,
        "rope_scaling": None,
        "sliding_window": None,
    },
}


def write_family(path, smollm2, family):
    """A tiny random model of a family in `path`."""
    settings = {key: value for key, value in FAMILY_SETTINGS[family].items() if key != "head_dim"}
    width = FAMILY_SETTINGS[family]["head_dim"] or 12
    return write_tiny(path, smollm2, head_dim=width, **settings)


def peer_model(path):
    """transformers' own class for a directory, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
