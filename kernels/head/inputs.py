"""What one call of linear_logp_kl is given, and the checks of it."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from kernels.common import FLOATS, INTERPRET, expect, expect_tensor, on_gpu

FLOATING = ("hidden_TD", "weight_VD", "ref_hidden_TD", "ref_weight_VD")
INDICES = ("rows_R", "targets_R", "segments_R")


@dataclass(frozen=True)
class HeadInputs:
    """The policy's and the reference's hidden states and heads, and which rows and tokens count."""

    hidden_TD: Tensor
    weight_VD: Tensor
    rows_R: Tensor
    targets_R: Tensor
    segments_R: Tensor
    num_segments: int
    ref_hidden_TD: Tensor | None  # None: no KL
    ref_weight_VD: Tensor | None  # None: weight_VD

    @property
    def R(self) -> int:
        return self.rows_R.shape[0]

    @property
    def V(self) -> int:
        return self.weight_VD.shape[0]

    @property
    def models(self) -> int:
        """2 with a reference, else 1."""
        return 1 if self.ref_hidden_TD is None else 2

    @property
    def ref_head_VD(self) -> Tensor:
        """The reference's head, which may be the policy's."""
        return self.weight_VD if self.ref_weight_VD is None else self.ref_weight_VD

    def rows_at(self, at: slice) -> "HeadInputs":
        """The same models, some of the rows."""
        return replace(
            self,
            rows_R=self.rows_R[at],
            targets_R=self.targets_R[at],
            segments_R=self.segments_R[at],
        )

    def contiguous(self) -> "HeadInputs":
        """Kernels count on neighbours; what is contiguous already is not copied."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        dense = {name: x.contiguous() for name, x in tensors.items() if isinstance(x, Tensor)}
        return replace(self, **dense)


def _expect(condition: bool, name: str, expected: Any, got: Any) -> None:
    expect(condition, "linear_logp_kl", name, expected, got)


def _floating(inputs: HeadInputs) -> dict[str, Any]:
    """The matrices by name, without the optional ones that are absent."""
    named = {name: getattr(inputs, name) for name in FLOATING}
    return {name: x for name, x in named.items() if x is not None or not name.startswith("ref_")}


def _indices(inputs: HeadInputs) -> dict[str, Any]:
    return {name: getattr(inputs, name) for name in INDICES}


def check_tensors(inputs: HeadInputs) -> None:
    """Whatever should be a tensor is one, and a plain one."""
    for name, x in (_floating(inputs) | _indices(inputs)).items():
        expect_tensor("linear_logp_kl", name, x)


def check_inputs(inputs: HeadInputs, float64: bool) -> None:
    """Shapes, dtypes and devices. float64: whether that dtype is taken too."""
    dtypes = (*FLOATS, torch.float64) if float64 else FLOATS
    for name, x in _floating(inputs).items():
        _expect(x.dim() == 2, name, "a matrix", f"shape {list(x.shape)}")
        _expect(x.dtype in dtypes, name, "float32, bfloat16 or float16", str(x.dtype))
        _expect_device(inputs, name, x)
    _check_shapes(inputs)
    _expect_count("num_segments", inputs.num_segments)
    for name, x in _indices(inputs).items():
        got = f"{x.dtype}, shape {list(x.shape)}"
        _expect(x.dtype == torch.int64 and x.dim() == 1, name, "a vector of int64", got)
        # The message is made only for an error: a number in it is a constant to torch.compile,
        # which would then compile for each R and each T anew.
        if x.shape != inputs.rows_R.shape:
            _expect(False, name, f"{inputs.R} entries, as rows_R", f"{x.shape[0]}")
        _expect_device(inputs, name, x)


def _expect_device(inputs: HeadInputs, name: str, x: Tensor) -> None:
    device = inputs.hidden_TD.device
    _expect(x.device == device, name, f"device {device}, as hidden_TD", str(x.device))


def _expect_count(name: str, value: Any) -> None:
    _expect(isinstance(value, int) and value >= 0, name, "an int >= 0", value)


def _check_shapes(inputs: HeadInputs) -> None:
    """Widths and heights of the four matrices agree."""
    T, D = inputs.hidden_TD.shape
    V = inputs.V
    shape = f"shape {list(inputs.weight_VD.shape)}"
    _expect(V > 0, "weight_VD", "at least one row", shape)
    _expect(inputs.weight_VD.shape[1] == D, "weight_VD", f"width {D}, as hidden_TD", shape)

    ref_TD = inputs.ref_hidden_TD
    if ref_TD is None:
        alone = inputs.ref_weight_VD is None
        _expect(alone, "ref_weight_VD", "None without ref_hidden_TD", "a tensor")
        return
    if ref_TD.shape[0] != T:  # see check_inputs
        _expect(False, "ref_hidden_TD", f"{T} rows, as hidden_TD", f"shape {list(ref_TD.shape)}")
    expected = [V, ref_TD.shape[1]]
    got = list(inputs.ref_head_VD.shape)
    _expect(got == expected, "ref_weight_VD", f"shape {expected}", f"shape {got}")


def check_backend(
    backend: Any, backends: tuple[str, ...], inputs: HeadInputs, has_triton: bool
) -> None:
    """A known name, which this machine and these tensors can run."""
    _expect(backend in backends, "backend", f"one of {', '.join(backends)}", repr(backend))
    if backend.startswith("triton"):
        without = "auto, dense or torch, since Triton is not installed"
        _expect(has_triton, "backend", without, repr(backend))
        device = inputs.hidden_TD.device
        where = "CUDA tensors (or TRITON_INTERPRET=1)"
        runs = inputs.hidden_TD.is_cuda or INTERPRET
        _expect(runs, "backend", where, f"{backend} on {device}")


def check_workspace(workspace_bytes: Any) -> None:
    _expect_count("workspace_bytes", workspace_bytes)


def check_indices(inputs: HeadInputs) -> None:
    """Values in range. On CUDA the device itself raises: no host sync."""
    sizes = {
        "rows_R": inputs.hidden_TD.shape[0],
        "targets_R": inputs.V,
        "segments_R": inputs.num_segments,
    }
    for name, size in sizes.items():
        x = getattr(inputs, name)
        inside = ((x >= 0) & (x < size)).all()
        if on_gpu(x):
            torch._assert_async(inside, f"{name}: expected values in [0, {size})")
        elif not inside:
            worst = int(x[(x < 0) | (x >= size)][0])
            _expect(False, name, f"values in [0, {size})", str(worst))
