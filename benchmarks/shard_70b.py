"""python benchmarks/shard_70b.py [--gpus 64] [--replicas 1] [--rank 0] [--full]: Llama-3-70B built on the meta device and sharded as one of so many ranks.

The code of a real start (ecliptica/training/distributed.py: shard) over a process group that communicates nothing. Prints the seconds
and what the rank would keep, as JSON.
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--full", action="store_true")
    args = parser.parse_args()
    dist.init_process_group("fake", store=FakeStore(), rank=args.rank, world_size=args.gpus)
    start = time.perf_counter()
    with torch.device("meta"):
        model = Llama(SHAPES["llama3-70b"], torch.bfloat16)
    whole = sum(p.numel() for p in model.parameters())
    model = model if args.full else add_lora(model, 8, 16, ("q_proj", "v_proj"))
    shard(
        model,
        mesh(Ranks(args.rank, args.gpus), args.replicas, "cpu"),
        torch.bfloat16 if args.full else None,
    )
    seconds = time.perf_counter() - start
    kept = {True: 0, False: 0}
    for name, p in model.named_parameters():
        kept["lora_" in name] += p.to_local().numel()
    print(
        json.dumps(
            {
                "gpus": args.gpus,
                "replicas": args.replicas,
                "rank": args.rank,
                "parameters": whole,
                "kept": kept[False],
                "kept_lora": kept[True],
                "seconds": round(seconds, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
