"""Ids of tokenizer, settings and embeddings are compared; one that no token has is shown."""

from types import SimpleNamespace

import pytest

from model.errors import InputError
from model.tokenizer import check_sizes
from tests.model.test_sentencepiece import pieces_in
from tests.model.test_tokenizer import saved, trained


def test_an_id_that_no_token_has_is_shown(tokenizer, tmp_path):
    for some in (tokenizer, pieces_in(tmp_path)[0]):
        beyond = some.vocab_size
        ids = some.encode("the old river")
        text = some.decode([*ids, beyond, beyond + 7, *ids])
        assert text == f"the old river<|token {beyond}|><|token {beyond + 7}|>the old river"
        assert some.decode([beyond]) == f"<|token {beyond}|>"
        assert some.token(beyond) is None and some.token(-1) is None and some.token(1 << 40) is None


def test_sizes_are_compared_and_both_named(tokenizer, tmp_path):
    check_sizes(tokenizer, SimpleNamespace(vocab_size=49152), "here")
    check_sizes(tokenizer, SimpleNamespace(vocab_size=49280), "here")  # padded
    both = "here: tokenizer.json has ids up to 49151, the embeddings 49151 rows"
    with pytest.raises(InputError, match=both):
        check_sizes(tokenizer, SimpleNamespace(vocab_size=49151), "here")
    pieces, _ = pieces_in(tmp_path / "pieces")
    with pytest.raises(InputError, match=f"ids up to {pieces.vocab_size - 1}, .* 300 rows"):
        check_sizes(pieces, SimpleNamespace(vocab_size=300), "here")

    # Ids that the settings name, also one in the padding: no token has it.
    fast = trained("bpe", "first")
    for name, value in (
        ("eos_token_id", 310),
        ("eos_token_id", [2, 1 << 40]),
        ("bos_token_id", 999),
    ):
        some = saved(fast, tmp_path, config={name: value})
        assert some.vocab_size < 310
        with pytest.raises(InputError, match=f"320 rows .*{name} [0-9]+ is no token"):
            check_sizes(some, SimpleNamespace(vocab_size=320), "here")


def test_ids_of_the_settings_are_ids(tmp_path):
    fast = trained("bpe", "first")
    for value in ("</s>", 2.0, True, -1, [2, None], {"id": 2}):
        with pytest.raises(InputError, match="config.json: eos_token_id: expected a token id or a"):
            saved(fast, tmp_path, config={"eos_token_id": value})
    some = saved(fast, tmp_path, config={"eos_token_id": 0}, generation_config={"eos_token_id": []})
    assert some.eos_ids == ()
    assert saved(fast, tmp_path, generation_config={"eos_token_id": None}).eos_ids == (0,)
