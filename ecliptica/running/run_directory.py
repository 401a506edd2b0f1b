"""Whose a run directory is: one config, one run at a time, and lines that a resumed run will write
again taken back."""

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

from ecliptica.config import as_toml
from ecliptica.data.settings import DataConfig
from ecliptica.files import (
    is_remnant,
    journal_lines,
    lock,
    read_json,
    replace_text,
    sample_digest,
    write_json,
)
from ecliptica.isd.bank import BANK, INSTRUCTIONS
from model.errors import InputError

CONFIG = "config.toml"
INPUTS = "inputs.json"
LOCK = "lock"
FINAL = "final"
JOURNALS = ("metrics.jsonl", "eval.jsonl", "samples.jsonl")
MODEL_FILES = (".safetensors", ".json", ".model")


class RunDirectory:
    """A run's directory, held by a lock until `release` (or the end of the process, however it
    ends)."""

    def __init__(self, config: Any):
        self.path = Path(config.run.dir)
        self.text = as_toml(config, leave_out=("plan",))
        self.inputs = data_files(config.data) + model_files(config.model)
        if config.rollout.prompts:
            self.inputs.append(Path(config.rollout.prompts))
        self.lock = None
        self.fresh = False  # whether this start is the one that claimed it

    @property
    def complete(self) -> bool:
        return self.final.is_dir()

    @property
    def final(self) -> Path:
        """The directory of the export."""
        return self.path / FINAL

    def claim(self) -> None:
        """Make it this run's.

        Raises InputError: something else's, another config's, begun with other files, or in use by
        a live run.
        """
        stored = self.path / CONFIG
        self._check_ours(stored)
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock = lock(self.path / LOCK, f"run.dir: {self.path}")
        for remnant in filter(is_remnant, list(self.path.iterdir())):
            if remnant.is_dir():
                shutil.rmtree(remnant)
            else:
                remnant.unlink()
        if not stored.exists():
            self.fresh = True
            replace_text(stored, self.text)
        self._check_inputs()

    def _check_ours(self, stored: Path) -> None:
        """It is new, empty, or holds a run of this very config."""
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise InputError(f"run.dir: {self.path} is a file; expected a directory")
        if not [p for p in self.path.iterdir() if p.name != LOCK and not is_remnant(p)]:
            return
        if not stored.exists():
            raise InputError(
                f"run.dir: {self.path} is not empty and holds no run (no {CONFIG}); "
                "choose another run.dir"
            )
        if self.final.exists() and not self.complete:
            raise InputError(f"run.dir: {self.final} is a file; expected the export's directory")
        # The bytes: in text mode a carriage return would be read as the end of a line.
        if stored.read_bytes() != self.text.encode():
            raise InputError(
                f"run.dir: {self.path} holds a run of another config "
                f"({self._difference(stored)}); choose another run.dir or move it away"
            )

    def _check_inputs(self) -> None:
        """What the run reads is what it began with: a resumed run on other data or weights would be
        neither run."""
        stored = self.path / INPUTS
        now = {str(path): sample_digest(path) for path in self.inputs if path.is_file()}
        if not stored.exists():
            write_json(stored, now)
        before = read_json(stored)
        changed = [path for path in now if before.get(path, now[path]) != now[path]]
        if changed:
            raise InputError(
                f"run.dir: {self.path} began with another {changed[0]} (its bytes changed since); "
                "put the file back, or choose another run.dir"
            )

    def _difference(self, stored: Path) -> str:
        """The first key whose value is another."""
        try:
            old = tomllib.loads(stored.read_bytes().decode("utf-8"))
        except ValueError:
            return f"{stored} is not valid TOML"
        new = tomllib.loads(self.text)
        for section in new | old:
            before, now = old.get(section, {}), new.get(section, {})
            for key in now | before:
                if before.get(key) != now.get(key):
                    return f"{section}.{key} was {before.get(key)!r}, now {now.get(key)!r}"
        return str(stored)

    def release(self) -> None:
        """Let go.

        A start that wrote nothing, because its data could not be read, say, leaves no claim: the
        mended command may have the directory.
        """
        if not self.lock:
            return
        if self.fresh and {path.name for path in self.path.iterdir()} <= {CONFIG, INPUTS, LOCK}:
            for name in (INPUTS, CONFIG):
                (self.path / name).unlink(missing_ok=True)
        self.lock.close()

    def take_back(self, step: int) -> None:
        """Drop the lines of steps from `step` on, which will be written again, and a last line that
        was cut."""
        for path in (self.path / name for name in JOURNALS):
            if path.exists():
                earlier = [line for line in journal_lines(path) if _step(line) < step]
                replace_text(path, "".join(line.decode() + "\n" for line in earlier))


def data_files(data: DataConfig) -> list[Path]:
    """The files that the section `data` names, and those of a bank with its instructions and
    scores."""
    if data.format != "isd":
        return [Path(name) for name in (data.train, data.eval) if name]
    files = [Path(data.isd_instructions or INSTRUCTIONS)]
    if data.isd_scores:
        files.append(Path(data.isd_scores))
    for name in (data.train or BANK, data.eval):
        bank = Path(name)
        if name:
            files += sorted(bank.glob("*.jsonl")) if bank.is_dir() else [bank]
    return files


def model_files(model: Any) -> list[Path]:
    """Weights, settings and tokenizer of the section `model`: of the base and of its adapter."""
    directories = [Path(name) for name in (model.path, model.adapter) if name]
    paths = [path for directory in directories for path in directory.glob("*")]
    return sorted(path for path in paths if path.suffix in MODEL_FILES)


def _step(line: bytes) -> float:
    """The step of a journal's line; infinite where a kill left none."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
