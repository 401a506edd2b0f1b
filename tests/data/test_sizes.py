"""A tokenizer and a model that do not fit are one line, where they are loaded together."""

import json
import shutil

import pytest
from tokenizers import Tokenizer as Fast

import eval
import train
from model import cli
from tests.conftest import write_jsonl

GOOD = {"prompt": "Hi?", "chosen": "Hello.", "rejected": "Go."}


@pytest.fixture
def unresized(tiny, tmp_path):
    """A model whose tokenizer got tokens, and whose embeddings did not."""
    path = tmp_path / "model"
    shutil.copytree(tiny, path)
    fast = Fast.from_file(str(path / "tokenizer.json"))
    fast.add_special_tokens(["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"])
    fast.save(str(path / "tokenizer.json"))
    return path


def commands(model, place):
    """Training and scoring, as the command lines have them."""
    data = write_jsonl(place / "d.jsonl", [GOOD])
    asked = write_jsonl(place / "s.jsonl", [{"prompt": "Hi", "responses": ["a"]}])
    out = place / "out.jsonl"
    recipe = place / "r.toml"
    recipe.write_text(f'[model]\npath = "{model}"\n[run]\ndir = "{place}/run"\n')
    scoring = ["score", "--model", model, "--template", "paper", "--data", asked, "--out", out]
    yield train.main, [recipe, f"data.train={data}", "data.template=paper"]
    yield eval.main, scoring


def test_added_tokens_without_embeddings(unresized, tmp_path, capsys):
    for main, words in commands(unresized, tmp_path):
        assert cli.run(main, [str(word) for word in words]) == 2
        said = capsys.readouterr().err
        assert "tokenizer.json has ids up to 49154, the embeddings 49152 rows" in said


def test_an_end_of_sequence_that_is_no_token(unresized, tmp_path, capsys):
    config = json.loads((unresized / "config.json").read_text())
    config |= {"vocab_size": 49280, "eos_token_id": [2, 49200]}
    (unresized / "config.json").write_text(json.dumps(config))
    (unresized / "generation_config.json").unlink(missing_ok=True)
    for main, words in commands(unresized, tmp_path):
        assert cli.run(main, [str(word) for word in words]) == 2
        said = capsys.readouterr().err
        assert "ids up to 49154, the embeddings 49280 rows" in said
        assert "eos_token_id 49200 is no token" in said
