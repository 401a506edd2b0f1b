"""Never lose work: checkpoints that are whole or absent, resumed exactly, and an orderly stop on a signal.

A checkpoint is run_dir/checkpoints/step-NNNNNN, the state after NNNNNN optimizer steps: the trained parameters and AdamW's moments by
torch.distributed.checkpoint (sharded; any number of ranks reads it), and manifest.json with every file's size and SHA-256. It is
written beside its place and renamed when all of it is on disk. Data order, schedules, dropout and LoRA's start are functions of
(seed, step, rank), so the step's number is the rest of the state.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import signal
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from model.errors import InputError

MANIFEST = "manifest.json"


def state_of(model, optimizer):
    """{"model": {name: tensor}, "optimizer": {name: {moment: tensor}}} of the trained parameters, moments made if there are none yet."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for p in trained.values():
        if not optimizer.state[p]:
            where = p.device if optimizer.defaults.get("fused") else "cpu"
            optimizer.state[p] = {
                "step": torch.zeros((), device=where),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
    return {
        "model": {name: p.detach() for name, p in trained.items()},
        "optimizer": {name: dict(optimizer.state[p]) for name, p in trained.items()},
    }


class Checkpoints:
    """The checkpoints of a run directory. Collective: every rank calls save, poll, finish and resume."""

    def __init__(self, run_dir, keep, ranks, say):
        self.dir, self.keep, self.ranks, self.say, self.pending = (
            Path(run_dir) / "checkpoints",
            keep,
            ranks,
            say,
            None,
        )
        self.group = None  # of the writes in the background: their collectives may not mix with the training's
        self.broken = (
            set()
        )  # steps of those that `resume` passed over; the next good one replaces them

    def save(self, step, state, extra, background=False):
        """Write the state after `step` steps; extra: what else to keep, as JSON. background: return once it is copied to host memory."""
        self.finish()
        self.check_finite(step, state["model"])
        part = self.dir / f".step-{step:06d}.part"
        if background and self.ranks.world > 1 and self.group is None:
            self.group = dist.new_group(backend="gloo")
        with quiet():
            try:
                self.ranks.on_main(
                    lambda: (shutil.rmtree(part, ignore_errors=True), part.mkdir(parents=True))
                )
                future = (
                    dcp.async_save(state, checkpoint_id=part, process_group=self.group)
                    if background
                    else dcp.save(state, checkpoint_id=part)
                )
            except (CheckpointException, InputError, OSError) as error:
                self._failed(part, error)
        self.pending = (step, part, extra, future if background else None)
        if not background:
            self.finish()

    def check_finite(self, step, parameters):
        """An update that overflowed is kept out of every file: the next loss would stop the run, but after the last good state was replaced."""
        locals_ = {
            name: p.to_local() if isinstance(p, DTensor) else p for name, p in parameters.items()
        }
        found = [name for name, p in locals_.items() if not p.isfinite().all()]
        said = [
            f"rank {rank}: {name}"
            for rank, name in enumerate(self.ranks.gather(found[0] if found else None))
            if name
        ]
        if said:
            raise self.ranks.agreed(
                f"{self.dir.parent}: the update of step {step - 1} made parameters that are not finite ({said[0]}); not saved; {self._last_good()}; "
                "lower training.lr"
            )

    def finish(self):
        """Wait for a write in the background, then make it count: hash every file, write the manifest, rename, drop the oldest."""
        if self.pending is None:
            return
        (step, part, extra, future), self.pending = self.pending, None
        try:
            if future is not None:
                future.result()
            files = sorted(self.ranks.on_main(lambda: [path.name for path in part.iterdir()]))
            mine = self.ranks.together(
                lambda: {
                    name: digest(part / name) for name in files[self.ranks.rank :: self.ranks.world]
                }
            )
            found = {
                name: entry for share in self.ranks.gather(mine) for name, entry in share.items()
            }
            self.ranks.on_main(
                self._publish,
                step,
                part,
                extra
                | {
                    "step": step,
                    "ranks": self.ranks.world,
                    "torch": torch.__version__,
                    "files": found,
                },
            )
        except (CheckpointException, InputError, OSError) as error:
            self._failed(part, error)

    def ready(self):
        """Whether a write in the background is over on every rank. One small collective if there is one, none otherwise."""
        return self.pending is not None and self.ranks.reduce(
            [not self.pending[3].done()], "max"
        ) == [0]

    def _publish(self, step, part, manifest):
        final = self.dir / f"step-{step:06d}"
        with open(part / MANIFEST, "w", encoding="utf-8") as file:
            json.dump(manifest | {"sha256": seal(manifest)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        if final.exists():  # one that was found broken
            shutil.rmtree(final)
        part.rename(final)
        sync_directory(self.dir)
        self.broken.discard(step)
        good = [old for old in self.steps() if old not in self.broken]
        for old in {*good[: -self.keep], *self.broken}:
            shutil.rmtree(self.dir / f"step-{old:06d}", ignore_errors=True)
        self.broken.clear()

    def _failed(self, part, error):
        """A write that could not be finished leaves nothing behind, and what was good stays."""
        self.ranks.on_main(shutil.rmtree, part, True)
        raise self.ranks.agreed(
            f"{part.parent}: the checkpoint could not be written ({cause(error)}); {self._last_good()}; "
            "make room and start the same command again"
        ) from error

    def _last_good(self):
        good = [step for step in self.steps() if step not in self.broken]
        return f"the last good one is step-{good[-1]:06d}" if good else "there is none before it"

    def steps(self):
        """Steps of the checkpoints in place, oldest first."""
        return sorted(
            int(path.name[5:])
            for path in self.dir.glob("step-*")
            if re.fullmatch(r"step-\d{6,}", path.name)
        )

    def clean(self):
        """Take away what a cut write left behind. On one rank."""
        for part in self.dir.glob(".step-*.part"):
            shutil.rmtree(part)

    def resume(self, state):
        """Fill `state` from the newest whole checkpoint and return its manifest; None if there is no checkpoint at all.

        A broken one is named and passed over. Raises InputError if there are some and none is whole.
        """
        broken = []
        self.ranks.on_main(self.clean)
        for step in reversed(self.ranks.on_main(self.steps)):
            path = self.dir / f"step-{step:06d}"
            problems = [words for words in self.ranks.gather(self._problem(path, step)) if words]
            if problems:
                broken.append(problems[0])
                self.broken.add(step)
                self.say(f"{problems[0]}: passed over")
                continue
            with quiet():
                try:
                    dcp.load(state, checkpoint_id=path)
                except (CheckpointException, RuntimeError, ValueError, KeyError) as error:
                    raise self.ranks.agreed(
                        f"{path}: does not fit this model ({cause(error)}); was the code or torch changed since? "
                        f"choose another run.dir, or remove {self.dir} to start from step 0"
                    ) from error
            return read_manifest(path)
        if broken:
            raise self.ranks.agreed(
                f"{broken[0]}; none of {len(broken)} checkpoints is whole: remove {self.dir} to start from step 0"
            )
        return None

    def _problem(self, path, step):
        """What is wrong with a checkpoint, in the share of its files that this rank reads; None if nothing is."""
        try:
            manifest = read_manifest(path)
        except (OSError, ValueError):
            return f"{path / MANIFEST}: missing or not as it was written"
        if manifest["step"] != step:
            return f"{path}: is of step {manifest['step']}, whatever its name says"
        files = manifest["files"]
        for name in sorted(files)[self.ranks.rank :: self.ranks.world]:
            try:
                size, sha256 = digest(path / name)
            except OSError as error:
                return f"{path / name}: cannot be read ({error.strerror})"
            if [size, sha256] != files[name]:
                return f"{path / name}: " + (
                    "cut short"
                    if size < files[name][0]
                    else "its bytes are not those that were written"
                )
        return None


def seal(manifest):
    """SHA-256 of what a manifest says."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def read_manifest(path):
    """The manifest of a checkpoint. Raises OSError or ValueError if it is not there, or not as it was written."""
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != seal(manifest):
        raise ValueError("its seal is broken")
    return manifest


def digest(path):
    """[bytes, SHA-256] of a file."""
    with open(path, "rb") as file:
        return [os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def sync_directory(path):
    """A rename is on disk when its directory is."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cause(error):
    """The first exception of a collective failure, in one line."""
    while isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def quiet():
    """torch.distributed.checkpoint warns and logs about running without a process group, which is meant here."""
    logger = logging.getLogger("torch.distributed.checkpoint")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class Stopped(Exception):
    """A signal ended the run at a point where there is nothing to save."""


class Stop:
    """SIGTERM and SIGINT become a wish that the loop reads after each step. A second SIGINT interrupts a single process at once; under
    torchrun a Ctrl-C arrives twice (from the terminal and from torchrun), and it is torchrun that ends who takes too long."""

    def __init__(self, ranks):
        self.ranks, self.name, self.interrupts, self.before = ranks, None, 0, {}

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            self.before[number] = signal.signal(number, self._take)
        return self

    def _take(self, number, frame):
        self.name = self.name or signal.Signals(number).name
        self.interrupts += number == signal.SIGINT
        if self.interrupts > 1 and self.ranks.world == 1:
            raise KeyboardInterrupt

    def check(self):
        """Between two pieces of the preparation. Collective; raises Stopped on every rank if any was asked to stop."""
        if self.ranks.reduce([bool(self.name)], "max") != [0]:
            raise Stopped

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
