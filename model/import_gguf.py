"""python -m model.import_gguf SOURCE OUT_DIR: a GGUF of a LLaMA, Qwen2, Qwen3 or Mistral in Hugging
Face layout.

Written are config.json, safetensors (bf16) and the tokenizer. SOURCE is a file, or the name of an
installed package that carries one: its files are found without importing it.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from model import cli
from model.errors import InputError
from model.files import read_json, replaced_directory
from model.gguf_file import Gguf, find
from model.gguf_model import check_tensors, config_of, shapes_of, weights_of
from model.gguf_tokenizer import FastTokenizer, tokenizer_of, tokenizer_settings
from model.tensors import SINGLE, write_tensors
from model.tokenizer import read_backend


def import_gguf(
    source: str, out_dir: str | Path, tokenizer_file: str | None = None, force: bool = False
) -> Path:
    """Write OUT_DIR whole or not at all. One that holds this very file already is left alone.

    Whatever can be known to be wrong is said before the weights are read: output that cannot be
    written, a file that is not whole, too little room.
    """
    path, out_dir = find(source), Path(out_dir)
    _check_place(out_dir)
    with open(path, "rb") as file:
        origin = {"file": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    if _is_imported(out_dir, origin, force):
        print(f"{out_dir}: already imported from {path.name}")
        return out_dir

    gguf = Gguf(path)
    config = config_of(gguf) | {"ecliptica_source": origin}
    check_tensors(gguf, config)
    tokenizer = _tokenizer(gguf, tokenizer_file)
    settings = tokenizer_settings(gguf, config)
    _check_room(out_dir, config)

    with replaced_directory(out_dir) as out:
        for name, value in {**settings, "config.json": config}.items():
            _write_json(out / name, value)
        if tokenizer is None:
            shutil.copyfile(tokenizer_file, out / "tokenizer.model")
        else:
            (out / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
        write_tensors(weights_of(gguf, config), out / SINGLE)
    print(f"{out_dir}: imported from {path.name}")
    return out_dir


def _check_place(out_dir: Path) -> None:
    """Raises InputError if OUT_DIR cannot be made where it is to stand."""
    if out_dir.exists() and not out_dir.is_dir():
        raise InputError(f"{out_dir}: is a file; expected a directory to write")
    parent = _nearest(out_dir.absolute().parent)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{out_dir}: cannot be made, {parent} is not a directory to write in")


def _nearest(path: Path) -> Path:
    """The first of a path and its parents that is there."""
    while not path.exists():
        path = path.parent
    return path


def _is_imported(out_dir: Path, origin: dict[str, str], force: bool) -> bool:
    """Whether OUT_DIR holds this file already. Raises InputError if it holds something else."""
    is_free = not out_dir.exists() or not any(out_dir.iterdir())
    if is_free or force:
        return False
    config_path = out_dir / "config.json"
    if config_path.exists() and read_json(config_path).get("ecliptica_source") == origin:
        return True
    raise InputError(
        f"{out_dir}: exists and was not imported from {origin['file']}; choose another directory, "
        "or --force to replace it"
    )


def _check_room(out_dir: Path, config: dict[str, Any]) -> None:
    """Raises InputError if the disk has no room for the weights in bf16."""
    needed = 2 * sum(torch.Size(shape).numel() for shape in shapes_of(config).values())
    parent = _nearest(out_dir.absolute().parent)
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise InputError(
            f"{out_dir}: needs {needed / 2**20:.1f} MiB, {parent} has {free / 2**20:.1f} MiB free; "
            "make room or choose another place"
        )


def _tokenizer(gguf: Gguf, tokenizer_file: str | None) -> FastTokenizer | None:
    """The tokenizer of the file; None if the given tokenizer.model is to be taken."""
    if tokenizer_file:
        read_backend(tokenizer_file)
        return None
    kind = gguf.text("tokenizer.ggml.model")
    if kind != "gpt2":
        raise InputError(
            f"{gguf.path}: its tokenizer is of kind {kind!r:.80}, which GGUF stores in part only; "
            "give --tokenizer tokenizer.model"
        )
    return tokenizer_of(gguf)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def command(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = cli.Parser(
        prog="python -m model.import_gguf",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", help="a .gguf file, or the name of an installed package that carries one"
    )
    parser.add_argument("out_dir", help="directory to write")
    parser.add_argument(
        "--tokenizer",
        help="sentencepiece tokenizer.model, for GGUF files that store theirs in part",
    )
    parser.add_argument("--force", action="store_true", help="replace OUT_DIR")
    args = parser.parse_args(argv)
    import_gguf(args.source, args.out_dir, args.tokenizer, args.force)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 2 and one line on stderr for bad input."""
    return cli.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
