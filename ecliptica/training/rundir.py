"""Whose a run directory is: one config, one run at a time, and lines that a resumed run will write again taken back."""

import json
import shutil
import tomllib
from pathlib import Path

from ecliptica.config import as_toml
from ecliptica.files import is_remnant, journal_lines, lock, read_json, replace_text, sample_digest
from ecliptica.isd.bank import BANK, INSTRUCTIONS
from model.errors import InputError

INPUTS = "inputs.json"
JOURNALS = ("metrics.jsonl", "eval.jsonl", "samples.jsonl")


class RunDir:
    """A run's directory, held by a lock until `release` (or the end of the process, however it ends)."""

    def __init__(self, config):
        self.path, self.text, self.lock = (
            Path(config.run.dir),
            as_toml(config, leave_out=("plan",)),
            None,
        )
        directories = [Path(name) for name in (config.model.path, config.model.adapter) if name]
        models = sorted(
            path
            for directory in directories
            for path in directory.glob("*")
            if path.suffix in (".safetensors", ".json", ".model")
        )
        self.inputs = data_files(config.data) + models
        self.fresh = False  # whether this start is the one that claimed it

    @property
    def complete(self):
        return (self.path / "final").is_dir()

    def claim(self):
        """Make it this run's. Raises InputError: something else's, another config's, or in use by a live run."""
        stored = self.path / "config.toml"
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"run.dir: {self.path} is a file; expected a directory")
        strangers = (
            [p.name for p in self.path.iterdir() if p.name != "lock" and not is_remnant(p)]
            if self.path.exists()
            else []
        )
        if strangers and not stored.exists():
            raise InputError(
                f"run.dir: {self.path} is not empty and holds no run (no config.toml); choose another run.dir"
            )
        if strangers and stored.read_text(encoding="utf-8") != self.text:
            raise InputError(
                f"run.dir: {self.path} holds a run of another config ({self._difference(stored)}); choose another run.dir or move it away"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock = lock(self.path / "lock", f"run.dir: {self.path}")
        for rest in filter(is_remnant, list(self.path.iterdir())):
            shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
        if not stored.exists():
            self.fresh = True
            replace_text(stored, self.text)
        self._same_inputs()

    def _same_inputs(self):
        """What the run reads is what it began with: a resumed run on other data or weights would be neither run."""
        stored, now = (
            self.path / INPUTS,
            {str(path): sample_digest(path) for path in self.inputs if path.is_file()},
        )
        if not stored.exists():
            replace_text(stored, json.dumps(now, indent=1) + "\n")
        before = read_json(stored)
        changed = [path for path in now if before.get(path, now[path]) != now[path]]
        if changed:
            raise InputError(
                f"run.dir: {self.path} began with another {changed[0]} (its bytes changed since); put the file back, or choose another run.dir"
            )

    def _difference(self, stored):
        """The first key whose value is another."""
        try:
            old, new = tomllib.loads(stored.read_text(encoding="utf-8")), tomllib.loads(self.text)
        except tomllib.TOMLDecodeError:
            return f"{stored} is not valid TOML"
        for section in new | old:
            for key in new.get(section, {}) | old.get(section, {}):
                before, now = old.get(section, {}).get(key), new.get(section, {}).get(key)
                if before != now:
                    return f"{section}.{key} was {before!r}, now {now!r}"
        return str(stored)

    def release(self):
        """Let go. A start that made nothing, because its data could not be read, say, leaves no claim: the mended command may have the directory."""
        if not self.lock:
            return
        if self.fresh and {path.name for path in self.path.iterdir()} <= {
            "config.toml",
            INPUTS,
            "lock",
        }:
            for name in (INPUTS, "config.toml"):
                (self.path / name).unlink(missing_ok=True)
        self.lock.close()

    def take_back(self, step):
        """Drop the lines of steps from `step` on, which will be written again, and a last line that was cut."""
        for path in (self.path / name for name in JOURNALS):
            if path.exists():
                earlier = [line for line in journal_lines(path) if _step(line) < step]
                replace_text(path, "".join(line.decode() + "\n" for line in earlier))


def data_files(data):
    """What a DataConfig reads: the files it names, and those of a bank with its instructions and scores."""
    if data.format != "isd":
        return [Path(name) for name in (data.train, data.eval) if name]
    banks = [Path(data.train or BANK), *([Path(data.eval)] if data.eval else [])]
    files = [
        file
        for bank in banks
        for file in (sorted(bank.glob("*.jsonl")) if bank.is_dir() else [bank])
    ]
    return [
        *files,
        Path(data.isd_instructions or INSTRUCTIONS),
        *([Path(data.isd_scores)] if data.isd_scores else []),
    ]


def _step(line):
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
