"""A training step on the meta device, counting the bytes that live: the model, the losses' path and autograd as they are, no data.

What a step holds follows from the code that runs, so no formula can drift from it. Attention, which chooses its kernel by device, is
stood in for by shapes: what FlexAttention keeps (CUDA), or what the padded attention keeps (CPU).
"""

import weakref
from dataclasses import replace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ecliptica.data.packing import pack
from ecliptica.policy import adapter_off_reference, model_reference, score
from kernels.head import operator_bytes
from model.attention import PaddedPacked
from model.llama import Llama
from model.lora import add_lora, lora_parameters


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make, while they live. `spike(op, args)`: bytes that an operation uses inside itself."""

    def __init__(self, known, spike):
        super().__init__()
        self.now, self.peak, self.spike, self.replaced = 0, 0, spike, set()
        self.seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if (
            function is torch.ops.aten.add.Tensor
            and in_backward()
            and args[0].shape == args[1].shape
        ):
            self._take_over(args[0].untyped_storage(), out.untyped_storage())
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        self.peak = max(self.peak, self.now + self.spike(function, args))
        return out

    def _note(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key, size)

    def _take_over(self, old, new):
        """Autograd adds up gradients in place; under a dispatch mode it does not. Count the sum as what it is without one."""
        if old._cdata in self.seen and old.nbytes() == new.nbytes():
            self.seen.add(new._cdata)
            self.replaced.add(old._cdata)
            weakref.finalize(new, self._drop, new._cdata, new.nbytes())

    def _drop(self, key, size):
        self.seen.discard(key)
        if key in self.replaced:
            self.replaced.discard(key)
        else:
            self.now -= size


def in_backward():
    return (
        torch._C._current_graph_task_id() != -1 and not torch.is_grad_enabled()
    )  # recomputed forwards have gradients enabled


class FlexShapes(torch.autograd.Function):
    """Keeps what FlexAttention keeps: q, k, v, the result and a float32 log-sum-exp per query and head; its backward returns three gradients."""

    @staticmethod
    def forward(ctx, q_THE, k_TKE, v_TKE):
        out_THE = torch.empty_like(q_THE)
        ctx.save_for_backward(
            q_THE, k_TKE, v_TKE, out_THE, q_THE.new_empty(q_THE.shape[:2], dtype=torch.float32)
        )
        return out_THE

    @staticmethod
    def backward(ctx, grad):
        q, k, v, _, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


class PaddedShapes(PaddedPacked):
    """The CPU's padded attention on meta tensors: indices from `real`, and the operator that SDPA comes to on a CPU."""

    def __init__(self, real):
        self.parts = [tuple(x if x is None else x.to("meta") for x in part) for part in real.parts]
        self.slot_T = real.slot_T.to("meta")

    @staticmethod
    def attend(q, k, v, mask):
        wide = (
            None if mask is None else torch.zeros(mask.shape, dtype=q.dtype, device="meta")
        )  # the mask as it is added to the scores
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, mask is None, attn_mask=wide
        )[0]


def meta_llama(shape, dtype, stored, config):
    """The policy on the meta device: parameters in `stored`, LoRA or all of it trained, as the run would have them."""
    with torch.device("meta"):
        model = Llama(shape, dtype)
    for p in model.parameters():
        p.data = p.data.to(stored)
    if config.lora.rank:
        add_lora(
            model, config.lora.rank, config.lora.alpha, config.lora.targets, config.lora.dropout
        )
    else:
        model.requires_grad_(True)
    for block in model.model.layers:
        block.recompute = config.training.activation_checkpointing
    return model.train()


def peak(shape, config, examples, reference, cpu, keep_gradients, sharded):
    """Bytes beyond parameters and optimizer state that a micro-batch of `examples` holds at most: activations and the head's workspace.

    keep_gradients: gradients too, as they come: the one micro-batch of a step. Otherwise each counts only until it is accumulated
    or handed to the reduce-scatter; what it is added to is the caller's to count.
    """
    dtype = getattr(torch, config.model.dtype)
    full = not config.lora.rank
    model = meta_llama(shape, dtype, torch.float32 if full and not sharded else dtype, config)
    known = list(model.parameters())
    if reference == "adapter-off":
        frozen = adapter_off_reference(model)
    elif reference == "model":
        with torch.device("meta"):
            second = Llama(shape, dtype).to(dtype).requires_grad_(False).eval()
        known += second.parameters()
        run_meta(second, cpu)
        frozen = model_reference(second)
    elif reference == "cache":
        head_VD = (
            None
            if not full
            else torch.empty(shape.vocab_size, shape.hidden_size, dtype=dtype, device="meta")
        )
        known += [head_VD] if full else []
        frozen = lambda batch: (
            torch.zeros(batch.tokens_T.numel(), shape.hidden_size, dtype=dtype, device="meta"),
            head_VD,
        )
    else:
        frozen = None
    run_meta(model, cpu)
    if not keep_gradients:
        for p in model.parameters():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    real = pack(examples)
    batch = replace(
        real.to("meta"), document_T=real.document_T, branch_T=real.branch_T
    )  # attention reads these two
    with LiveBytes(known, head_spike(cpu)) as live:
        stats = score(model, batch, frozen)
        (
            stats.logp_S.sum() if stats.kl_S is None else stats.logp_S.sum() + stats.kl_S.sum()
        ).backward()
    return live.peak


def run_meta(model, cpu):
    """Let forward_hidden run on shapes: the attention is stood in for."""
    forward = model.forward_hidden

    def on_shapes(tokens_T, positions_T, attend):
        stand_in = (
            PaddedShapes(attend) if cpu else (lambda layer, q, k, v: FlexShapes.apply(q, k, v))
        )
        return forward(tokens_T, positions_T, stand_in)

    model.forward_hidden = on_shapes


def head_spike(cpu):
    """The buffers inside the fused head, by the functions that size them."""
    return lambda function, args: operator_bytes(str(function), args, cuda=not cpu)


def counts(shape, config):
    """{"block": n, "root": n, "embedding": n, "lora": n, "lora_block": n}: parameters of one block, of norm and head (a tied embedding
    is the head), of an untied embedding, of all LoRA layers, of one block's."""
    model = meta_llama(shape, torch.float32, torch.float32, config)
    lora = sum(p.numel() for _, p in lora_parameters(model))
    block = sum(p.numel() for n, p in model.model.layers[0].named_parameters() if "lora_" not in n)
    embedding = model.model.embed_tokens.weight.numel()
    tied = shape.tie_word_embeddings
    return {
        "block": block,
        "root": embedding + shape.hidden_size,
        "embedding": 0 if tied else embedding,
        "lora": lora,
        "lora_block": lora // shape.num_hidden_layers,
    }
