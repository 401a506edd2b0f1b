"""What the files beside a tokenizer say of its tokens: the ends of a sequence, added, special."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.errors import InputError
from model.files import read_json


@dataclass(frozen=True)
class Settings:
    """What the files beside a tokenizer say about its tokens."""

    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    added: dict[str, tuple[int, bool]] = field(default_factory=dict)  # text: (id, special)
    specials: frozenset[str] = frozenset()
    legacy: bool = True  # sentencepiece: text after a control token begins with a prefix space too


def read_settings(model_dir: Path) -> Settings:
    """Settings of a model directory. Raises InputError for an id that is no whole number."""
    ids = {}
    for name in ("bos_token_id", "eos_token_id"):
        # The later file wins: generation_config.json has the whole list of end-of-turn ids.
        for file in ("config.json", "generation_config.json"):
            path = model_dir / file
            value = read_json(path).get(name) if path.exists() else None
            if value is not None:
                ids[name] = _ids(value, f"{path}: {name}")
    path = model_dir / "tokenizer_config.json"
    table = read_json(path) if path.exists() else {}
    specials = _named_specials(table)
    return Settings(
        bos_id=next(iter(ids.get("bos_token_id", ())), None),
        eos_ids=ids.get("eos_token_id", ()),
        added=_added_tokens(model_dir, table, specials),
        specials=specials,
        legacy=table.get("legacy") is not False,
    )


def _ids(value: Any, where: str) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    for index in values:
        if type(index) is not int or index < 0:
            raise InputError(f"{where}: expected a token id or a list of them, got {value!r}")
    return tuple(values)


def _named_specials(table: dict[str, Any]) -> frozenset[str]:
    """The tokens that a tokenizer_config.json names: bos_token, additional_special_tokens, ..."""
    names = []
    for key, value in table.items():
        if key.endswith("_token"):
            names.append(value)
        elif key in ("additional_special_tokens", "extra_special_tokens"):
            names += value if isinstance(value, list) else []
    texts = [name.get("content") if isinstance(name, dict) else name for name in names]
    return frozenset(text for text in texts if isinstance(text, str) and text)


def _added_tokens(
    model_dir: Path, table: dict[str, Any], specials: frozenset[str]
) -> dict[str, tuple[int, bool]]:
    """{text: (id, special)} of tokenizer_config.json, else of added_tokens.json."""
    path = model_dir / "tokenizer_config.json"
    rows = table.get("added_tokens_decoder")
    if rows is None:
        path = model_dir / "added_tokens.json"
        older = read_json(path) if path.exists() else {}
        rows = {
            index: {"content": text, "special": text in specials} for text, index in older.items()
        }
    added = {}
    try:
        for index, row in rows.items():
            added[row["content"]] = int(index), bool(row.get("special"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: expected added tokens as {{id: {{'content': text}}}}; copy the file again"
        ) from error
    for text, (index, _) in added.items():
        if not isinstance(text, str) or not text or index < 0:
            raise InputError(
                f"{path}: an added token {text!r} with the id {index}; expected a text and an id "
                "from 0 on: copy the file again"
            )
    return added
