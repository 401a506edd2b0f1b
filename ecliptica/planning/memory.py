"""A training step on the meta device, counting the bytes that live: the model, the losses' path and
autograd as they are, no data.

What a step holds follows from the code that runs, so no formula can drift from it. Attention, which
chooses its kernel by device, is stood in for by shapes: what FlexAttention keeps (CUDA), or what
the padded attention keeps (CPU).
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ecliptica.data.packing import pack
from ecliptica.policy import Reference, adapter_off_reference, model_reference, response_rows
from ecliptica.recipe import Config
from ecliptica.schema import Encoded
from kernels.head import operator_bytes
from model.attention import PaddedPacked
from model.config import LlamaConfig
from model.llama import Llama
from model.lora import add_lora, lora_parameters

Spike = Callable[[Callable, tuple], int]  # (operation, its arguments) -> bytes inside itself


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make, while they live.

    known: tensors that are there before, and are not counted. spike: the bytes that an operation
    uses inside itself.
    """

    def __init__(self, known: Sequence[torch.Tensor], spike: Spike):
        super().__init__()
        self.now = 0
        self.peak = 0
        self.spike = spike
        self.replaced = set()
        self.seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        is_sum = function is torch.ops.aten.add.Tensor and in_backward()
        if is_sum and args[0].shape == args[1].shape:
            self._take_over(args[0].untyped_storage(), out.untyped_storage())
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        self.peak = max(self.peak, self.now + self.spike(function, args))
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key, size)

    def _take_over(self, old: torch.UntypedStorage, new: torch.UntypedStorage) -> None:
        """Autograd adds up gradients in place; under a dispatch mode it does not. Count the sum as
        what it is without one."""
        if old._cdata in self.seen and old.nbytes() == new.nbytes():
            self.seen.add(new._cdata)
            self.replaced.add(old._cdata)
            weakref.finalize(new, self._drop, new._cdata, new.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self.seen.discard(key)
        if key in self.replaced:
            self.replaced.discard(key)
        else:
            self.now -= size


def in_backward() -> bool:
    """Whether autograd is at work; a forward that it makes again has gradients enabled."""
    return torch._C._current_graph_task_id() != -1 and not torch.is_grad_enabled()


class FlexShapes(torch.autograd.Function):
    """Keeps what FlexAttention keeps: q, k, v, the result and a float32 log-sum-exp per query and
    head; its backward returns three gradients."""

    @staticmethod
    def forward(ctx, q_THE, k_TKE, v_TKE):
        out_THE = torch.empty_like(q_THE)
        lse_TH = q_THE.new_empty(q_THE.shape[:2], dtype=torch.float32)
        ctx.save_for_backward(q_THE, k_TKE, v_TKE, out_THE, lse_TH)
        return out_THE

    @staticmethod
    def backward(ctx, grad):
        q, k, v, _, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


class PaddedShapes(PaddedPacked):
    """The CPU's padded attention on meta tensors: indices from `real`, and the operator that SDPA
    comes to on a CPU."""

    def __init__(self, real: PaddedPacked):
        self.parts = [tuple(x if x is None else x.to("meta") for x in part) for part in real.parts]
        self.slot_T = real.slot_T.to("meta")

    @staticmethod
    def attend(q, k, v, mask):
        wide = None
        if mask is not None:  # the mask as it is added to the scores
            wide = torch.zeros(mask.shape, dtype=q.dtype, device="meta")
        attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return attention(q, k, v, 0.0, mask is None, attn_mask=wide)[0]


def meta_llama(
    shape: LlamaConfig, dtype: torch.dtype, stored: torch.dtype, config: Config
) -> Llama:
    """The policy on the meta device: parameters in `stored`, LoRA or all of it trained, as the run
    would have them."""
    with torch.device("meta"):
        model = Llama(shape, dtype)
    for p in model.parameters():
        p.data = p.data.to(stored)
    lora = config.lora
    if lora.rank:
        add_lora(model, lora.rank, lora.alpha, lora.targets, lora.dropout)
    else:
        model.requires_grad_(True)
    for block in model.model.layers:
        block.recompute = config.training.activation_checkpointing
    return model.train()


def peak(
    shape: LlamaConfig,
    config: Config,
    examples: Sequence[Encoded],
    reference: str,
    *,
    cpu: bool,
    keep_gradients: bool,
    sharded: bool,
) -> int:
    """Bytes beyond parameters and optimizer state that a micro-batch of `examples` holds at most:
    activations and the head's workspace.

    reference: "none", "adapter-off", "cache" or "model". keep_gradients: gradients too, as they
    come: the one micro-batch of a step. Otherwise each counts only until it is accumulated or
    handed to the reduce-scatter; what it is added to is the caller's to count.
    """
    dtype = getattr(torch, config.model.dtype)
    full = not config.lora.rank
    model = meta_llama(shape, dtype, torch.float32 if full and not sharded else dtype, config)
    frozen, of_reference = meta_reference(model, shape, config, reference, cpu)
    run_on_shapes(model, cpu)
    if not keep_gradients:
        for p in model.parameters():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))

    # Attention reads document and branch, so these two stay real.
    real = pack(examples)
    batch = replace(real.to("meta"), document_T=real.document_T, branch_T=real.branch_T)
    with LiveBytes([*model.parameters(), *of_reference], head_spike(cpu)) as live:
        rows = response_rows(model, batch, frozen)
        loss = rows.logp_R.sum()
        if rows.kl_R is not None:
            loss = loss + rows.kl_R.sum()
        loss.backward()
    return live.peak


def meta_reference(
    model: Llama, shape: LlamaConfig, config: Config, kind: str, cpu: bool
) -> tuple[Reference | None, list[torch.Tensor]]:
    """(the reference on shapes, the tensors that it holds all the time)."""
    dtype = getattr(torch, config.model.dtype)
    if kind == "adapter-off":
        return adapter_off_reference(model), []
    if kind == "model":
        with torch.device("meta"):
            second = Llama(shape, dtype).to(dtype).requires_grad_(False).eval()
        run_on_shapes(second, cpu)
        return model_reference(second), list(second.parameters())
    if kind != "cache":
        return None, []

    # Full fine-tuning moves the head, so the cache has the reference's own beside it.
    head_VD = None
    if not config.lora.rank:
        size = (shape.vocab_size, shape.hidden_size)
        head_VD = torch.empty(size, dtype=dtype, device="meta")

    def from_cache(batch):
        size = (batch.tokens_T.numel(), shape.hidden_size)
        return torch.zeros(size, dtype=dtype, device="meta"), head_VD

    return from_cache, [] if head_VD is None else [head_VD]


def run_on_shapes(model: Llama, cpu: bool) -> None:
    """Let forward_hidden run on shapes: the attention is stood in for."""
    forward = model.forward_hidden

    def flex_attention(layer, q, k, v):
        return FlexShapes.apply(q, k, v)

    def on_shapes(tokens_T, positions_T, attend):
        return forward(tokens_T, positions_T, PaddedShapes(attend) if cpu else flex_attention)

    model.forward_hidden = on_shapes


def head_spike(cpu: bool) -> Spike:
    """The buffers inside the fused head, by the functions that size them."""
    return lambda function, args: operator_bytes(str(function), args, cuda=not cpu)


def counts(shape: LlamaConfig, config: Config) -> dict[str, int]:
    """Parameters of one "block", of the "root" (norm and head; a tied embedding is the head), of an
    untied "embedding", of all LoRA layers ("lora") and of one block's ("lora_block")."""
    model = meta_llama(shape, torch.float32, torch.float32, config)
    lora = sum(p.numel() for _, p in lora_parameters(model))
    first = model.model.layers[0].named_parameters()
    embedding = model.model.embed_tokens.weight.numel()
    return {
        "block": sum(p.numel() for name, p in first if "lora_" not in name),
        "root": embedding + shape.hidden_size,
        "embedding": 0 if shape.tie_word_embeddings else embedding,
        "lora": lora,
        "lora_block": lora // shape.num_hidden_layers,
    }
