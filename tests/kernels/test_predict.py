"""The counts behind the predictions: products, launches and bytes of the head, on shapes alone."""

import pytest
import torch

from kernels.tools.predict import H100, Shape, floor_seconds, head_step, main, product_seconds

# Llama-3-8B's head over 8192 response rows, in the default workspace
LLAMA = Shape(R=8192, D=4096, V=128256, dtype=torch.bfloat16)
R, D, V = LLAMA.R, LLAMA.D, LLAMA.V
GIGA = 1e9
PRODUCT = 2 * R * D * V  # operations of one product


def flops(counts):
    return sum(event.flops for event in counts.events)


def test_a_frozen_head_takes_four_products():
    counts = head_step(LLAMA, "frozen", "triton-chunk")
    chunks = 32  # of 256 rows: 2 models x 256 x V x 4 bytes
    assert flops(counts) == 4 * PRODUCT
    # Two of one shape, and the Jacobians in four parts, in one call.
    assert len(counts.products) == 3 * chunks
    shapes = {event.tiles for event in counts.products}
    assert shapes == {(1, 256, V), (4, 512, D)}
    # The workspace and both Jacobians; parts of the sum, gathered rows, the gradient.
    held = LLAMA.workspace_bytes + 2 * R * D * 4
    assert held < counts.peak_bytes < 0.6 * GIGA


def test_a_trained_head_takes_six_products_and_copies_nothing_in_a_slice():
    counts = head_step(LLAMA, "trained", "triton-chunk")
    slices = 32  # of 4096 columns: 2 models x R x 4096 x 4 bytes fill the workspace
    assert flops(counts) == 6 * PRODUCT
    names = [event.name for event in counts.events]
    assert names.count("logp_kl_dlogits") == slices
    assert names.count("addmm.dtype_out") == slices
    assert not [name for name in names if name.startswith("cat")]
    gradients = V * D * 2 + R * D * 2
    assert counts.peak_bytes - gradients < 0.6 * GIGA


def test_log_prob_alone_takes_two():
    assert flops(head_step(LLAMA, "frozen, logp alone", "triton-chunk")) == 2 * PRODUCT


@pytest.mark.parametrize("task", ["frozen", "trained"])
def test_an_odd_vocabulary_stays_within_the_workspace(task):
    """128257, after an added token: rows are padded to 64 floats."""
    odd = Shape(R=1000, D=256, V=128257, dtype=torch.bfloat16, workspace_bytes=64 << 20)
    counts = head_step(odd, task, "triton-chunk")
    results = 3 * odd.R * odd.D * 4
    if task == "trained":
        results += odd.V * odd.D * 2
    assert counts.peak_bytes < odd.workspace_bytes + results + (8 << 20)


def test_a_product_takes_whole_waves_of_tiles():
    (event,) = {e for e in head_step(LLAMA, "frozen", "triton-chunk").products if e.tiles[0] == 4}
    # 4 x 4 x 16 tiles of 128 x 256 on 132 processors: two waves, 97 % of them busy.
    assert product_seconds(event, H100) == pytest.approx(event.flops / H100.flops / (256 / 264))


def test_the_floor_is_the_products_at_the_cards_rate():
    assert floor_seconds(LLAMA, "frozen", H100) == pytest.approx(4 * PRODUCT / 790e12)


def test_the_command_prints_a_line_for_each_task(capsys):
    options = "--rows 64 --hidden 32 --vocab 1000 --backend triton triton-stream"
    assert main(options.split()) == 0
    title, header, *lines = capsys.readouterr().out.splitlines()
    assert "not measured" in title
    assert header.split()[:4] == ["head", "backend", "products", "TFLOP"]
    assert len(lines) == 6


def test_bad_sizes_are_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--rows", "0"])
    assert stop.value.code == 2
    assert "--rows, --hidden and --vocab take numbers of at least 1" in capsys.readouterr().err
