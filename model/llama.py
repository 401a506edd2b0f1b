"""LLaMA: RMSNorm, rotate-half RoPE, grouped-query attention, SwiGLU. Modules carry the Hugging Face tensor names.

Letters: T tokens (all documents of a packed batch in one row), D hidden, H heads, K kv heads, E head width, V vocabulary.
"""

import importlib.util
import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

TRITON = importlib.util.find_spec("triton") is not None  # it has no wheel for every platform
if TRITON:
    from kernels.rms_norm import rms_norm
    from kernels.swiglu import swiglu

RECOMPUTE = ("off", "selective", "full")  # what of a block's activations the backward makes again
KEPT = {  # by "selective": results of products and attention; norms, RoPE and SwiGLU are cheap to make again
    torch.ops.aten.mm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.higher_order.flex_attention,
}


def keep_products():
    """The contexts of selective activation checkpointing."""

    def policy(context, op, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE if op in KEPT else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def fused(x):
    """Who does RMSNorm and SwiGLU: our kernels in an eager block on CUDA. A block under torch.compile leaves both to the compiler, which joins
    them with their neighbours and would have to stop at an operator of ours. On a CPU it is torch."""
    return TRITON and x.is_cuda and not torch.compiler.is_compiling()


class Linear(nn.Module):
    """y = x W^T. The weight may be stored wider than it is used: float32 masters under a bfloat16 model."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x):
        weight = self.weight.to(x.dtype)
        return (
            rms_norm(x, weight, self.eps)
            if fused(x)
            else F.rms_norm(x, x.shape[-1:], weight, self.eps)
        )


class Embedding(nn.Module):
    def __init__(self, count, width):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))

    def forward(self, tokens_T):
        return F.embedding(tokens_T, self.weight)


def rope_frequencies(config, device=None):
    """Angles per position, float32 [E/2]; with `llama3` scaling long wavelengths are stretched by `factor`, middle ones in part."""
    E = config.head_dim
    freq = config.rope_theta ** (-torch.arange(0, E, 2, dtype=torch.float32, device=device) / E)
    if config.rope_scaling is None:
        return freq
    s = config.rope_scaling
    turns = (
        s["original_max_position_embeddings"] * freq / (2 * math.pi)
    )  # rotations over the original context
    keep = (turns - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"])
    keep = keep.clamp(0, 1)
    return keep * freq + (1 - keep) * freq / s["factor"]


def rotate(x_THE, cos_TE, sin_TE):
    """Rotate-half RoPE. The tables are float32; the product goes back to x's dtype."""
    first, second = x_THE.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x_THE * cos_TE[:, None] + turned * sin_TE[:, None]


class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        D, H, K, E = (
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.layer, self.E = layer, E
        self.q_proj, self.k_proj, self.v_proj = Linear(D, H * E), Linear(D, K * E), Linear(D, K * E)
        self.o_proj = Linear(H * E, D)

    def forward(self, x_TD, rope, attend):
        q, k, v = (
            proj(x_TD).unflatten(-1, (-1, self.E))
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        out_THE = attend(self.layer, rotate(q, *rope), rotate(k, *rope), v)
        return self.o_proj(out_THE.flatten(-2))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        D, F_ = config.hidden_size, config.intermediate_size
        self.gate_proj, self.up_proj, self.down_proj = Linear(D, F_), Linear(D, F_), Linear(F_, D)

    def forward(self, x):
        gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(swiglu(gate, up) if fused(x) else F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.recompute = "off"

    def forward(self, x, rope, attend):
        if self.recompute == "off" or not torch.is_grad_enabled():
            return self.run(x, rope, attend)
        context = {"context_fn": keep_products} if self.recompute == "selective" else {}
        return checkpoint(self.run, x, rope, attend, use_reentrant=False, **context)

    def run(self, x, rope, attend):
        x = x + self.self_attn(self.input_layernorm(x), rope, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Block(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Llama(nn.Module):
    """The whole model. `dtype` is what it computes in; parameters may be wider (see Linear)."""

    def __init__(self, config, dtype=torch.float32):
        super().__init__()
        self.config, self.dtype = config, dtype
        self.model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size)

    @property
    def head_weight_VD(self):
        """The LM head's weight as stored; the embedding itself when they are tied."""
        return (
            self.model.embed_tokens.weight
            if self.config.tie_word_embeddings
            else self.lm_head.weight
        )

    def forward_hidden(self, tokens_T, positions_T, attend):
        """Hidden states after the final norm, [T, D] in `dtype`: what the LM head multiplies.

        tokens_T, positions_T: int64; attend: see model/attention.py.
        """
        x_TD = self.model.embed_tokens(tokens_T).to(self.dtype)
        angle_TE = torch.outer(
            positions_T.float(), rope_frequencies(self.config, tokens_T.device)
        ).repeat(1, 2)
        rope = angle_TE.cos().to(self.dtype), angle_TE.sin().to(self.dtype)
        for block in self.model.layers:
            x_TD = block(x_TD, rope, attend)
        return self.model.norm(x_TD)

    def forward_logits(self, tokens_T, positions_T, attend):
        """Logits over the vocabulary, [T, V] in `dtype`. For generation and tests; scoring never builds them."""
        hidden_TD = self.forward_hidden(tokens_T, positions_T, attend)
        return F.linear(hidden_TD, self.head_weight_VD.to(hidden_TD.dtype))
