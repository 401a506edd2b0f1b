"""One interface over the three kinds of tokenizer file: tokenizer.json, Llama-3's tokenizer.model, a sentencepiece model.

Which one it is is read from the bytes, not from the name.
"""

import base64
import binascii
import json
import re
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from model.config import existing
from model.errors import InputError
from model.files import read_json

LLAMA3_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    *(f"<|reserved_special_token_{n}|>" for n in range(3, 248)),
)


class Tokenizer:
    """Text to ids and back. `encode` is for user text: whatever it says, no control token comes out of it."""

    def __init__(self, path, backend, bos_id=None, eos_ids=()):
        self.path, self._backend, self.bos_id, self.eos_ids = (
            Path(path),
            backend,
            bos_id,
            tuple(eos_ids),
        )
        self.vocab_size = backend.vocab_size

    def encode(self, text):
        """Ids of plain text: special tokens are not recognised in it, no BOS is added."""
        return self._backend.encode(text)

    def encode_rendered(self, text):
        """Ids of text that a template has rendered already: special tokens are recognised, none is added."""
        return self._backend.encode_rendered(text)

    def decode(self, ids, skip_special=True):
        return self._backend.decode(list(ids), skip_special)

    def token_id(self, text):
        """The id of exactly this token; None if there is no such token."""
        return self._backend.token_id(text)

    def token(self, index):
        return self._backend.token(index)


class _Fast:
    """A Hugging Face `tokenizers` tokenizer, and its twin without added tokens, for user text."""

    def __init__(self, full):
        full.no_truncation()  # some files carry settings of the training run that wrote them
        full.no_padding()
        self.full = full
        raw = json.loads(full.to_str())
        self.specials = {token["id"] for token in raw["added_tokens"]}
        # added tokens not marked special would be recognised in user text too, so the twin has none at all
        raw["added_tokens"], raw["post_processor"] = [], None
        self.plain = FastTokenizer.from_str(json.dumps(raw))
        self.vocab_size = full.get_vocab_size(with_added_tokens=True)

    def encode(self, text):
        return self.plain.encode(text, add_special_tokens=False).ids

    def encode_rendered(self, text):
        return self.full.encode(text, add_special_tokens=False).ids

    def decode(self, ids, skip_special):
        return self.full.decode(
            [i for i in ids if i not in self.specials] if skip_special else ids,
            skip_special_tokens=False,
        )

    def token_id(self, text):
        return self.full.token_to_id(text)

    def token(self, index):
        return self.full.id_to_token(index)


class _SentencePiece:
    """A sentencepiece model; its control symbols never come from text, so rendered text is split at them."""

    def __init__(self, processor):
        self.sp, self.vocab_size = processor, processor.get_piece_size()
        control = [
            processor.id_to_piece(i) for i in range(self.vocab_size) if processor.is_control(i)
        ]
        self.control = {piece: processor.piece_to_id(piece) for piece in control}
        self.split = re.compile(
            "(" + "|".join(map(re.escape, control)) + ")" if control else r"(?!)()"
        )

    def encode(self, text):
        return self.sp.encode(text)

    def encode_rendered(self, text):
        pieces = [piece for piece in self.split.split(text) if piece]
        return [
            i
            for piece in pieces
            for i in ([self.control[piece]] if piece in self.control else self.sp.encode(piece))
        ]

    def decode(self, ids, skip_special):
        if skip_special:
            return self.sp.decode([i for i in ids if not self.sp.is_control(i)])
        text, run = "", []
        for i in [*ids, None]:
            if i is None or self.sp.is_control(i):
                text += self.sp.decode(run) + ("" if i is None else self.sp.id_to_piece(i))
                run = []
            else:
                run.append(i)
        return text

    def token_id(self, text):
        index = self.sp.piece_to_id(text)
        return None if index == self.sp.unk_id() and text != self.sp.id_to_piece(index) else index

    def token(self, index):
        return self.sp.id_to_piece(index)


def load_tokenizer(model_dir):
    """The tokenizer of a model directory: tokenizer.json, else tokenizer.model. Raises InputError for a missing or broken file."""
    model_dir = existing(model_dir)
    path = next(
        (
            model_dir / name
            for name in ("tokenizer.json", "tokenizer.model")
            if (model_dir / name).exists()
        ),
        None,
    )
    if path is None:
        raise InputError(
            f"{model_dir}: no tokenizer.json and no tokenizer.model; copy the model's tokenizer beside its weights"
        )
    backend = read_backend(path)
    settings = {}
    for name in (
        "config.json",
        "generation_config.json",
    ):  # the later one wins: it has the whole list of end-of-turn ids
        if (model_dir / name).exists():
            settings |= {k: v for k, v in read_json(model_dir / name).items() if v is not None}
    eos = settings.get("eos_token_id", [])
    return Tokenizer(
        path, backend, settings.get("bos_token_id"), eos if isinstance(eos, list) else [eos]
    )


def read_backend(path):
    data = Path(path).read_bytes()
    if data.lstrip()[:1] == b"{":
        try:
            return _Fast(FastTokenizer.from_str(data.decode("utf-8")))
        except Exception as error:  # the library raises bare Exception for every kind of bad file
            raise InputError(
                f"{path}: not a whole tokenizer.json ({error}); it may be cut short: copy it again"
            ) from error
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\n", data):
        return _Fast(llama3_bpe(_ranks(data, path)))
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(data)
    except RuntimeError as error:
        raise InputError(
            f"{path}: neither tokenizers JSON, nor Llama-3 ranks, nor a sentencepiece model; copy the file again"
        ) from error
    return _SentencePiece(processor)


def _ranks(data, path):
    """[bytes] by rank, from lines of `base64 rank`."""
    ranks = []
    for number, line in enumerate(data.splitlines(), start=1):
        fields = line.split()
        try:
            token, rank = base64.b64decode(fields[0], validate=True), int(fields[1])
        except (binascii.Error, ValueError, IndexError) as error:
            raise InputError(
                f"{path}:{number}: expected base64 and a rank; the file may be cut short: copy it again"
            ) from error
        if rank != len(ranks):
            raise InputError(
                f"{path}:{number}: rank {rank} where {len(ranks)} was expected; the file may be cut short: copy it again"
            )
        ranks.append(token)
    return ranks


def llama3_bpe(ranks):
    """Llama-3's tokenizer.model as a `tokenizers` byte-level BPE: merges recovered from the ranks, specials after the last."""
    letter = _byte_letters()
    word = ["".join(letter[b] for b in token) for token in ranks]
    rank_of = {token: rank for rank, token in enumerate(ranks)}
    merges = [_last_merge(token, rank_of) for token in ranks if len(token) > 1]
    pairs = [tuple("".join(letter[b] for b in part) for part in merge) for merge in merges if merge]
    tokenizer = FastTokenizer(
        models.BPE({w: i for i, w in enumerate(word)}, pairs, ignore_merges=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in LLAMA3_SPECIALS]
    )
    return tokenizer


def _last_merge(token, rank_of):
    """The two parts that byte-pair merging by rank joins last to make `token`: the merge that a rank stands for."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        ranks = [rank_of.get(a + b, len(rank_of)) for a, b in zip(parts, parts[1:])]
        best = min(range(len(ranks)), key=ranks.__getitem__)
        if ranks[best] >= rank_of[token]:
            return None  # only reachable whole, which ignore_merges covers
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return tuple(parts)


def _byte_letters():
    """The printable letter that stands for each byte in a byte-level BPE vocabulary (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return {b: chr(b) if b in printable else chr(next(others)) for b in range(256)}
