"""python benchmarks/shard_70b.py [--gpus 64] [--replicas 1] [--rank 0] [--full]: Llama-3-70B built
on the meta device and sharded as one of so many ranks.

The code of a real start (ecliptica/running/sharding.py: shard) over a process group that
communicates nothing. Prints the seconds and what the rank would keep, as JSON.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402

from ecliptica.planning.workload import SHAPES  # noqa: E402
from ecliptica.running.ranks import Ranks  # noqa: E402
from ecliptica.running.sharding import mesh, shard  # noqa: E402
from model.llama import Llama  # noqa: E402
from model.lora import add_lora  # noqa: E402


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Llama-3-70B on the meta device, sharded as one of so many ranks"
    )
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--full", action="store_true")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    dist.init_process_group("fake", store=FakeStore(), rank=args.rank, world_size=args.gpus)

    # Build and shard, as a rank does at its start.
    start = time.perf_counter()
    with torch.device("meta"):
        model = Llama(SHAPES["llama3-70b"], torch.bfloat16)
    whole = sum(p.numel() for p in model.parameters())
    if not args.full:
        add_lora(model, 8, 16, ("q_proj", "v_proj"))
    device_mesh = mesh(Ranks(args.rank, args.gpus), args.replicas, "cpu")
    shard(model, device_mesh, torch.bfloat16 if args.full else None)
    seconds = time.perf_counter() - start

    # What of it this rank would hold.
    kept = kept_lora = 0
    for name, p in model.named_parameters():
        if "lora_" in name:
            kept_lora += p.to_local().numel()
        else:
            kept += p.to_local().numel()
    report = {
        "gpus": args.gpus,
        "replicas": args.replicas,
        "rank": args.rank,
        "parameters": whole,
        "kept": kept,
        "kept_lora": kept_lora,
        "seconds": round(seconds, 2),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
