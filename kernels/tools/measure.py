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


@dataclass(frozen=True)
class Case:
    """One line of the benchmark, before it is measured."""

    name: str
    R: int
    dtype: str
    trained: bool

    @property
    def D(self) -> int:
        return CASES[self.name][0]

    @property
    def V(self) -> int:
        return CASES[self.name][1]

    @property
    def least_flops(self) -> int:
        """4 products of R x D x V with a frozen head, 6 with a trained one."""
        products = 6 if self.trained else 4
        return products * 2 * self.R * self.D * self.V


class Inputs:
    """R response rows: 64 rows a sequence, a reference near the policy, both on one head."""

    def __init__(self, case: Case, device: str) -> None:
        g = torch.Generator(device).manual_seed(0)
        R, D, V = case.R, case.D, case.V
        dtype = DTYPES[case.dtype]

        def noise(rows: int) -> Tensor:
            return torch.randn(rows, D, generator=g, device=device)

        hidden_RD = noise(R)
        self.ref = (hidden_RD + 0.1 * noise(R)).to(dtype)
        self.hidden = hidden_RD.to(dtype).requires_grad_()
        weight_VD = torch.randn(V, D, generator=g, device=device, dtype=dtype)
        self.weight = weight_VD.mul_(D**-0.5).requires_grad_(case.trained)
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
        (out.logp_S.sum() + out.kl_S.sum()).backward()

    return step


def dense(x: Inputs) -> None:
    """What anybody would write: logits by the head in its own dtype, then float32."""
    logp_RV = (x.hidden @ x.weight.T).float().log_softmax(-1)
    with torch.no_grad():
        ref_RV = (x.ref @ x.weight.T).float().log_softmax(-1)
    kl_R = (logp_RV.exp() * (logp_RV - ref_RV)).sum(-1)
    logp_R1 = logp_RV.gather(1, x.targets[:, None])
    (logp_R1.sum() + kl_R.sum()).backward()


def liger() -> dict[str, System]:
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction
    from liger_kernel.ops.fused_linear_jsd import LigerFusedLinearJSDFunction

    def jsd(x: Inputs) -> None:
        beta = 1.0
        frozen_VD = x.weight.detach()
        loss = LigerFusedLinearJSDFunction.apply(x.hidden, x.weight, x.ref, frozen_VD, None, beta)
        loss.backward()

    def cross_entropy(x: Inputs) -> None:
        LigerFusedLinearCrossEntropyFunction.apply(x.hidden, x.weight, x.targets)[0].backward()

    return {
        "liger fused_linear_jsd": System(jsd, "KL, one scalar"),
        "liger fused_linear_ce": System(cross_entropy, "log-prob, one scalar"),
    }


def cut_cross_entropy() -> dict[str, System]:
    from cut_cross_entropy import linear_cross_entropy

    def step(x: Inputs) -> None:
        linear_cross_entropy(x.hidden, x.weight, x.targets, impl="cce_exact").backward()

    return {"cce_exact": System(step, "log-prob")}


def peers() -> dict[str, System]:
    """Those that import."""
    systems = {}
    for name, load in (("liger-kernel", liger), ("cut-cross-entropy", cut_cross_entropy)):
        try:
            systems |= load()
        except ImportError as error:
            print(f"{name}: not measured ({error})", file=sys.stderr)
    return systems


def systems(device: str, with_peers: bool) -> dict[str, System]:
    """By the name in the table."""
    backends = ["torch"]
    if device == "cuda":
        backends += ["triton", "triton-stream", "triton-chunk", "triton-sliced"]
    mine = {name: System(ours(name), "log-prob, KL per sequence") for name in backends}
    others = peers() if with_peers else {}
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
    if case.trained:
        command.append("--trained")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


def peak(system: str, step: Step, case: Case, x: Inputs, device: str) -> int:
    if device == "cuda":
        return cuda_peak(lambda: step(x))
    return cpu_peak_elsewhere(system, case)
