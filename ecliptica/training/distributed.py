"""Many processes as torchrun starts them: who is who, what they agree on, and how the model is sharded (FSDP2)."""

import ctypes
import os
import re
import signal
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from model.errors import InputError

TIMEOUT = timedelta(
    minutes=30
)  # a collective that nobody completes ends the run; the watch names the rank long before
STORE_TIMEOUT = timedelta(seconds=60)
LOST = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket|timed out", re.IGNORECASE
)


@dataclass(frozen=True)
class Ranks:
    """This process among `world`. Every method is a collective: all ranks call it, in the same order."""

    rank: int = 0
    world: int = 1
    local: int = 0  # which of its machine's

    @property
    def main(self):
        return self.rank == 0

    def gather(self, value):
        """[value of rank 0, value of rank 1, ...]"""
        if self.world == 1:
            return [value]
        values = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def reduce(self, values, how="sum"):
        """The element-wise sum or maximum over ranks of a list of numbers, in float64."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(list(values), dtype=torch.float64)
        dist.all_reduce(tensor, {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}[how])
        return tensor.tolist()

    def together(self, function, *args):
        """function(*args) on every rank. If it fails for one with what a user can mend, it fails for all, with the lowest rank's words."""
        value, error = None, None
        try:
            value = function(*args)
        except (InputError, OSError) as problem:
            if self.world == 1:
                raise
            error = problem
        said = [words for words in self.gather(_words(error)) if words]
        if said:
            raise self.agreed(said[0]) from error
        return value

    def agreed(self, message):
        """The InputError of something that every rank knows: rank 0 prints it."""
        error = InputError(message)
        error.elsewhere = not self.main
        return error

    def on_main(self, function, *args):
        """function(*args) on rank 0, its result on every rank."""
        return self.gather(self.together(lambda: function(*args) if self.main else None))[0]


ALONE = Ranks()


def _words(error):
    if isinstance(error, OSError):
        return f"{error.filename or 'input or output'}: {error.strerror or error}"
    return str(error) if error else None


@contextmanager
def joined():
    """The Ranks of this process: alone, or one of those that torchrun started."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield ALONE
        return
    end_with_torchrun()
    local = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise InputError(
                f"torchrun --nproc-per-node: this machine has {torch.cuda.device_count()} CUDA devices, but local rank {local} was started"
            )
        torch.cuda.set_device(local)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT
    )
    yield Ranks(int(os.environ["RANK"]), world, local)
    dist.destroy_process_group()  # not after an error: that would wait for ranks that may be gone


def end_with_torchrun():
    """torchrun starts its processes in sessions of their own: a kill -9 that takes torchrun would leave them training, and the run
    directory in use. Linux ends them with it; who starts after torchrun has gone finds its store gone, and ends too."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        try:
            dist.TCPStore(address, int(port), is_master=False, timeout=STORE_TIMEOUT)
        except dist.DistError as error:
            raise InputError(
                f"torchrun's store at {address}:{port} does not answer: torchrun has ended, or the network between the machines is closed"
            ) from error


def mesh(ranks, replicas, device):
    """replicas x (world / replicas): parameters are sharded along the second dimension and repeated along the first (HSDP)."""
    if ranks.world % replicas:
        raise ranks.agreed(
            f"training.replicas: {replicas} does not divide the {ranks.world} processes"
        )
    kind = torch.device(device).type
    if replicas == 1:
        return init_device_mesh(kind, (ranks.world,), mesh_dim_names=("shard",))
    return init_device_mesh(
        kind, (replicas, ranks.world // replicas), mesh_dim_names=("replicate", "shard")
    )


def shard(model, device_mesh, param_dtype=None):
    """FSDP2 over a model on the meta device: a unit for each block, one for an untied embedding, and the root: norm and head.

    The root stays gathered from its forward to the end of the backward, so the fused head reads a plain weight.
    param_dtype: what parameters are gathered in (None: as stored, which keeps LoRA's float32 beside a bfloat16 base);
    gradients are always reduced in float32.
    """
    policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32)
    units = [*model.model.layers] + (
        [] if model.config.tie_word_embeddings else [model.model.embed_tokens]
    )
    for unit in units:
        fully_shard(unit, mesh=device_mesh, mp_policy=policy, reshard_after_forward=True)
    fully_shard(model, mesh=device_mesh, mp_policy=policy, reshard_after_forward=False)
    register_fsdp_forward_method(model, "forward_hidden")
    return model


def settle(model):
    """After forwards without a backward: shard the root again, so that the model's parameters are the optimizer's."""
    if isinstance(model, FSDPModule):
        model.reshard()


def is_lost(error):
    """Whether a RuntimeError says that another rank went away, rather than that something is wrong here."""
    return bool(LOST.search(str(error)))
