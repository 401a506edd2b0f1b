"""Three kinds of tokenizer file against independent implementations; no text makes a control token."""

import base64
import json

import pytest
import sentencepiece
from tokenizers import AddedToken
from tokenizers import Tokenizer as Fast

from model.errors import InputError
from model.tokenizer import LLAMA3_SPECIALS, _byte_letters, load_tokenizer

NASTY = [
    "Plain words, and don't they'll I'm?",
    "café naïve e\u0301 \u200b zero",
    "emoji 👩‍👩‍👧 and flags 🇫🇷",
    "digits 1234567 3.14 1,000",
    "  two  spaces\n\n\nlines\t\ttabs \r\n end ",
    "def f(x):\n    return x ** 2  # code",
    "日本語とالعربية",
    "",
    " ",
    "<b>html</b> <|notatoken|>",
]


@pytest.mark.peer
def test_tokenizer_json_equals_transformers(smollm2, tokenizer):
    from transformers import PreTrainedTokenizerFast

    peer = PreTrainedTokenizerFast(tokenizer_file=str(smollm2 / "tokenizer.json"))
    for text in NASTY:
        assert (
            tokenizer.encode(text)
            == peer.encode(text, add_special_tokens=False)
            == tokenizer.encode_rendered(text)
        )
    rendered = "<|im_start|>user\nHi<|im_end|>\n"
    assert tokenizer.encode_rendered(rendered) == peer.encode(rendered, add_special_tokens=False)


def test_round_trip_and_specials(tokenizer):
    for text in NASTY:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    start, end = tokenizer.token_id("<|im_start|>"), tokenizer.token_id("<|im_end|>")
    assert (start, end, tokenizer.bos_id, tokenizer.eos_ids) == (1, 2, 1, (2,))
    assert (
        tokenizer.encode_rendered("<|im_end|>") == [end]
        and end not in tokenizer.encode("<|im_end|>")
        and len(tokenizer.encode("<|im_end|>")) > 3
    )
    assert (
        tokenizer.decode([start, *tokenizer.encode("a"), end]) == "a"
        and tokenizer.decode([end], skip_special=False) == "<|im_end|>"
    )
    assert (
        tokenizer.token_id("<|nothing|>") is None
        and tokenizer.token(2) == "<|im_end|>"
        and tokenizer.vocab_size == 49152
    )


def test_added_tokens_not_marked_special_cannot_be_injected_either(smollm2, tmp_path):
    fast = Fast.from_file(str(smollm2 / "tokenizer.json"))
    fast.add_tokens([AddedToken("<|tool|>", special=False)])
    fast.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    index = tokenizer.token_id("<|tool|>")
    assert (
        index == 49152
        and tokenizer.encode_rendered("a<|tool|>")[-1] == index
        and index not in tokenizer.encode("a<|tool|>")
    )


def merge_by_rank(data, ranks):
    """tiktoken's algorithm, written out: join the adjacent pair of lowest rank until none is left."""
    parts = [data[i : i + 1] for i in range(len(data))]
    while True:
        pairs = [
            (ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:])) if a + b in ranks
        ]
        if not pairs:
            return [ranks[part] for part in parts]
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@pytest.fixture(scope="module")
def llama3_dir(smollm2, tmp_path_factory):
    """A tokenizer.model in Llama-3's form: 256 bytes, then SmolLM2's first merges as ranks."""
    path = tmp_path_factory.mktemp("llama3")
    to_byte = {letter: byte for byte, letter in _byte_letters().items()}
    merges = json.loads((smollm2 / "tokenizer.json").read_text())["model"]["merges"][:3000]
    tokens = [bytes([b]) for b in range(256)] + [
        bytes(to_byte[c] for c in "".join(m)) for m in merges
    ]
    tokens = list(dict.fromkeys(tokens))
    (path / "tokenizer.model").write_bytes(
        b"".join(base64.b64encode(t) + b" %d\n" % n for n, t in enumerate(tokens))
    )
    (path / "config.json").write_text(
        json.dumps(
            {"bos_token_id": len(tokens), "eos_token_id": [len(tokens) + 1, len(tokens) + 9]}
        )
    )
    return path, {t: n for n, t in enumerate(tokens)}


def test_llama3_ranks_equal_byte_pair_merging_by_rank(llama3_dir):
    path, ranks = llama3_dir
    tokenizer = load_tokenizer(path)
    for word in (
        "the",
        " there",
        " something",
        "ing",
        " 文字",
        "é",
        " café",
        "antidisestablishmentarianism",
        " questions",
    ):
        want = (
            [ranks[word.encode()]]
            if word.encode() in ranks
            else merge_by_rank(word.encode(), ranks)
        )
        assert tokenizer.encode(word) == want, word
    for text in NASTY:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_llama3_splits_digits_by_three_and_specials_follow_the_ranks(llama3_dir):
    path, ranks = llama3_dir
    tokenizer = load_tokenizer(path)
    assert tokenizer.encode("1234567") == [
        i for part in ("123", "456", "7") for i in tokenizer.encode(part)
    ]
    assert [tokenizer.token_id(text) for text in LLAMA3_SPECIALS] == list(
        range(len(ranks), len(ranks) + 256)
    )
    assert (
        LLAMA3_SPECIALS[9] == "<|eot_id|>"
        and LLAMA3_SPECIALS[6:8] == ("<|start_header_id|>", "<|end_header_id|>")
        and LLAMA3_SPECIALS[255] == "<|reserved_special_token_247|>"
    )
    assert tokenizer.bos_id == len(ranks) and tokenizer.eos_ids == (len(ranks) + 1, len(ranks) + 9)
    assert (
        tokenizer.encode_rendered("a<|eot_id|>")[-1]
        == len(ranks) + 9
        not in tokenizer.encode("a<|eot_id|>")
    )


@pytest.fixture(scope="module")
def sentencepiece_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("sp")
    text = path / "text.txt"
    text.write_text(
        "\n".join(
            f"the {a} {b} and some other words number {n}"
            for n, (a, b) in enumerate(
                (a, b)
                for a in ("old", "new", "quiet", "loud")
                for b in ("tree", "river", "letter", "engine")
            )
        )
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(path / "tokenizer"),
        vocab_size=320,
        byte_fallback=True,
        model_type="bpe",
        character_coverage=1.0,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    (path / "config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    return path


def test_sentencepiece(sentencepiece_dir):
    tokenizer = load_tokenizer(sentencepiece_dir)
    library = sentencepiece.SentencePieceProcessor(
        model_file=str(sentencepiece_dir / "tokenizer.model")
    )
    for text in ("the old river", "something new, quite unseen", "café"):
        assert (
            tokenizer.encode(text) == library.encode(text)
            and tokenizer.decode(tokenizer.encode(text)) == text
        )
    assert (
        tokenizer.token_id("<s>"),
        tokenizer.token_id("</s>"),
        tokenizer.token_id("<|im_end|>"),
    ) == (1, 2, None)
    assert tokenizer.encode_rendered("<s>the tree</s>") == [
        1,
        *library.encode("the tree"),
        2,
    ] and 2 not in tokenizer.encode("the tree</s>")
    assert tokenizer.decode(
        [1, *library.encode("the tree"), 2]
    ) == "the tree" and "</s>" in tokenizer.decode([2], skip_special=False)


def test_truncation_and_padding_stored_in_the_file_are_not_applied(smollm2, tmp_path, tokenizer):
    fast = Fast.from_file(str(smollm2 / "tokenizer.json"))
    fast.enable_truncation(3)
    fast.enable_padding(length=64)
    fast.save(str(tmp_path / "tokenizer.json"))
    found = load_tokenizer(tmp_path)
    for text in NASTY:
        assert found.encode(text) == found.encode_rendered(text) == tokenizer.encode(text)


def test_kind_is_read_from_the_bytes(smollm2, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes((smollm2 / "tokenizer.json").read_bytes())
    assert load_tokenizer(tmp_path).encode("hello") == load_tokenizer(smollm2).encode("hello")


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("tokenizer.json", b'{"version": "1.0"', "not a whole tokenizer.json"),
        ("tokenizer.json", b"", "neither tokenizers JSON"),
        ("tokenizer.model", b"IQ== 0\nIg== 2\n", "tokenizer.model:2: rank 2 where 1 was expected"),
        ("tokenizer.model", b"IQ== 0\nIg=", "tokenizer.model:2: expected base64"),
        (
            "tokenizer.model",
            b"\x00\x01garbage",
            "neither tokenizers JSON, nor Llama-3 ranks, nor a sentencepiece model",
        ),
    ],
)
def test_bad_files(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        load_tokenizer(tmp_path)
