"""Broken files of a fixed seed: a result or one InputError (tests/model/fuzz.py runs longer)."""

import pytest

from tests.model.fuzz import fuzz

COUNTS = {
    "config_json": 800,
    "adapter_config": 500,
    "adapter_tensors": 400,
    "safetensors_header": 350,
    "index_json": 300,
    "gguf": 100,
}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.filterwarnings("ignore")
def test_a_result_or_one_line(name, tmp_path):
    outcomes = fuzz(name, tmp_path, COUNTS[name])
    assert outcomes.total() == COUNTS[name]
    assert outcomes["refused"] > COUNTS[name] / 10 and outcomes["read"] > 0, outcomes
