"""Tiles for Triton's interpreter."""

import pytest

from tests.kernels.head_cases import DEVICE


@pytest.fixture(autouse=True)
def interpreter_tiles(request, monkeypatch):
    """Fewer, wider tiles of the streaming forward: the interpreter takes milliseconds for each.

    A test that asks for `real_tiles` has those of a GPU.
    """
    if DEVICE == "cuda" or "real_tiles" in request.fixturenames:
        return
    from kernels.head import triton_stream

    sizes = triton_stream.tile_sizes

    def wide(dtype, has_ref, shared):
        return sizes(dtype, has_ref, shared) | {"BR": 32, "BV": 1024, "BD": 64}

    monkeypatch.setattr(triton_stream, "tile_sizes", wide)


@pytest.fixture
def real_tiles():
    """See interpreter_tiles."""
