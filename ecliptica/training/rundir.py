"""Whose a run directory is: one config, one run at a time, and lines that a resumed run will write again taken back."""

import fcntl
import json
import os
import socket
import tomllib
from pathlib import Path

from ecliptica.config import as_toml
from model.errors import InputError
from model.weights import replace_text

JOURNALS = ("metrics.jsonl", "eval.jsonl", "samples.jsonl")


class RunDir:
    """A run's directory, held by a lock until `release` (or the end of the process, however it ends)."""

    def __init__(self, config):
        self.path, self.text, self.lock = Path(config.run.dir), as_toml(config), None

    @property
    def complete(self):
        return (self.path / "final").is_dir()

    def claim(self):
        """Make it this run's. Raises InputError: something else's, another config's, or in use by a live run."""
        stored = self.path / "config.toml"
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"run.dir: {self.path} is a file; expected a directory")
        strangers = [p.name for p in self.path.iterdir() if p.name != "lock"] if self.path.exists() else []
        if strangers and not stored.exists():
            raise InputError(f"run.dir: {self.path} is not empty and holds no run (no config.toml); choose another run.dir")
        if strangers and stored.read_text(encoding="utf-8") != self.text:
            raise InputError(f"run.dir: {self.path} holds a run of another config ({self._difference(stored)}); choose another run.dir or move it away")
        self.path.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        if not stored.exists():
            replace_text(stored, self.text)

    def _take_lock(self):
        lock = open(self.path / "lock", "a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().strip()
            lock.close()
            raise InputError(f"run.dir: {self.path} is in use by another run ({holder or 'starting'}); wait for it or choose another run.dir") from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        self.lock = lock

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
        if self.lock:
            self.lock.close()

    def take_back(self, step):
        """Drop the lines of steps from `step` on, which will be written again, and a last line that was cut."""
        for path in (self.path / name for name in JOURNALS):
            if path.exists():
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                replace_text(path, "".join(f"{line}\n" for line in lines if _step(line) < step))


def _step(line):
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        return float("inf")
