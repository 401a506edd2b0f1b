"""Never lose work: checkpoints that are whole or absent, resumed exactly.

A checkpoint is run_dir/checkpoints/step-NNNNNN, the state after NNNNNN optimizer steps: the trained
parameters and AdamW's moments by torch.distributed.checkpoint (sharded; any number of ranks reads
it), and manifest.json with every file's size and SHA-256. It is written beside its place and
renamed when all of it is on disk. Data order, schedules, dropout and LoRA's start are functions of
(seed, step, rank), so the step's number is the rest of the state.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from ecliptica.files import digest
from ecliptica.running.ranks import Ranks
from model.errors import InputError

MANIFEST = "manifest.json"
State = dict[str, dict[str, Any]]


def state_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """{"model": {name: tensor}, "optimizer": {name: {moment: tensor}}} of the trained parameters;
    moments are made if there are none yet."""
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


@dataclass(frozen=True)
class Pending:
    """A checkpoint whose files are being written."""

    step: int
    part: Path  # the directory that becomes the checkpoint
    extra: dict[str, Any]  # what else the manifest keeps
    write: Future | None  # in the background; None: done


class Checkpoints:
    """The checkpoints of a run directory.

    Collective: every rank calls save, ready, finish, check_finite and resume.
    """

    def __init__(self, run_dir: Path, keep: int, ranks: Ranks, say: Callable[[str], None]):
        self.dir = Path(run_dir) / "checkpoints"
        self.keep = keep
        self.ranks = ranks
        self.say = say
        self.pending: Pending | None = None
        # Of the writes in the background: their collectives may not mix with the training's.
        self.group = None
        # Steps of those that `resume` passed over; the next good one replaces them.
        self.broken: set[int] = set()

    def save(self, step: int, state: State, extra: dict[str, Any], background: bool = False):
        """Write the state after `step` steps; extra: what else to keep, as JSON.

        background: return once it is copied to host memory.
        """
        self.finish()
        self.check_finite(step, state["model"])
        part = self.dir / f".step-{step:06d}.part"
        if background and self.ranks.world > 1 and self.group is None:
            self.group = dist.new_group(backend="gloo")
        write = None
        with quiet():
            try:
                self.ranks.on_main(_make_empty, part)
                if background:
                    write = dcp.async_save(state, checkpoint_id=part, process_group=self.group)
                else:
                    dcp.save(state, checkpoint_id=part)
            except (CheckpointException, InputError, OSError) as error:
                self._fail(part, error)
        self.pending = Pending(step, part, extra, write)
        if not background:
            self.finish()

    def check_finite(self, step: int, parameters: dict[str, torch.Tensor]) -> None:
        """Keep an update that overflowed out of every file.

        The next loss would stop the run, but after the last good state was replaced.
        """
        here = None
        for name, p in parameters.items():
            local = p.to_local() if isinstance(p, DTensor) else p
            if not local.isfinite().all():
                here = name
                break
        names = enumerate(self.ranks.gather(here))
        places = [f"rank {rank}: {name}" for rank, name in names if name]
        if places:
            raise self.ranks.agreed(
                f"{self.dir.parent}: the update of step {step - 1} made parameters that are not "
                f"finite ({places[0]}); not saved; {self._last_good()}; lower training.lr"
            )

    def finish(self) -> None:
        """Make a checkpoint count whose files are written, waiting for them if need be: hash every
        file, write the manifest, rename, drop the oldest."""
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        try:
            if pending.write is not None:
                pending.write.result()
            manifest = pending.extra | {
                "step": pending.step,
                "ranks": self.ranks.world,
                "torch": torch.__version__,
                "files": self._digests(pending.part),
            }
            self.ranks.on_main(self._publish, pending.step, pending.part, manifest)
        except (CheckpointException, InputError, OSError) as error:
            self._fail(pending.part, error)

    def ready(self) -> bool:
        """Whether a write in the background is over on every rank.

        One small collective if there is one, none otherwise.
        """
        if self.pending is None:
            return False
        (unfinished,) = self.ranks.reduce([not self.pending.write.done()], "max")
        return not unfinished

    def _digests(self, part: Path) -> dict[str, list]:
        """{file: [bytes, SHA-256]}; every rank reads its share of the files."""
        files = sorted(self.ranks.on_main(lambda: [path.name for path in part.iterdir()]))
        mine = files[self.ranks.rank :: self.ranks.world]
        shares = self.ranks.gather(
            self.ranks.together(lambda: {name: digest(part / name) for name in mine})
        )
        return {name: entry for share in shares for name, entry in share.items()}

    def _publish(self, step: int, part: Path, manifest: dict[str, Any]) -> None:
        final = self.dir / f"step-{step:06d}"
        with open(part / MANIFEST, "w", encoding="utf-8") as file:
            json.dump(manifest | {"sha256": seal(manifest)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        if final.exists():  # one that is broken
            shutil.rmtree(final)
        part.rename(final)
        sync_directory(self.dir)

        # The oldest make way, and so do those that are broken.
        self.broken.discard(step)
        good = [old for old in self.steps() if old not in self.broken]
        for old in {*good[: -self.keep], *self.broken}:
            shutil.rmtree(self.dir / f"step-{old:06d}", ignore_errors=True)
        self.broken.clear()

    def _fail(self, part: Path, error: Exception) -> None:
        """A write that could not be finished leaves nothing behind, and what was good stays."""
        self.ranks.on_main(shutil.rmtree, part, True)
        raise self.ranks.agreed(
            f"{part.parent}: the checkpoint could not be written ({cause(error)}); "
            f"{self._last_good()}; make room and start the same command again"
        ) from error

    def _last_good(self) -> str:
        good = [step for step in self.steps() if step not in self.broken]
        return f"the last good one is step-{good[-1]:06d}" if good else "there is none before it"

    def steps(self) -> list[int]:
        """Steps of the checkpoints in place, oldest first."""
        names = [path.name for path in self.dir.glob("step-*")]
        return sorted(int(name[5:]) for name in names if re.fullmatch(r"step-\d{6,}", name))

    def clean(self) -> None:
        """Take away what a cut write left behind. On one rank."""
        for part in self.dir.glob(".step-*.part"):
            shutil.rmtree(part)

    def resume(self, state: State) -> dict[str, Any] | None:
        """Fill `state` from the newest whole checkpoint and return its manifest; None if there is
        no checkpoint at all.

        A broken one is named and passed over. Raises InputError if there are some and none is
        whole.
        """
        problems = []
        self.ranks.on_main(self.clean)
        for step in reversed(self.ranks.on_main(self.steps)):
            path = self.dir / f"step-{step:06d}"
            words = [line for line in self.ranks.gather(self._problem(path, step)) if line]
            if not words:
                self._load(path, state)
                return read_manifest(path)
            problems.append(words[0])
            self.broken.add(step)
            self.say(f"{words[0]}: passed over")
        if problems:
            raise self.ranks.agreed(
                f"{problems[0]}; none of {len(problems)} checkpoints is whole: "
                f"remove {self.dir} to start from step 0"
            )
        return None

    def _load(self, path: Path, state: State) -> None:
        with quiet():
            try:
                dcp.load(state, checkpoint_id=path)
            except (CheckpointException, RuntimeError, ValueError, KeyError) as error:
                raise self.ranks.agreed(
                    f"{path}: does not fit this model ({cause(error)}); was the code or torch "
                    f"changed since? choose another run.dir, or remove {self.dir} to start from "
                    "step 0"
                ) from error

    def _problem(self, path: Path, step: int) -> str | None:
        """What is wrong with a checkpoint, in the share of its files that this rank reads."""
        try:
            manifest = read_manifest(path)
        except (OSError, ValueError):
            return f"{path / MANIFEST}: missing or not as it was written"
        if manifest["step"] != step:
            return f"{path}: is of step {manifest['step']}, whatever its name says"
        files = manifest["files"]
        for name in sorted(files)[self.ranks.rank :: self.ranks.world]:
            try:
                now = digest(path / name)
            except OSError as error:
                return f"{path / name}: cannot be read ({error.strerror})"
            if now[0] < files[name][0]:
                return f"{path / name}: cut short"
            if now != files[name]:
                return f"{path / name}: its bytes are not those that were written"
        return None


def _make_empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def seal(manifest: dict[str, Any]) -> str:
    """SHA-256 of what a manifest says."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises OSError or ValueError if it is not there, or not as it was written.
    """
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != seal(manifest):
        raise ValueError("its seal is broken")
    return manifest


def sync_directory(path: Path) -> None:
    """A rename is on disk when its directory is."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cause(error: Exception) -> str:
    """The first exception of a collective failure, in one line."""
    while isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """torch.distributed.checkpoint warns and logs about running without a process group, which is
    meant here."""
    logger = logging.getLogger("torch.distributed.checkpoint")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
