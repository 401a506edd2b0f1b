"""The backend of a Hugging Face `tokenizers` tokenizer: BPE, Unigram, WordPiece or WordLevel."""

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from model.errors import InputError

# Characters that Unicode promises never to assign: names for control tokens are made of one that
# does not occur in the text at hand, so that no text can spell such a name.
NONCHARACTERS = [*map(chr, range(0xFDD0, 0xFDF0))]
NONCHARACTERS += [chr(plane * 0x10000 + last) for plane in range(17) for last in (0xFFFE, 0xFFFF)]


# What an unmarked token must look like to be taken for control: the end of a sequence may also be
# ordinary text (a newline), and text must be able to say it.
MARKUP = re.compile(r"<(?!0x).+>|\[.+\]")


def absent_mark(texts: Collection[str]) -> str:
    """A noncharacter that occurs in none of the texts."""
    for mark in NONCHARACTERS:
        if not any(mark in text for text in texts):
            return mark
    raise InputError("a text that holds every noncharacter of Unicode: remove one (U+FDD0)")


def sentinel(mark: str, index: int) -> str:
    """The name of control token `index` where `mark` does not occur in the text."""
    return f"{mark}{index}{mark}"


class FastBackend:
    """A tokenizer, and its twin for plain text, in which every control token has a secret name.

    The twin knows language tokens as the tokenizer does. Text and control tokens are encoded in
    one call, so that whatever depends on a text's place (a prefix space, blanks that a token takes
    in) is as in the rendered text. Since the names also replace the tokens in the vocabulary,
    a model that looks texts up there (Unigram, WordLevel) cannot make one from text either.
    """

    def __init__(
        self,
        full: FastTokenizer,
        controls: Collection[str],
        eos_ids: Collection[int],
        path: str | Path,
    ):
        full.no_truncation()  # some files carry settings of the training run that wrote them
        full.no_padding()
        self.raw = json.loads(full.to_str())
        if self.raw["model"].get("dropout"):
            self.raw["model"]["dropout"] = None  # of that training run too: ids would be random
            full = FastTokenizer.from_str(json.dumps(self.raw))
        self.full = full
        self.path = path
        self.added_text = {row["id"]: row["content"] for row in self.raw["added_tokens"]}
        self.vocab_size = max(full.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.control = self._control(controls, eos_ids)  # {id: text}
        self.twins = {}

    def _control(self, controls: Collection[str], eos_ids: Collection[int]) -> dict[int, str]:
        """{id: text} of the control tokens: special ones, known markers, ends of sequence."""
        added = {row["id"]: row["special"] for row in self.raw["added_tokens"]}
        ids = {index for index, special in added.items() if special}
        texts = {*controls, *(self.token(index) for index in eos_ids)}
        for text in texts - {None}:
            index = self.token_id(text)
            if index in added or (index is not None and MARKUP.fullmatch(text)):
                ids.add(index)
        return {index: self.token(index) for index in sorted(ids)}

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        """Ids of texts and control ids. An id that is no control token cuts the text in two."""
        mark = absent_mark([part for part in parts if isinstance(part, str)])
        ids = []
        text = ""
        for part in parts:
            if isinstance(part, str):
                text += part
            elif part in self.control:
                text += sentinel(mark, part)
            else:
                ids += self._encode(text, mark)
                ids.append(part)
                text = ""
        return ids + self._encode(text, mark)

    def _encode(self, text: str, mark: str) -> list[int]:
        if mark not in self.twins:
            self.twins[mark] = self._twin(mark)
        return self.twins[mark].encode(text, add_special_tokens=False).ids

    def _twin(self, mark: str) -> FastTokenizer:
        names = {text: sentinel(mark, index) for index, text in self.control.items()}
        twin = self._renamed(names, normalized=True)
        # A normalizer may change the names, or put a space before them: then it must not see them.
        seen = [twin.encode(f"a{name}a", add_special_tokens=False).ids for name in names.values()]
        spelled = twin.normalizer.normalize_str(mark) if twin.normalizer else mark
        if mark not in spelled or any(i not in ids for i, ids in zip(self.control, seen)):
            twin = self._renamed(names, normalized=False)
        for index, text in self.control.items():
            if twin.token_to_id(names[text]) != index:
                raise InputError(
                    f"{self.path}: the token {text!r} cannot be told from text; "
                    "mark it as special in 'added_tokens'"
                )
        return twin

    def _renamed(self, names: dict[str, str], normalized: bool) -> FastTokenizer:
        """The tokenizer with other names for some tokens. normalized: each as the file has it."""
        added = {row["content"]: row for row in self.raw["added_tokens"]}
        for index, text in self.control.items():
            row = {"id": index, "content": text, "special": True, "normalized": False}
            row |= {"single_word": False, "lstrip": False, "rstrip": False}
            row |= added.get(text, {})
            row |= {"single_word": False}  # a template's token is one whatever stands beside it
            added[text] = row | ({} if normalized else {"normalized": False})
        rows = [row | {"content": names.get(text, text)} for text, row in added.items()]
        raw = self.raw | {
            "added_tokens": sorted(rows, key=lambda row: row["id"]),
            "model": _renamed_model(self.raw["model"], names),
            "post_processor": None,
        }
        return FastTokenizer.from_str(json.dumps(raw))

    def encode_rendered(self, text: str) -> list[int]:
        return self.full.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], skip_special: bool, at_start: bool = True) -> str:
        return self.full.decode(ids, skip_special_tokens=skip_special)

    def token_id(self, text: str) -> int | None:
        return self.full.token_to_id(text)

    def token(self, index: int) -> str | None:
        if index in self.added_text:  # the library knows some as its normalizer writes them
            return self.added_text[index]
        return self.full.id_to_token(index) if 0 <= index < self.vocab_size else None


def _renamed_model(model: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The model part of a tokenizer.json with other names for some of its tokens."""
    model = dict(model)
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(text, text): index for text, index in vocabulary.items()}
    else:  # Unigram: a list of pieces with their scores
        model["vocab"] = [[names.get(text, text), score] for text, score in vocabulary]
    if "unk_token" in model:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        # What merges to a control token, or goes on from one, would be made from text.
        prefix = model.get("continuing_subword_prefix") or ""
        merges = []
        for merge in model["merges"]:
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            if not {left, right, left + right.removeprefix(prefix)} & names.keys():
                merges.append(merge)
        model["merges"] = merges
    return model
