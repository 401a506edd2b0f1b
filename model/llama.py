"""LLaMA: RMSNorm, rotate-half RoPE, grouped-query attention, SwiGLU. Hugging Face tensor names.

With a bias on q, k and v it is Qwen2, with a norm on q and k Qwen3 (model/families.py).

Letters: T tokens (all documents of a packed batch in one row), D hidden, I inner width of the MLP,
H heads, K kv heads, E head width, V vocabulary.
"""

import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from model import cpu_layers
from model.attention import Attend
from model.config import LlamaConfig
from model.lora_shared import LowRank, shared_products

TRITON = importlib.util.find_spec("triton") is not None  # it has no wheel for every platform
if TRITON:
    from kernels.rms_norm import rms_norm
    from kernels.rope import rope as turn
    from kernels.swiglu import swiglu

RECOMPUTE = ("off", "selective", "full")  # what of a block's activations the backward makes again

Rope = tuple[torch.Tensor, torch.Tensor]  # cos and sin of every position, [T, E] each
Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # q [T, H, E], k and v [T, K, E]


def keep_products() -> tuple[Any, Any]:
    """The contexts of selective activation checkpointing: results of products are kept.

    Norms, RoPE and SwiGLU are cheap to make again, and so is what a matrix is added to: a low-rank
    update that joins the layer's own product, or a merged weight.
    """

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        plain = op is torch.ops.aten.mm.default
        with_bias = op is torch.ops.aten.addmm.default and args[0].dim() == 1
        if plain or with_bias:
            return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def fused(x: torch.Tensor) -> bool:
    """Whether RMSNorm, RoPE and SwiGLU are our kernels': in an eager block on CUDA.

    A block under torch.compile leaves them to the compiler, which joins them with their neighbours
    and would have to stop at an operator of ours. On a CPU they are model/cpu_layers.py's where
    that suits, else torch's.
    """
    return TRITON and x.is_cuda and not torch.compiler.is_compiling()


@dataclass
class Active:
    """Which of a model's adapters it computes with: one object that all of its layers look at."""

    name: str | None = None  # None: none, the base alone

    @contextmanager
    def switched(self, name: str | None) -> Iterator[None]:
        """Inside the block it is `name`."""
        before = self.name
        self.name = name
        try:
            yield
        finally:
            self.name = before


class Linear(nn.Module):
    """y = x W^T, or x W^T + b.

    Both may be stored wider than they are used: float32 masters under bfloat16.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = None
        if bias:
            self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., inputs] -> [..., outputs]."""
        bias = self.bias
        if bias is not None:
            bias = bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)

    def low_rank(self, x: torch.Tensor) -> LowRank | None:
        """Its low-rank update: it has none (model/lora_layer.py)."""
        return None


def project(layers: Sequence[nn.Module], x: torch.Tensor) -> list[torch.Tensor]:
    """One input through several linear layers; low-rank updates share what they can."""
    updates = [layer.low_rank(x) for layer in layers]
    shared = [update for update in updates if update is not None]
    if len(shared) < 2:
        return [layer(x) for layer in layers]
    results = iter(shared_products(x, shared))
    return [layer(x) if update is None else next(results) for layer, update in zip(layers, updates)]


class RMSNorm(nn.Module):
    """x / rms(x) * weight, over the last dimension."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., width] -> the same."""
        weight = self.weight.to(x.dtype)
        if fused(x):
            return rms_norm(x, weight, self.eps)
        if cpu_layers.suits(x):
            return cpu_layers.rms_norm(x, weight, self.eps)
        return F.rms_norm(x, x.shape[-1:], weight, self.eps)


class Embedding(nn.Module):
    """A row of the weight a token."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))

    def forward(self, tokens_T: torch.Tensor) -> torch.Tensor:
        """[T] -> [T, width]."""
        return F.embedding(tokens_T, self.weight)


def rope_frequencies(config: LlamaConfig, device: torch.device | None = None) -> torch.Tensor:
    """Angles per position, float32 [E/2].

    With `llama3` scaling long wavelengths are stretched by `factor`, middle ones in part.
    """
    E = config.head_dim
    freq = config.rope_theta ** (-torch.arange(0, E, 2, dtype=torch.float32, device=device) / E)
    scaling = config.rope_scaling
    if scaling is None:
        return freq

    # Rotations over the original context tell short wavelengths (kept) from long ones (stretched).
    turns = scaling["original_max_position_embeddings"] * freq / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return keep * freq + (1 - keep) * freq / scaling["factor"]


def rope_tables(positions_T: torch.Tensor, frequencies: torch.Tensor, dtype: torch.dtype) -> Rope:
    """cos and sin of every position's angles, computed in float32, [T, E] each in `dtype`."""
    angle_TE = torch.outer(positions_T.float(), frequencies).repeat(1, 2)
    return angle_TE.cos().to(dtype), angle_TE.sin().to(dtype)


def rotate(x_THE: torch.Tensor, cos_TE: torch.Tensor, sin_TE: torch.Tensor) -> torch.Tensor:
    """Rotate-half RoPE of every head, [T, H, E]."""
    if fused(x_THE):
        return turn(x_THE, cos_TE, sin_TE)
    if cpu_layers.suits(x_THE):
        return cpu_layers.rotate(x_THE, cos_TE, sin_TE)
    first, second = x_THE.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x_THE * cos_TE[:, None] + turned * sin_TE[:, None]


class Attention(nn.Module):
    """Grouped-query attention: what stands before and after `attend` (model/attention.py), whose
    business it is who sees whom."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        D, E = config.hidden_size, config.head_dim
        H, K = config.num_attention_heads, config.num_key_value_heads
        self.layer = layer
        self.E = E
        self.q_proj = Linear(D, H * E, config.qkv_bias)
        self.k_proj = Linear(D, K * E, config.qkv_bias)
        self.v_proj = Linear(D, K * E, config.qkv_bias)
        self.o_proj = Linear(H * E, D)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm = RMSNorm(E, config.rms_norm_eps)
            self.k_norm = RMSNorm(E, config.rms_norm_eps)

    def heads(self, x_TD: torch.Tensor, rope: Rope) -> Heads:
        """q, k and v of every token, q and k turned to their positions."""
        of_heads = project((self.q_proj, self.k_proj, self.v_proj), x_TD)
        q_THE, k_TKE, v_TKE = (y.unflatten(-1, (-1, self.E)) for y in of_heads)
        if self.q_norm is not None:
            q_THE = self.q_norm(q_THE)
            k_TKE = self.k_norm(k_TKE)
        return rotate(q_THE, *rope), rotate(k_TKE, *rope), v_TKE

    def joined(self, out_THE: torch.Tensor) -> torch.Tensor:
        """What the heads found, [T, H, E], as one vector a token, [T, D]."""
        return self.o_proj(out_THE.flatten(-2))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        D, I = config.hidden_size, config.intermediate_size
        self.gate_proj = Linear(D, I)
        self.up_proj = Linear(D, I)
        self.down_proj = Linear(I, D)

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        """[T, D] -> [T, D]."""
        gate_TI, up_TI = project((self.gate_proj, self.up_proj), x_TD)
        if fused(x_TD):
            inner_TI = swiglu(gate_TI, up_TI)
        elif cpu_layers.suits(x_TD):
            inner_TI = cpu_layers.swiglu(gate_TI, up_TI)
        else:
            inner_TI = F.silu(gate_TI) * up_TI
        return self.down_proj(inner_TI)


class Block(nn.Module):
    """One layer: attention and MLP, each on a normed input and added to the residual stream."""

    def __init__(self, config: LlamaConfig, layer: int, active: Active) -> None:
        super().__init__()
        self.active = active
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.recompute = "off"  # one of RECOMPUTE

    def forward(self, x_TD: torch.Tensor, rope: Rope, attend: Attend) -> torch.Tensor:
        """[T, D] -> [T, D], keeping for the backward what `recompute` says."""
        if self.recompute == "off" or not torch.is_grad_enabled():
            return self.run(x_TD, rope, attend)
        if self.recompute == "full":
            return checkpoint(self.again(self.run), x_TD, rope, attend, use_reentrant=False)

        # Attention stands between two checkpoints, in none: it keeps what its own backward needs,
        # and is never run again. A policy would not see it inside a compiled FlexAttention.
        options = {"use_reentrant": False, "context_fn": keep_products}
        q_THE, k_TKE, v_TKE = checkpoint(self.again(self.before_attention), x_TD, rope, **options)
        out_THE = attend(self.self_attn.layer, q_THE, k_TKE, v_TKE)
        return checkpoint(self.again(self.after_attention), x_TD, out_THE, **options)

    def again(self, function: Callable) -> Callable:
        """`function`, which the backward computes again with the adapter that is active now."""
        if torch.compiler.is_compiling():
            return function
        return partial(self.with_adapter, self.active.name, function)

    def with_adapter(self, adapter: str | None, function: Callable, *args: Any) -> Any:
        """function(*args), computed with an adapter."""
        with self.active.switched(adapter):
            return function(*args)

    def run(self, x_TD: torch.Tensor, rope: Rope, attend: Attend) -> torch.Tensor:
        """The layer itself."""
        q_THE, k_TKE, v_TKE = self.before_attention(x_TD, rope)
        out_THE = attend(self.self_attn.layer, q_THE, k_TKE, v_TKE)
        return self.after_attention(x_TD, out_THE)

    def before_attention(self, x_TD: torch.Tensor, rope: Rope) -> Heads:
        """What attention is given."""
        return self.self_attn.heads(self.input_layernorm(x_TD), rope)

    def after_attention(self, x_TD: torch.Tensor, out_THE: torch.Tensor) -> torch.Tensor:
        """The residual stream with the attention's result and then the MLP's."""
        x_TD = x_TD + self.self_attn.joined(out_THE)
        return x_TD + self.mlp(self.post_attention_layernorm(x_TD))


class Decoder(nn.Module):
    """Embedding, layers and last norm, under the name that their tensors have in files."""

    def __init__(self, config: LlamaConfig, active: Active) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Block(config, layer, active) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Llama(nn.Module):
    """The whole model. `dtype` is what it computes in; parameters may be wider (see Linear)."""

    def __init__(self, config: LlamaConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.active = Active()  # adapters are in model/lora.py
        self.model = Decoder(config, self.active)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size)
        # Values or rewards, by the name of their adapter (model/scalar_head.py); no part of files.
        self.scalar_heads = nn.ModuleDict()

    @property
    def head_weight_VD(self) -> torch.Tensor:
        """The LM head's weight as stored; the embedding itself when they are tied."""
        if self.config.tie_word_embeddings:
            return self.model.embed_tokens.weight
        return self.lm_head.weight

    def forward_hidden(
        self, tokens_T: torch.Tensor, positions_T: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        """Hidden states after the final norm, [T, D] in `dtype`: what the LM head multiplies.

        tokens_T, positions_T: int64; attend: see model/attention.py.
        """
        frequencies = rope_frequencies(self.config, tokens_T.device)
        x_TD = self.model.embed_tokens(tokens_T).to(self.dtype)
        rope = rope_tables(positions_T, frequencies, self.dtype)
        for block in self.model.layers:
            x_TD = block(x_TD, rope, attend)
        return self.model.norm(x_TD)

    def forward_logits(
        self, tokens_T: torch.Tensor, positions_T: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        """Logits over the vocabulary, [T, V] in `dtype`.

        For generation and tests; scoring never builds them.
        """
        hidden_TD = self.forward_hidden(tokens_T, positions_T, attend)
        return F.linear(hidden_TD, self.head_weight_VD.to(hidden_TD.dtype))
