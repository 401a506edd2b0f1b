"""The tokenizer that a GGUF file carries, as tokenizer.json and the settings beside it."""

from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from model.errors import InputError
from model.gguf_file import Gguf
from model.tokenizer import LLAMA3_SPLIT

# Llama-3's way to cut text, but for numbers, which fall into single digits.
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")

CONTROL, USER_DEFINED = 3, 4  # GGUF token types

# Tokens that end a turn, where a model has them.
ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "</s>")
QWEN_ENDS = ("<|endoftext|>",)  # elsewhere it may be padding alone


def tokenizer_of(gguf: Gguf) -> FastTokenizer:
    """A `tokenizers` byte-level BPE from the file's tokens and merges."""
    tokens = gguf.texts("tokenizer.ggml.tokens")
    kinds = gguf.integers("tokenizer.ggml.token_type")
    if len(kinds) != len(tokens):
        raise InputError(f"{gguf.path}: {len(tokens)} tokens, but {len(kinds)} token types")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise InputError(f"{gguf.path}: a token occurs twice among its {len(tokens)}")

    pre = gguf.text("tokenizer.ggml.pre", "default")
    merges = _merges(gguf, vocabulary)
    tokenizer = FastTokenizer(models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(gguf, pre)
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, kinds):
        if kind in (CONTROL, USER_DEFINED):
            row = AddedToken(token, special=kind == CONTROL, normalized=False)
            tokenizer.add_tokens([row])
    return tokenizer


def _merges(gguf: Gguf, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs that are merged, in order. Raises InputError for one that makes no token."""
    merges = []
    for text in gguf.texts("tokenizer.ggml.merges"):
        left, _, right = text.partition(" ")
        parts_known = left in vocabulary and right in vocabulary
        if not parts_known or left + right not in vocabulary:
            raise InputError(
                f"{gguf.path}: the merge {text!r:.80} does not join two tokens into a third"
            )
        merges.append((left, right))
    return merges


def _pre_tokenizer(gguf: Gguf, pre: str) -> pre_tokenizers.PreTokenizer:
    """The way text is cut before merging, by the name that llama.cpp gives it."""
    cuts_itself = pre not in ("llama-bpe", "qwen2")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cuts_itself)
    splits = {
        "smollm": [pre_tokenizers.Digits(individual_digits=True), byte_level],
        "gpt-2": [byte_level],
        "default": [byte_level],
        "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"), byte_level],
        "qwen2": [pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"), byte_level],
    }
    if pre not in splits:
        raise InputError(f"{gguf.path}: pre-tokenizer {pre!r:.80}; known ones: {', '.join(splits)}")
    return pre_tokenizers.Sequence(splits[pre])


def tokenizer_settings(gguf: Gguf, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{file name: object} of tokenizer_config.json and generation_config.json."""
    tokens = gguf.texts("tokenizer.ggml.tokens")

    # The tokens with a role, by their ids.
    named = {}
    for role in ("bos", "eos", "padding"):
        key = f"tokenizer.ggml.{role}_token_id"
        index = gguf.integer(key, None)
        if index is None:
            continue
        if not 0 <= index < len(tokens):
            raise InputError(f"{gguf.path}: {key} is {index}; it has {len(tokens)} tokens")
        named[f"{role}_token"] = tokens[index]
    named["pad_token"] = named.pop("padding_token", named.get("eos_token"))

    # A turn ends with eos, and with whatever marker of the known ones the vocabulary has.
    indices = {token: index for index, token in enumerate(tokens)}
    stated = [config["eos_token_id"]] if config["eos_token_id"] is not None else []
    known = ENDS
    if gguf.text("tokenizer.ggml.pre", "default") == "qwen2":
        known += QWEN_ENDS
    ends = dict.fromkeys([*stated, *(indices[end] for end in known if end in indices)])

    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    chat = gguf.text("tokenizer.chat_template", None)
    if chat:
        tokenizer_config["chat_template"] = chat
    return {
        "tokenizer_config.json": tokenizer_config,
        "generation_config.json": {
            "bos_token_id": config["bos_token_id"],
            "eos_token_id": list(ends),
        },
    }
