"""What the benchmark measures and how: inputs, systems, clocks, rates, peaks of memory."""

import functools
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import linear_logp_kl

CASES = {"smollm2": (576, 49152), "llama3-8b": (4096, 128256)}  # D, V
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# Least products of R x D x V: a frozen head, a trained one, a frozen one for log-prob alone
HEADS = {"frozen": 4, "trained": 6, "logp": 2}


@dataclass(frozen=True)
class Case:
    """One line of the benchmark, before it is measured."""

    name: str
    R: int
    dtype: str
    head: str  # of HEADS

    @property
    def D(self) -> int:
        return CASES[self.name][0]

    @property
    def V(self) -> int:
        return CASES[self.name][1]

    @property
    def least_flops(self) -> int:
        """Of the products of R x D x V."""
        return HEADS[self.head] * 2 * self.R * self.D * self.V


class Inputs:
    """R response rows: 64 rows a sequence, a reference near the policy, both on one head."""

    def __init__(self, case: Case, device: str) -> None:
        g = torch.Generator(device).manual_seed(0)
        R, D, V = case.R, case.D, case.V
        dtype = DTYPES[case.dtype]

        def noise(rows: int) -> Tensor:
            return torch.randn(rows, D, generator=g, device=device)

        hidden_RD = noise(R)
        self.ref = None
        if case.head != "logp":
            self.ref = (hidden_RD + 0.1 * noise(R)).to(dtype)
        self.hidden = hidden_RD.to(dtype).requires_grad_()
        weight_VD = torch.randn(V, D, generator=g, device=device, dtype=dtype)
        self.weight = weight_VD.mul_(D**-0.5).requires_grad_(case.head == "trained")
        self.rows = torch.arange(R, device=device)
        self.targets = torch.randint(0, V, (R,), generator=g, device=device)
        self.segments = self.rows // 64
        self.count = math.ceil(R / 64)

    def clear(self) -> None:
        self.hidden.grad = None
        self.weight.grad = None


Step = Callable[[Inputs], None]


@dataclass(frozen=True)
class System:
    step: Step  # forward and backward
    computes: str


def ours(backend: str) -> Step:
    def step(x: Inputs) -> None:
        out = linear_logp_kl(
            x.hidden, x.weight, x.rows, x.targets, x.segments, x.count, x.ref, backend=backend
        )
        loss = out.logp_S.sum()
        if out.kl_S is not None:
            loss = loss + out.kl_S.sum()
        loss.backward()

    return step


def dense_loss(
    hidden_RD: Tensor, weight_VD: Tensor, ref_RD: Tensor | None, targets_R: Tensor
) -> Tensor:
    """What anybody would write: logits by the head in its own dtype, then float32."""
    logp_RV = (hidden_RD @ weight_VD.T).float().log_softmax(-1)
    loss = logp_RV.gather(1, targets_R[:, None]).sum()
    if ref_RD is None:
        return loss
    with torch.no_grad():
        frozen_RV = (ref_RD @ weight_VD.T).float().log_softmax(-1)
    return loss + (logp_RV.exp() * (logp_RV - frozen_RV)).sum()


def dense(x: Inputs) -> None:
    dense_loss(x.hidden, x.weight, x.ref, x.targets).backward()


def compiled() -> dict[str, System]:
    loss = torch.compile(dense_loss, dynamic=False)

    def step(x: Inputs) -> None:
        loss(x.hidden, x.weight, x.ref, x.targets).backward()

    return {"torch.compile of dense": System(step, "log-prob, KL")}


def torchs_own() -> dict[str, System]:
    try:
        from torch.nn.functional import linear_cross_entropy
    except ImportError as error:
        raise ImportError("this torch has no linear_cross_entropy") from error

    def step(x: Inputs) -> None:
        linear_cross_entropy(x.hidden, x.weight, x.targets, reduction="sum").backward()

    return {"linear_cross_entropy": System(step, "log-prob, one scalar")}


def liger(head: str) -> dict[str, System]:
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction
    from liger_kernel.ops.fused_linear_jsd import LigerFusedLinearJSDFunction

    def jsd(x: Inputs) -> None:
        beta = 1.0
        frozen_VD = x.weight.detach()
        loss = LigerFusedLinearJSDFunction.apply(x.hidden, x.weight, x.ref, frozen_VD, None, beta)
        loss.backward()

    def cross_entropy(x: Inputs) -> None:
        LigerFusedLinearCrossEntropyFunction.apply(x.hidden, x.weight, x.targets)[0].backward()

    named = {"liger fused_linear_ce": System(cross_entropy, "log-prob, one scalar")}
    if head != "logp":
        named["liger fused_linear_jsd"] = System(jsd, "KL, one scalar")
    return named


def cut_cross_entropy() -> dict[str, System]:
    from cut_cross_entropy import linear_cross_entropy

    def step(x: Inputs) -> None:
        linear_cross_entropy(x.hidden, x.weight, x.targets, impl="cce_exact").backward()

    return {"cce_exact": System(step, "log-prob")}


def peers(head: str) -> dict[str, System]:
    """Those that import."""
    systems = compiled()
    loaders = {
        "torch.nn.functional": torchs_own,
        "liger-kernel": lambda: liger(head),
        "cut-cross-entropy": cut_cross_entropy,
    }
    for name, load in loaders.items():
        try:
            systems |= load()
        except ImportError as error:
            print(f"{name}: not measured ({error})", file=sys.stderr)
    return systems


def systems(device: str, head: str = "frozen", with_peers: bool = False) -> dict[str, System]:
    """By the name in the table."""
    backends = ["torch"]
    if device == "cuda":
        backends += ["triton", "triton-stream", "triton-chunk", "triton-sliced"]
    mine = {name: System(ours(name), "log-prob, KL per sequence") for name in backends}
    others = peers(head) if with_peers else {}
    return {"dense torch": System(dense, "log-prob, KL")} | mine | others


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def best_seconds(action: Callable[[], object], device: str) -> float:
    """The best of 5, after one to warm up."""
    seconds = []
    for _ in range(6):
        start = clock(device)
        action()
        seconds.append(clock(device) - start)
    return min(seconds[1:])


def milliseconds(step: Step, x: Inputs, device: str) -> float:
    x.clear()
    start = clock(device)
    step(x)
    return 1e3 * (clock(device) - start)


def product_rate(x: Inputs, device: str) -> float:
    """FLOP/s of one large product by the vendor's library: the floor's clock."""
    hidden_RD = x.hidden.detach()[:2048]
    weight_VD = x.weight.detach()[:49152]
    seconds = best_seconds(lambda: hidden_RD @ weight_VD.T, device)
    return 2 * len(hidden_RD) * weight_VD.numel() / seconds


@functools.cache
def copy_rate(device: str) -> float:
    """Bytes a second of one large copy, read and write."""
    source = torch.empty(64 << 20 if device == "cuda" else 4 << 20, device=device)
    target = torch.empty_like(source)
    seconds = best_seconds(lambda: target.copy_(source), device)
    return 2 * source.numel() * source.element_size() / seconds


def cuda_peak(action: Callable[[], object]) -> int:
    """Peak bytes beyond what was there before."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    action()
    return torch.cuda.max_memory_allocated() - before


def resident_peak() -> int:
    """Of this process so far; not getrusage's, which starts at the parent's."""
    with open("/proc/self/status", encoding="ascii") as file:
        lines = [text for text in file if text.startswith("VmHWM")]
    return int(lines[0].split()[1]) << 10


def cpu_peak(step: Step, x: Inputs) -> int:
    """Peak bytes beyond the inputs, in this process, which has done nothing else."""
    # The library's own buffers are not the step's.
    (x.hidden.detach()[:64] @ x.weight.detach()[:64].T).sum()
    before = resident_peak()
    step(x)
    return resident_peak() - before


def cpu_peak_elsewhere(system: str, case: Case) -> int:
    """cpu_peak in a fresh process: a process's peak never falls."""
    command = [sys.executable, "-m", "kernels.tools.bench", "--peak-of", system]
    command += ["--case", case.name, "--rows", str(case.R), "--dtype", case.dtype]
    command += ["--head", case.head]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


def peak(system: str, step: Step, case: Case, x: Inputs, device: str) -> int:
    if device == "cuda":
        return cuda_peak(lambda: step(x))
    return cpu_peak_elsewhere(system, case)
