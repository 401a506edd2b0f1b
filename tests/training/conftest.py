"""A small recipe on the tiny model."""

import pytest

from ecliptica import config
from ecliptica.recipe import Config
from tests.conftest import write_jsonl


@pytest.fixture
def recipe(tmp_path, tiny, preferences):
    """load(*overrides) -> Config of a small run, which lives in tmp_path / "run"."""
    data = write_jsonl(tmp_path / "train.jsonl", preferences)
    path = tmp_path / "small.toml"
    path.write_text(
        f"""
        [model]
        path = "{tiny}"
        dtype = "float32"
        [data]
        train = "{data}"
        eval = "{data}"
        [lora]
        rank = 4
        [training]
        max_steps = 5
        batch_preferences = 4
        micro_preferences = 4
        lr = 1e-2
        [run]
        dir = "{tmp_path}/run"
        """
    )
    return lambda *overrides: config.load(Config, path, overrides)
