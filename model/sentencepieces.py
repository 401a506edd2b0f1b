"""The backend of a sentencepiece model, and the little of its file format that it takes."""

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from model.errors import InputError
from model.fast_tokenizer import MARKUP, absent_mark, sentinel

# Kinds of piece in the file, and the fields of its messages that matter here.
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
PIECES, SELF_TEST = 1, 4
TEXT, KIND = 1, 3
# Settings of normalizer_spec, merged into the file's own when it is loaded.
NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
KEEP_SPACES = b"\x1a\x02\x20\x00"  # remove_extra_whitespaces: false

# The file has no word for "special": user-defined pieces of these shapes are a chat's markers.
MARKER = re.compile(r"<\|.+\|>|<(start|end)_of_turn>|\[/?INST\]")


class SentencePieceBackend:
    """A sentencepiece model with the tokens that were added beside it (tokenizer_config.json).

    Control pieces and added tokens cut a text into parts, each encoded on its own, with a prefix
    space (legacy) or with one at the very start alone. A chat's markers that are user-defined
    pieces stand inside the text, as sentencepiece has it, but under secret names.
    """

    def __init__(
        self,
        proto: bytes,
        path: str | Path,
        controls: Collection[str],
        added: dict[str, tuple[int, bool]],
        legacy: bool,
    ):
        self.path = path
        try:
            self.processor = _processor(proto)
            pieces = list(read_pieces(proto))
        except (RuntimeError, LookupError, ValueError) as error:
            raise InputError(
                f"{path}: neither tokenizers JSON, nor Llama-3 ranks, nor a sentencepiece model; "
                "copy the file again"
            ) from error
        self.legacy = legacy
        self.added = {text: index for text, (index, _) in added.items()}
        self.added_text = {index: text for text, index in self.added.items()}
        self.special = {index for index, special in added.values() if special}
        self.vocab_size = max([len(pieces) - 1, *self.added_text]) + 1
        self.control, self.markers = self._sorted_out(pieces, controls)

        # Pieces that the file takes for text are told to be control, if they are, or have got
        # another text.
        changes = {}
        for index, (text, kind) in enumerate(pieces):
            renamed = self.added_text.get(index, text) != text
            if (renamed or index in self.control) and kind in (NORMAL, USER_DEFINED):
                changes[index] = None, CONTROL
        self.proto = rewritten(proto, changes)
        self.full = self._pair(self.proto)
        self.inside = _processor(self.proto + NO_DUMMY_PREFIX + KEEP_SPACES)
        self.twins = {}
        control_texts = set(map(self.token, self.control))
        self.language = _any_of(self.added.keys() - control_texts)
        self.recognised = _any_of(self.added.keys() | control_texts)

    def _sorted_out(
        self, pieces: list[tuple[str, int]], controls: Collection[str]
    ) -> tuple[set[int], set[int]]:
        """Ids that cut a text, and ids of markers inside of it."""
        control = self.special | {i for text, i in self.added.items() if text in controls}
        markers = set()
        for index, (text, kind) in enumerate(pieces):
            named = text in controls and MARKUP.fullmatch(text)
            if kind == CONTROL or (kind == NORMAL and named):
                control.add(index)
            elif kind == USER_DEFINED and (named or MARKER.fullmatch(text)):
                markers.add(index)
        return control, markers - control

    def _pair(self, proto: bytes) -> dict[bool, SentencePieceProcessor]:
        """{with a prefix space: processor}."""
        return {True: _processor(proto), False: _processor(proto + NO_DUMMY_PREFIX)}

    def _twin(self, mark: str) -> dict[bool, SentencePieceProcessor]:
        if mark not in self.twins:
            names = {index: (sentinel(mark, index), USER_DEFINED) for index in self.markers}
            self.twins[mark] = self._pair(rewritten(self.proto, names)) if names else self.full
        return self.twins[mark]

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        mark = absent_mark([part for part in parts if isinstance(part, str)])
        runs = [""]  # texts and ids that cut them, in turn
        for part in parts:
            if isinstance(part, str):
                runs[-1] += part
            elif part in self.markers:
                runs[-1] += sentinel(mark, part)
            else:
                runs += [part, ""]
        return self._encode(runs, self._twin(mark), self.language)

    def encode_rendered(self, text: str) -> list[int]:
        return self._encode([text], self.full, self.recognised)

    def _encode(self, runs, processors, tokens: re.Pattern) -> list[int]:
        """Ids of texts, cut where `tokens` match, and of the ids between them."""
        ids = []
        for run in runs:
            if isinstance(run, int):
                ids.append(run)
                continue
            for text in tokens.split(run):
                if tokens.fullmatch(text):
                    ids.append(self.token_id(text))
                elif text and (self.legacy or not ids):
                    ids += processors[True].encode(text)
                elif text:
                    ids += _without_prefix(text, processors[False])
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool, at_start: bool = True) -> str:
        text = ""
        run = []
        for index in ids:
            if index not in self.added_text and index not in self.control:
                run.append(index)
                continue
            text += self._text(run, at_start and not text)
            run = []
            hidden = index in self.special or index not in self.added_text
            if not (skip_special and hidden):
                text += self.token(index)
        return text + self._text(run, at_start and not text)

    def _text(self, ids: list[int], at_start: bool) -> str:
        """Text of pieces. Inside of a text the space that they begin with is its own."""
        processor = self.full[True] if self.legacy or at_start else self.inside
        return processor.decode(ids) if ids else ""

    def token_id(self, text: str) -> int | None:
        if text in self.added:
            return self.added[text]
        index = self.processor.piece_to_id(text)
        unknown = index == self.processor.unk_id() and text != self.processor.id_to_piece(index)
        return None if unknown else index

    def token(self, index: int) -> str | None:
        if index in self.added_text:
            return self.added_text[index]
        if 0 <= index < self.processor.get_piece_size():
            return self.processor.id_to_piece(index)
        return None


def _processor(proto: bytes) -> SentencePieceProcessor:
    processor = SentencePieceProcessor()
    processor.LoadFromSerializedProto(proto)
    return processor


def _without_prefix(text: str, processor: SentencePieceProcessor) -> list[int]:
    """Ids of text inside a longer one: the space that it begins with, if it does, is its own.

    At the start of a text some models take spaces away; so something stands before it.
    """
    if not text.startswith((" ", "\u2581")):
        return processor.encode(text)
    before = processor.id_to_piece(processor.unk_id())
    return processor.encode(before + text)[len(processor.encode(before)) :]


def _any_of(texts: Collection[str]) -> re.Pattern:
    """A pattern that splits a text at any of `texts`, the longest first, and keeps them."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("(" + ("|".join(map(re.escape, longest_first)) or r"(?!)") + ")")


# The file: a protocol buffer


def read_pieces(proto: bytes) -> Iterator[tuple[str, int]]:
    """(text, kind) of every piece, in order of id."""
    for number, value, _ in _fields(proto):
        if number == PIECES:
            piece = {TEXT: b"", KIND: NORMAL}
            piece |= {number: value for number, value, _ in _fields(value)}
            yield piece[TEXT].decode("utf-8"), piece[KIND]


def rewritten(proto: bytes, changes: dict[int, tuple[str | None, int]]) -> bytes:
    """The file with another text (None: the same) and kind for the pieces of some ids."""
    out = []
    index = 0
    for number, value, raw in _fields(proto):
        if number == SELF_TEST:  # what the unchanged model makes of some texts
            continue
        if number == PIECES:
            if index in changes:
                # Of a field that occurs twice the later one holds.
                text, kind = changes[index]
                value += b"" if text is None else _message(TEXT, text.encode())
                value += bytes([KIND << 3, kind])
                raw = _message(PIECES, value)
            index += 1
        out.append(raw)
    return b"".join(out)


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int, bytes]]:
    """(number, value, the field's bytes) of a message. Raises LookupError for a broken one."""
    at = 0
    while at < len(data):
        start = at
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
        else:
            if kind == 2:
                size, at = _varint(data, at)
            else:
                size = {1: 8, 5: 4}[kind]
            value = data[at : at + size]
            at += size
        yield tag >> 3, value, data[start:at]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _message(number: int, value: bytes) -> bytes:
    """A field of bytes: its tag, its length, itself."""
    size = len(value)
    length = b""
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + value
