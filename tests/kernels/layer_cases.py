"""The comparison that the tests of rms_norm, swiglu and rope share."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def close(got, want, limit):
    """Every tensor by name, within `limit` of its largest value."""
    assert got.keys() == want.keys()
    for name, expected in want.items():
        assert got[name].shape == expected.shape, name
        if not expected.numel():
            continue
        scale = expected.abs().max().clamp(min=1e-12)
        error = ((got[name].double() - expected).abs().max() / scale).item()
        what = f"{name} {list(expected.shape)}"
        assert error <= limit, f"{what}: off by {error:.1e} of its largest, limit {limit:.0e}"
