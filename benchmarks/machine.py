"""What a benchmark ran on, and how its numbers are kept: one JSON file a run, with the machine."""

import datetime
import json
import os
import platform
import resource
import time
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # of a CPU, what decides its GEMM rate


def machine() -> dict[str, Any]:
    """Processor, its vector units, load, torch."""
    processor = platform.processor()
    flags: list[str] = []
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                processor = value.strip()
            if key.strip() == "flags":
                flags = value.split()
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "vector_units": [flag for flag in FLAGS if flag in flags],
        "load": os.getloadavg(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def save(name: str, result: dict[str, Any]) -> Path:
    """benchmarks/results/NAME.json."""
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n")
    return path


def peak_bytes() -> int:
    """The largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Clock:
    """Wall and processor seconds of one stretch of code. On a shared machine the second repeats."""

    def __enter__(self) -> "Clock":
        self._wall = time.perf_counter()
        self._cpu = time.process_time()
        return self

    def __exit__(self, *_: Any) -> None:
        self.wall = time.perf_counter() - self._wall
        self.cpu = time.process_time() - self._cpu


def gemm_rate(rows: int = 1280, seconds: float = 1.0) -> float:
    """FLOPs a processor second of one large float32 product [rows, 576] x [576, 1536]."""
    x = torch.randn(rows, 576)
    weight = torch.randn(1536, 576)
    out = torch.empty(rows, 1536)
    rates = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        with Clock() as clock:
            for _ in range(4):
                torch.mm(x, weight.T, out=out)
        rates.append(4 * 2 * rows * 576 * 1536 / clock.cpu)
    return sorted(rates)[len(rates) // 2]
