"""The torch backend's peak of memory, measured in a process of its own."""

import subprocess
import sys

import pytest

R, D, V = 2048, 576, 49152  # SmolLM2's head
WORKSPACE = 64 << 20
PEAK = """
import torch
from kernels import linear_logp_kl
from kernels.tools.measure import resident_peak

R, D, V, workspace, train = {R}, {D}, {V}, {workspace}, {train}
hidden = torch.randn(R, D, requires_grad=True)
ref = torch.randn(R, D)
weight = torch.randn(V, D).mul_(0.05).requires_grad_(train)
rows = torch.arange(R)
# The library's own buffers are not the head's.
torch.mm(hidden.detach()[:64], weight.detach()[:64].T)
if train:
    weight.grad = torch.ones_like(weight)
before = resident_peak()
out = linear_logp_kl(
    hidden, weight, rows, rows, rows // 64, 32, ref, workspace_bytes=workspace
)
(out.logp_S.sum() + out.kl_S.sum()).backward()
print(resident_peak() - before)
"""


@pytest.mark.parametrize("train", [False, True], ids=["frozen", "trained"])
def test_peak_extra_memory_is_the_workspace_and_outputs_of_size_R_D(train):
    code = PEAK.format(R=R, D=D, V=V, workspace=WORKSPACE, train=train)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # Jacobians, gradients, gathered rows; dW before it joins .grad.
    outputs = 6 * R * D * 4
    if train:
        outputs += V * D * 4
    slack = 32 << 20
    peak = int(done.stdout)
    limit = WORKSPACE + outputs + slack
    assert peak <= limit, f"{peak >> 20} MiB, limit {limit >> 20} MiB"
