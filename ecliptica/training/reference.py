"""Which frozen reference a run has."""

import torch

from ecliptica.policy import adapter_off_reference, model_reference
from model.lora import load_adapter, merge_lora
from model.weights import load_model


def base_model(config, device, param_dtype=None):
    """The model that training starts from: model.path, with model.adapter merged in if there is one."""
    model = load_model(config.path, getattr(torch, config.dtype), device, param_dtype)
    return merge_lora(load_adapter(model, config.adapter)) if config.adapter else model


def build(config, model, device):
    """The reference function of policy.score: adapters off, or a second copy of the starting model."""
    kind = config.training.reference
    if kind == "auto":
        kind = "adapter-off" if config.lora.rank else "model"
    return adapter_off_reference(model) if kind == "adapter-off" else model_reference(base_model(config.model, device))
