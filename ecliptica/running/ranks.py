"""Many processes as torchrun starts them: who is who, and what they agree on."""

import ctypes
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from model.errors import InputError, Stopped

Result = TypeVar("Result")

# A collective that nobody completes ends the run. The heartbeat ends it long before if a rank is
# gone; this is for one that lives and does not come.
TIMEOUT = timedelta(minutes=10)
STORE_TIMEOUT = timedelta(seconds=60)
LOST = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket|timed out", re.IGNORECASE
)
REDUCTIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Ranks:
    """This process among `world`. Every method is a collective: all ranks call it, in order."""

    rank: int = 0
    world: int = 1
    local: int = 0  # which of its machine's

    @property
    def main(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """[value of rank 0, value of rank 1, ...]"""
        if self.world == 1:
            return [value]
        values = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def reduce(self, values: Iterable[float], how: str = "sum") -> list[float]:
        """The element-wise sum or maximum ("max") over ranks of a list of numbers, in float64."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(list(values), dtype=torch.float64)
        dist.all_reduce(tensor, REDUCTIONS[how])
        return tensor.tolist()

    def together(self, function: Callable[..., Result], *args: Any) -> Result:
        """function(*args) on every rank.

        If it fails for one with what a user can mend, it fails for all, with the lowest rank's
        words.
        """
        value, failure = None, None
        try:
            value = function(*args)
        except (InputError, OSError) as error:
            if self.world == 1:
                raise
            failure = error
        words = [line for line in self.gather(_in_words(failure)) if line]
        if words:
            raise self.agreed(words[0]) from failure
        return value

    def agreed(self, message: str) -> InputError:
        """The InputError of something that every rank knows: rank 0 prints it."""
        return InputError(message, elsewhere=not self.main)

    def on_main(self, function: Callable[..., Result], *args: Any) -> Result:
        """function(*args) on rank 0, its result on every rank."""

        def only_there():
            return function(*args) if self.main else None

        return self.gather(self.together(only_there))[0]


ALONE = Ranks()


def _in_words(error: Exception | None) -> str | None:
    if isinstance(error, OSError):
        return f"{error.filename or 'input or output'}: {error.strerror or error}"
    return str(error) if error else None


@contextmanager
def joined() -> Iterator[Ranks]:
    """The Ranks of this process: alone, or one of those that torchrun started."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield ALONE
        return
    end_with_torchrun()
    local = int(os.environ["LOCAL_RANK"])
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        _take_device(local)
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield Ranks(int(os.environ["RANK"]), world, local)
    except Stopped:  # all ranks stop, so they can part in order
        dist.destroy_process_group()
        raise
    # Not after another error: that would wait for ranks that may be gone.
    dist.destroy_process_group()


def _take_device(local: int) -> None:
    """One CUDA device for each process of a machine."""
    devices = torch.cuda.device_count()
    if local >= devices:
        raise InputError(
            f"torchrun --nproc-per-node: this machine has {devices} CUDA devices, "
            f"but local rank {local} was started"
        )
    torch.cuda.set_device(local)


def end_with_torchrun() -> None:
    """Let this process end when torchrun does.

    torchrun starts its processes in sessions of their own: a kill -9 that takes torchrun would
    leave them training, and the run directory in use. Linux ends them with it; a process that
    starts after torchrun has gone finds its store gone, and ends too.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    try:
        dist.TCPStore(address, int(port), is_master=False, timeout=STORE_TIMEOUT)
    except dist.DistError as error:
        raise InputError(
            f"torchrun's store at {address}:{port} does not answer: torchrun has ended, "
            "or the network between the machines is closed"
        ) from error


def is_lost(error: RuntimeError) -> bool:
    """Whether an error says that another rank went away, rather than that something is wrong
    here."""
    return bool(LOST.search(str(error)))
