"""The reference on disk: equal to the reference itself, resumed, checked, and never another's."""

import os
from types import SimpleNamespace

import pytest
import torch

from ecliptica.training import loop, reference_cache
from model.errors import InputError
from tests.training.runs import assert_same, result

SHORT = ("training.max_steps=3", "training.batch_preferences=5")


def parts_of(cache):
    return sorted(cache.glob("*/part-*"))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_it_is_equal_to_the_reference_and_is_resumed_and_checked(
    recipe, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(reference_cache, "GROUP", 5)
    for kind in ("adapter-off", "model", "cache"):
        loop.train(recipe(*SHORT, f"run.dir={tmp_path}/{kind}", f"training.reference={kind}"))
    assert "reference cache: 327 hidden rows x 48 float32" in capsys.readouterr().err
    want, cached = result(tmp_path / "adapter-off"), result(tmp_path / "cache")
    assert_same(result(tmp_path / "model"), want)
    for name, tensor in want[0].items():
        distance = (cached[0][name] - tensor).norm() / tensor.norm()
        assert distance <= 1e-5, f"{name}: {distance:.1e}"
    for one, other in zip(cached[1], want[1]):
        assert one["kl"] == pytest.approx(other["kl"], abs=1e-5)
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    cache = tmp_path / "cache" / "cache"
    parts = parts_of(cache)
    assert len(parts) == 3

    # A part that was cut is made again, the others are not touched.
    def again(name):
        overrides = (f"training.cache_dir={cache}", "training.reference=cache")
        loop.train(recipe(*SHORT, f"run.dir={tmp_path}/{name}", *overrides))

    os.truncate(parts[0], 100)
    stamps = [path.stat().st_mtime_ns for path in parts]
    again("second")
    assert "2 of 3 parts are there" in capsys.readouterr().err
    kept = [path.stat().st_mtime_ns == stamp for path, stamp in zip(parts, stamps)]
    assert kept == [False, True, True]
    assert_same(result(tmp_path / "second"), cached)

    # A flipped bit is found where it is read, and taken away.
    flip(parts[1])
    words = "part-000001.safetensors: .*corrupt and was removed; start the same command again"
    with pytest.raises(InputError, match=words):
        again("third")
    again("third")
    assert_same(result(tmp_path / "third"), cached)


def test_no_room_is_said_before_it_is_written(recipe, monkeypatch):
    def full_where_the_cache_is(path):
        return SimpleNamespace(free=1000 if path.parent.name == "cache" else 2**40)

    monkeypatch.setattr(reference_cache.shutil, "disk_usage", full_where_the_cache_is)
    words = "the reference cache needs .* MiB more, .* are free; make room"
    with pytest.raises(InputError, match=words):
        loop.train(recipe("training.reference=cache"))


def test_it_runs_no_reference_and_depends_on_weights_and_data(recipe, tmp_path, monkeypatch):
    config = recipe(*SHORT, "training.reference=cache")
    loop.train(config)
    (first,) = (tmp_path / "run" / "cache").iterdir()
    forwards = []
    real = reference_cache.reference_rows

    def counted(*args):
        forwards.append(args)
        return real(*args)

    monkeypatch.setattr(reference_cache, "reference_rows", counted)
    (tmp_path / "run" / "final").rename(tmp_path / "gone")
    loop.train(config)
    assert len(forwards) == 1, "the comparison of one batch before training, and no more"

    example = SimpleNamespace(key="a")
    keys = {
        reference_cache.cache_key(weights, dtype, examples)
        for weights in ([["f", "1"]], [["f", "2"]])
        for dtype in (torch.float32, torch.bfloat16)
        for examples in ([example], [example, example])
    }
    assert len(keys) == 8 and first.name not in keys
