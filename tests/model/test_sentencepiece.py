"""Sentencepiece models against the library itself, and the markers of a chat in them."""

import json
import random
import re

import pytest
import sentencepiece

from model.errors import InputError
from model.tokenizer import load_tokenizer
from tests.model.test_tokenizer import CHATML, FORGED

SENTENCES = [
    f"the {a} {b} and some other words number {n}"
    for n, (a, b) in enumerate(
        (a, b)
        for a in ("old", "new", "quiet", "loud")
        for b in ("tree", "river", "letter", "engine")
    )
]


def pieces_in(path, files=None, **options):
    """A directory with a small sentencepiece model: its tokenizer, and the library's own."""
    path.mkdir(exist_ok=True)
    standard = {"vocab_size": 320, "byte_fallback": True, "model_type": "bpe"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_prefix=str(path / "tokenizer"),
        character_coverage=1.0,
        minloglevel=2,
        hard_vocab_limit=False,
        **standard | options,
    )
    for name, value in ({"config": {"bos_token_id": 1, "eos_token_id": 2}} | (files or {})).items():
        (path / f"{name}.json").write_text(json.dumps(value))
    model = str(path / "tokenizer.model")
    return load_tokenizer(path), sentencepiece.SentencePieceProcessor(model_file=model)


@pytest.fixture(scope="module")
def sentencepiece_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("sp")
    pieces_in(path)
    return path


def test_sentencepiece(sentencepiece_dir):
    tokenizer = load_tokenizer(sentencepiece_dir)
    model = str(sentencepiece_dir / "tokenizer.model")
    library = sentencepiece.SentencePieceProcessor(model_file=model)
    for text in ("the old river", "something new, quite unseen", "café"):
        assert tokenizer.encode(text) == library.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.token_id("<s>") == 1 and tokenizer.token_id("</s>") == 2
    assert tokenizer.token_id("<|im_end|>") is None
    rendered = [1, *library.encode("the tree"), 2]
    assert tokenizer.encode_rendered("<s>the tree</s>") == rendered
    assert 2 not in tokenizer.encode("the tree</s>")
    assert tokenizer.decode(rendered) == "the tree"
    assert "</s>" in tokenizer.decode([2], skip_special=False)


def between(library, text, hard, legacy):
    """Ids of text cut at some tokens; with legacy=False only its very start gets a prefix space.

    Without one: what stands before is encoded too, and its ids are cut off again.
    """
    ids = []
    before = library.encode("n:")
    for part in re.split("(" + "|".join(map(re.escape, hard)) + ")", text):
        if part in hard:
            ids.append(hard[part])
        elif part and (legacy or not ids):
            ids += library.encode(part)
        elif part:
            ids += library.encode("n:" + part)[len(before) :]
    return ids


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("model", ["bpe", "unigram"])
@pytest.mark.parametrize("kind", ["control", "user-defined", "added", "renamed"])
def test_sentencepiece_markers(kind, model, legacy, tmp_path):
    """ChatML's markers as control pieces, as user-defined ones, and as tokens added beside it."""
    options = {"model_type": model, "vocab_size": 310, "remove_extra_whitespaces": False}
    options |= {"normalization_rule_name": "identity"}
    files = {"tokenizer_config": {"legacy": legacy}}
    if kind == "control":
        options["control_symbols"] = CHATML
    elif kind == "user-defined":
        options["user_defined_symbols"] = [*CHATML, "<think>"]
    elif kind == "renamed":
        options["user_defined_symbols"] = ["<r0>", "<r1>"]
        names = {3 + n: {"content": text, "special": True} for n, text in enumerate(CHATML)}
        files["tokenizer_config"]["added_tokens_decoder"] = names
    else:
        texts = [*CHATML, "<think>"]
        files["added_tokens"] = {text: 900 + n for n, text in enumerate(texts)}
    tokenizer, library = pieces_in(tmp_path, files, **options)
    start, end = map(tokenizer.token_id, CHATML)
    assert tokenizer.vocab_size == (903 if kind == "added" else library.get_piece_size())

    hard = {"<s>": 1, "</s>": 2}
    if kind != "user-defined":
        hard |= {CHATML[0]: start, CHATML[1]: end}
    if kind == "added":
        hard["<think>"] = 902
    for text in ("the river", " old", "", "  a  tree\n", "a <think> new", "\ufdd03\ufdd0 the"):
        parts = [start, "user\n", text, end, "\n", start, "assistant\n"]
        rendered = f"{CHATML[0]}user\n{text}{CHATML[1]}\n{CHATML[0]}assistant\n"
        expected = between(library, rendered, hard, legacy)
        assert tokenizer.encode_parts(parts) == expected, text
        assert tokenizer.encode_rendered(rendered) == expected, text
    for text in FORGED:
        assert not {1, 2, start, end} & set(tokenizer.encode(text)), text
    ids = tokenizer.encode("the <think> river")
    assert (tokenizer.token_id("<think>") in ids) == (kind in ("user-defined", "added"))
    if not (kind == "added" and legacy):  # there a space is put after it, as transformers did
        assert tokenizer.decode([1, *ids, 2]) == "the <think> river"


def test_a_piece_that_is_given_another_text_is_no_longer_made_by_its_own(tmp_path):
    tokenizer, library = pieces_in(tmp_path)
    first = library.encode("the tree")[0]
    added = {str(first): {"content": "<think>", "special": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    renamed = load_tokenizer(tmp_path)
    assert first in tokenizer.encode("the tree") and first not in renamed.encode("the tree")
    assert renamed.encode("<think>") == [first] and renamed.decode([first]) == "<think>"
    assert renamed.decode(renamed.encode("the tree")) == "the tree"


def test_a_broken_sentencepiece_model_is_read_or_refused(sentencepiece_dir, tmp_path):
    whole = (sentencepiece_dir / "tokenizer.model").read_bytes()
    generator = random.Random(0)
    refused = 0
    for number in range(60):
        data = bytearray(whole[: generator.randrange(len(whole))] if number % 2 else whole)
        for _ in range(number % 5):
            data[generator.randrange(len(data))] = generator.randrange(256)
        (tmp_path / "tokenizer.model").write_bytes(data)
        try:
            load_tokenizer(tmp_path).encode("the old river")
        except InputError:
            refused += 1
    assert refused > 20
