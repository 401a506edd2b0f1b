"""linear_logp_kl refuses what it cannot take: one line with the argument, the rule, what came."""

import re

import pytest
import torch

from kernels import linear_logp_kl
from kernels.head import BACKENDS


def valid():
    index = torch.tensor([0, 1])
    return {
        "hidden_TD": torch.zeros(4, 8),
        "weight_VD": torch.zeros(9, 8),
        "rows_R": index,
        "targets_R": index,
        "segments_R": index,
        "num_segments": 2,
    }


BACKEND_NAMES = ", ".join(BACKENDS)
WRONG = [
    ({"hidden_TD": None}, "hidden_TD: expected a tensor, got NoneType"),
    ({"weight_VD": [[0.0]]}, "weight_VD: expected a tensor, got list"),
    ({"rows_R": [0, 1]}, "rows_R: expected a tensor, got list"),
    (
        {"hidden_TD": torch.zeros(1, 4, 8)},
        "hidden_TD: expected a matrix, got shape [1, 4, 8]",
    ),
    (
        {"weight_VD": torch.zeros(0, 8)},
        "weight_VD: expected at least one row, got shape [0, 8]",
    ),
    (
        {"weight_VD": torch.zeros(9, 7)},
        "weight_VD: expected width 8, as hidden_TD, got shape [9, 7]",
    ),
    ({"weight_VD": torch.zeros(9, 8, device="meta")}, "weight_VD: expected device"),
    (
        {"ref_weight_VD": torch.zeros(9, 8)},
        "ref_weight_VD: expected None without ref_hidden_TD, got a tensor",
    ),
    (
        {"ref_hidden_TD": torch.zeros(3, 8)},
        "ref_hidden_TD: expected 4 rows, as hidden_TD, got shape [3, 8]",
    ),
    (
        {"ref_hidden_TD": torch.zeros(4, 5)},
        "ref_weight_VD: expected shape [9, 5], got shape [9, 8]",
    ),
    (
        {"targets_R": torch.tensor([0.0, 1.0])},
        "targets_R: expected a vector of int64, got torch.float32, shape [2]",
    ),
    ({"segments_R": torch.tensor([0])}, "segments_R: expected 2 entries, as rows_R, got 1"),
    ({"targets_R": torch.tensor([0, 9])}, "targets_R: expected values in [0, 9), got 9"),
    ({"rows_R": torch.tensor([0, -1])}, "rows_R: expected values in [0, 4), got -1"),
    ({"segments_R": torch.tensor([0, 2])}, "segments_R: expected values in [0, 2), got 2"),
    ({"num_segments": 0}, "segments_R: expected values in [0, 0), got 0"),
    ({"num_segments": 2.0}, "num_segments: expected an int >= 0, got 2.0"),
    ({"num_segments": -1}, "num_segments: expected an int >= 0, got -1"),
    ({"workspace_bytes": -1}, "workspace_bytes: expected an int >= 0, got -1"),
    ({"workspace_bytes": "1M"}, "workspace_bytes: expected an int >= 0, got 1M"),
    ({"backend": None}, f"backend: expected one of {BACKEND_NAMES}, got None"),
    ({"backend": "cuda"}, f"backend: expected one of {BACKEND_NAMES}, got 'cuda'"),
]


@pytest.mark.parametrize("change, message", WRONG, ids=[message for _, message in WRONG])
@pytest.mark.parametrize("backend", ["dense", "torch"])
def test_errors_name_the_argument(change, message, backend):
    arguments = valid() | {"backend": backend} | change
    with pytest.raises(ValueError, match=f"^linear_logp_kl: {re.escape(message)}"):
        linear_logp_kl(**arguments)


def test_float64_is_the_oracles_alone():
    doubles = {name: torch.zeros(n, 8).double() for name, n in (("hidden_TD", 4), ("weight_VD", 9))}
    linear_logp_kl(**(valid() | doubles), backend="dense")
    message = "hidden_TD: expected float32, bfloat16 or float16, got torch.float64"
    with pytest.raises(ValueError, match=message):
        linear_logp_kl(**(valid() | doubles), backend="torch")


class Sharded(torch.Tensor):
    """What a DTensor looks like from outside."""

    device_mesh = "mesh"


PLAIN = "expected a plain tensor (gather a sharded one first: full_tensor())"


def test_a_sharded_weight_is_refused():
    weight = torch.zeros(9, 8).as_subclass(Sharded)
    with pytest.raises(ValueError, match=re.escape(f"weight_VD: {PLAIN}")):
        linear_logp_kl(**(valid() | {"weight_VD": weight}))


def test_a_dtensor_is_refused():
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    arguments = valid() | {"ref_hidden_TD": torch.zeros(4, 8)}
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for name in ("hidden_TD", "weight_VD", "rows_R", "ref_hidden_TD"):
            sharded = distribute_tensor(arguments[name], mesh, [Shard(0)])
            with pytest.raises(ValueError, match=re.escape(f"{name}: {PLAIN}, got DTensor")):
                linear_logp_kl(**(arguments | {name: sharded}))
    finally:
        torch.distributed.destroy_process_group()
