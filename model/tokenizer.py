"""One interface over the three kinds of tokenizer file: tokenizer.json, Llama-3's tokenizer.model,
a sentencepiece model. Which one it is is read from the bytes, not from the name.

Three sorts of token: the pieces of the vocabulary; language, added tokens that are text like any
other (<think>, ü); control, which a chat template writes and which no user text can make.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from model.config import existing
from model.errors import InputError
from model.fast_tokenizer import FastBackend
from model.files import check_unicode
from model.sentencepieces import SentencePieceBackend
from model.tokenizer_settings import Settings, read_settings

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
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
# Control in every tokenizer that has them, however its file marks them: what the templates write
# (a test compares), and the usual ends of a sequence.
MARKERS = frozenset(
    {
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<s>",
        "</s>",
    }
)


class Tokenizer:
    """Text to ids and back. No control token ever comes out of text that `encode` is given."""

    def __init__(self, path, backend, bos_id: int | None = None, eos_ids: Iterable[int] = ()):
        self.path = Path(path)
        self.bos_id = bos_id
        self.eos_ids = tuple(eos_ids)
        self._backend = backend

    @property
    def vocab_size(self) -> int:
        """The largest id of any token, and one: what the embeddings must have rows for."""
        return self._backend.vocab_size

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: control tokens are not recognised in it, no BOS is added.

        How that is kept: FastBackend (fast_tokenizer.py) and sentencepieces.py.
        """
        return self.encode_parts([text])

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        """Ids of plain text (str) between control tokens (their ids).

        They are those of the rendered text: a prefix space stands where it would stand there, but
        what looks like a control token inside a plain text is text. Raises InputError for half of
        a surrogate pair.
        """
        check_unicode(parts, "a text for the tokenizer")
        return self._backend.encode_parts(parts)

    def encode_rendered(self, text: str) -> list[int]:
        """Ids of text that a template has rendered: control tokens are recognised in it."""
        check_unicode(text, "a text for the tokenizer")
        return self._backend.encode_rendered(text)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of the ids. Special tokens are left out, or shown with skip_special=False.

        An id that no token has (embeddings may be padded) is shown as <|token 49153|>.
        """
        text = ""
        run = []
        for index in ids:
            if self.token(index) is None:
                text += self._backend.decode(run, skip_special, not text)
                text += f"<|token {index}|>"
                run = []
            else:
                run.append(index)
        return text + self._backend.decode(run, skip_special, not text)

    def token_id(self, text: str) -> int | None:
        """The id of exactly this token; None if there is no such token."""
        return self._backend.token_id(text)

    def token(self, index: int) -> str | None:
        """The token of an id; None if there is none."""
        return self._backend.token(index)


def check_sizes(tokenizer: Tokenizer, config: Any, where: str | Path) -> None:
    """Raises InputError unless every id of tokenizer and settings has a row in the embeddings.

    config: a LlamaConfig. More rows than tokens are usual: embeddings are padded.
    """
    sizes = (
        f"{where}: {tokenizer.path.name} has ids up to {tokenizer.vocab_size - 1}, the embeddings"
    )
    sizes += f" {config.vocab_size} rows (vocab_size)"
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"{sizes}; tokens were added and the embeddings not resized, "
            "or the tokenizer is another model's: copy the right one"
        )
    named = {"bos_token_id": [tokenizer.bos_id], "eos_token_id": tokenizer.eos_ids}
    for name, ids in named.items():
        for index in ids:
            if index is not None and tokenizer.token(index) is None:
                raise InputError(
                    f"{sizes}; {name} {index} is no token: "
                    "mend config.json or generation_config.json"
                )


# Loading


def load_tokenizer(model_dir: str | Path) -> Tokenizer:
    """The tokenizer of a model directory: tokenizer.json, else tokenizer.model.

    Raises InputError for a missing or broken file, and for settings that name no ids.
    """
    model_dir = existing(model_dir)
    names = ("tokenizer.json", "tokenizer.model")
    present = [model_dir / name for name in names if (model_dir / name).exists()]
    if not present:
        raise InputError(
            f"{model_dir}: no tokenizer.json and no tokenizer.model; "
            "copy the model's tokenizer beside its weights"
        )
    settings = read_settings(model_dir)
    backend = read_backend(present[0], settings)
    return Tokenizer(present[0], backend, settings.bos_id, settings.eos_ids)


def read_backend(path: str | Path, settings: Settings | None = None):
    """The backend for the bytes of a tokenizer file. Raises InputError for a broken one."""
    path = Path(path)
    settings = settings or Settings()
    data = path.read_bytes()
    if data.lstrip()[:1] == b"{":
        try:
            full = FastTokenizer.from_str(data.decode("utf-8"))
        except Exception as error:  # the library raises bare Exception for every kind of bad file
            raise InputError(
                f"{path}: not a whole tokenizer.json ({error}); it may be cut short: copy it again"
            ) from error
        _add_tokens(full, settings.added, path)
        return FastBackend(full, _controls_of(settings), settings.eos_ids, path)
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\n", data):
        full = llama3_bpe(_ranks(data, path))
        return FastBackend(full, _controls_of(settings), settings.eos_ids, path)
    return SentencePieceBackend(data, path, _controls_of(settings), settings.added, settings.legacy)


def _controls_of(settings: Settings) -> frozenset[str]:
    special = {text for text, (_, is_special) in settings.added.items() if is_special}
    return MARKERS | settings.specials | special


def _add_tokens(full: FastTokenizer, added: dict[str, tuple[int, bool]], path: Path) -> None:
    """The tokens of tokenizer_config.json that tokenizer.json lacks, at the ids it says."""
    for text, (index, special) in sorted(added.items(), key=lambda item: item[1]):
        if full.token_to_id(text) is None:
            full.add_tokens([AddedToken(text, special=special, normalized=False)])
            if full.token_to_id(text) != index:
                raise InputError(
                    f"{path}: lacks the token {text!r} that tokenizer_config.json has as {index}, "
                    f"and would give it the id {full.token_to_id(text)}; copy both files again"
                )


# Llama-3's tokenizer.model


def _ranks(data: bytes, path: Path) -> list[bytes]:
    """Tokens by rank, from lines of `base64 rank`."""
    ranks = []
    for number, line in enumerate(data.splitlines(), start=1):
        fields = line.split()
        try:
            token = base64.b64decode(fields[0], validate=True)
            rank = int(fields[1])
        except (binascii.Error, ValueError, IndexError) as error:
            raise InputError(
                f"{path}:{number}: expected base64 and a rank; "
                "the file may be cut short: copy it again"
            ) from error
        if rank != len(ranks):
            raise InputError(
                f"{path}:{number}: rank {rank} where {len(ranks)} was expected; "
                "the file may be cut short: copy it again"
            )
        ranks.append(token)
    return ranks


def llama3_bpe(ranks: list[bytes]) -> FastTokenizer:
    """Llama-3's tokenizer.model as a `tokenizers` byte-level BPE.

    Merges are recovered from the ranks; the special tokens follow the last rank.
    """
    letter = _byte_letters()
    words = ["".join(letter[b] for b in token) for token in ranks]
    rank_of = {token: rank for rank, token in enumerate(ranks)}
    merges = []
    for token in ranks:
        parts = _last_merge(token, rank_of) if len(token) > 1 else None
        if parts:
            merges.append(tuple("".join(letter[b] for b in part) for part in parts))
    vocabulary = {word: rank for rank, word in enumerate(words)}
    tokenizer = FastTokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    splits = [
        pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [AddedToken(text, special=True, normalized=False) for text in LLAMA3_SPECIALS]
    tokenizer.add_special_tokens(specials)
    return tokenizer


def _last_merge(token: bytes, rank_of: dict[bytes, int]) -> tuple[bytes, ...] | None:
    """The two parts that byte-pair merging by rank joins last to make `token`.

    None if merging never makes it: it is then reached whole, which ignore_merges covers.
    """
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        ranks = [rank_of.get(a + b, len(rank_of)) for a, b in zip(parts, parts[1:])]
        best = min(range(len(ranks)), key=ranks.__getitem__)
        if ranks[best] >= rank_of[token]:
            return None
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return tuple(parts)


def _byte_letters() -> dict[int, str]:
    """The printable letter for each byte in a byte-level BPE vocabulary (GPT-2's table)."""
    letters = {b: chr(b) for b in (*range(33, 127), *range(161, 173), *range(174, 256))}
    others = iter(range(256, 512))
    return {b: letters[b] if b in letters else chr(next(others)) for b in range(256)}
