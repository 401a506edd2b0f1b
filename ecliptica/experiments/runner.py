"""Which cell next, how many at once, and what a failure means.

A cell is a process of its own (work.py), killed when this one is. What decides that a cell is done
is the store, never the process.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ecliptica.experiments import claims, measuring
from ecliptica.experiments.cells import CONTROL, Cell, Grid
from ecliptica.experiments.store import Store
from ecliptica.experiments.work import FULL
from ecliptica.files import naming, read_json, write_json
from model.errors import InputError, Stopped

LOG = ".log"  # beside a cell's plan: what its process wrote
PAUSE = 0.1  # seconds between looks at the processes
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


@dataclass(frozen=True)
class Shard:
    """The i-th of n parts of the cells, from 1: for several machines on one disk."""

    number: int = 1
    of: int = 1

    def has(self, place: int) -> bool:
        return place % self.of == self.number - 1


@dataclass(frozen=True)
class How:
    """How cells are run."""

    jobs: int = 1
    shard: Shard = Shard()
    any_code: bool = False
    launch: "Launch | None" = None  # None: processes of this machine


class Running(Protocol):
    """A cell that was launched."""

    def ended(self) -> int | None:
        """Its exit code; None while it runs."""

    def stop(self) -> None:
        """Ask it to end in order."""


class Launch(Protocol):
    """What starts the process of a cell, given its plan and its place among those at once."""

    def __call__(self, plan: Path, place: int) -> Running: ...


class Local:
    """A process of this machine. Its output goes to the log beside the plan."""

    def __init__(self, plan: Path, place: int):
        words = ["-m", "ecliptica.experiments.work", str(plan), "--parent", str(os.getpid())]
        path = plan.with_suffix(LOG)
        with naming(path), open(path, "a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches it through `stop` alone
                env=os.environ | share_of_machine(place),
            )

    def ended(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)


def share_of_machine(place: int) -> dict[str, str]:
    """Of several GPUs each of the cells that run at once has one."""
    import torch

    count = torch.cuda.device_count()
    if count < 2 or "CUDA_VISIBLE_DEVICES" in os.environ:
        return {}
    return {"CUDA_VISIBLE_DEVICES": str(place % count)}


class Runner:
    """Runs the cells of a grid that are not done."""

    def __init__(self, grid: Grid, store: Store, how: How, say=print):
        self.grid = grid
        self.store = store
        self.how = how
        self.say = say
        self.running: dict[int, tuple[Cell, Running]] = {}
        self.failed: dict[str, str] = {}

    # Before anything runs

    def check(self) -> None:
        """Every cell that was begun or is done is of this ablation as it is now. InputError."""
        for suite in self.grid.ablation.suites:
            measuring.check(suite)
        records, done = self.store.records(), self.store.done()
        for cell in self.grid.cells:
            path = self.grid.plan(cell)
            if cell.name in done and cell.name in records:
                stored = records[cell.name]
            elif path.exists() and self.is_begun(cell):
                stored = read_json(path)["claim"]
            else:
                continue
            claims.check(cell, stored, claims.claim(self.grid, cell), self.how.any_code)

    def is_begun(self, cell: Cell) -> bool:
        """Whether there is work in its directory; one that failed before that may be mended."""
        directory = self.grid.directory(cell)
        return any((directory / name).exists() for name in ("config.toml", "results"))

    def wanted(self) -> list[Cell]:
        """The cells that this start has to run, in order: what is not done of its shard, and what
        these begin from."""
        done = self.store.done()
        arms = [cell for cell in self.grid.cells if cell.seed is not None and not cell.is_start]
        mine = {cell.name for place, cell in enumerate(arms) if self.how.shard.has(place)}
        mine |= {cell.name for cell in self.grid.cells if cell.seed is None or cell.is_start}
        missing = {name for name in mine if name not in done}
        for cell in reversed(self.grid.cells):
            # A start whose rows are there but whose weights are not, as in a fresh clone.
            first = self.grid.begins_from(cell) if cell.seed is not None else None
            if cell.name in missing and first is not None:
                if not (self.grid.directory(first) / "final").is_dir():
                    missing.add(first.name)
        return [cell for cell in self.grid.cells if cell.name in missing]

    # Running

    def run(self) -> bool:
        """All that is left. True if every cell of this start is done."""
        left = self.wanted()
        total = len(left)
        with asked_to_stop() as signals:
            while (left or self.running) and not signals:
                for cell in self.startable(left):
                    left.remove(cell)
                    self.start(cell)
                    self.say(f"[{total - len(left)}/{total}] {cell.name}")
                self.look()
                if self.ends_all():
                    break
                if not self.running and left and not self.startable(left):
                    self.give_up(left)
                    break
                time.sleep(PAUSE)
            self.stop_all()
        if signals:
            raise Stopped(
                signals[0], f"{self.grid.out}: stopped; the same command goes on where it was"
            )
        if not self.failed:
            self.store.put_in_order([cell.name for cell in self.grid.cells])
        return not self.failed and not left

    def startable(self, left: Sequence[Cell]) -> list[Cell]:
        """What can start now: a free place, and the cell that it begins from is there. The cell
        that trains nothing goes alone: others take its answers."""
        places = self.how.jobs - len(self.running)
        if any(cell.name == CONTROL for cell, _ in self.running.values()):
            return []
        if left and left[0].name == CONTROL:
            return [left[0]] if not self.running else []
        ready = [cell for cell in left if self.is_ready(cell)]
        return ready[:places]

    def is_ready(self, cell: Cell) -> bool:
        first = self.grid.begins_from(cell)
        if first is None:
            return True
        return (self.grid.directory(first) / "final").is_dir() and first.name in self.store.done()

    def start(self, cell: Cell) -> None:
        """Write down what the cell is, and launch it."""
        path = self.grid.plan(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, plan_of(self.grid, cell))
        place = min(set(range(self.how.jobs)) - self.running.keys())
        launch = self.how.launch or Local
        self.running[place] = (cell, launch(path, place))

    def look(self) -> None:
        """What ended since the last look."""
        for place, (cell, running) in list(self.running.items()):
            code = running.ended()
            if code is None:
                continue
            del self.running[place]
            self.take(cell, code)

    def take(self, cell: Cell, code: int) -> None:
        """A cell ended. Raises InputError where no cell could go on."""
        if code == 0 and cell.name in self.store.done():
            return
        last = last_line(self.grid.plan(cell).with_suffix(LOG))
        if code in STOPPED:
            self.stop_all()
            raise Stopped(code - 128, f"{cell.name}: stopped; the same command goes on")
        if code == FULL or "No space left" in last:
            self.stop_all()
            raise InputError(
                f"{cell.name}: {last or 'the disk is full'}; nothing is lost: make room and start "
                "the same command again"
            )
        if code < 0:
            last = f"killed by {signal.Signals(-code).name} (out of memory?): {last}"
        self.say(f"FAILED {cell.name}: {last}")
        self.failed[cell.name] = last
        self.store.add_failure(cell.name, cell.arm, cell.seed, last or f"exit code {code}")

    def ends_all(self) -> bool:
        """Whether a failure says that nothing will work: no run of this ablation ever did."""
        if not self.failed:
            return False
        if CONTROL in self.failed:
            return True
        trained = {cell.name for cell in self.grid.cells if cell.seed is not None}
        return not trained & self.store.done() and not self.running

    def give_up(self, left: Sequence[Cell]) -> None:
        """Cells whose start failed cannot run."""
        for cell in left:
            first = self.grid.begins_from(cell)
            note = f"begins from {first.name}, which failed"
            self.failed[cell.name] = note
            self.store.add_failure(cell.name, cell.arm, cell.seed, note)
            self.say(f"FAILED {cell.name}: {note}")

    def stop_all(self) -> None:
        """End what still runs, in order: what it did is saved."""
        for _, running in self.running.values():
            running.stop()
        while any(running.ended() is None for _, running in self.running.values()):
            time.sleep(PAUSE)
        self.running.clear()


def plan_of(grid: Grid, cell: Cell) -> dict[str, Any]:
    """All that the cell's process needs, and whose it is."""
    overrides = grid.overrides(cell) if cell.seed is not None else []
    return {
        "cell": cell.name,
        "arm": cell.arm,
        "seed": cell.seed,
        "out": str(grid.out),
        "run": str(grid.directory(cell)),
        "control": CONTROL,
        "recipe": str(grid.recipes / f"{cell.recipe}.toml"),
        "overrides": overrides,
        "command": grid.command(cell) if cell.seed is not None else [],
        "suites": [claims.suite_identity(suite) for suite in grid.ablation.suites],
        "claim": claims.claim(grid, cell).to_json(),
        "machine": claims.machine(),
    }


def last_line(path: Path) -> str:
    """What a process said last; "" if nothing."""
    lines = [line.strip() for line in path.read_bytes().splitlines()] if path.exists() else []
    texts = [line.decode("utf-8", "replace") for line in lines if line]
    return texts[-1] if texts else ""


@contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """Inside the block SIGINT and SIGTERM are noted in the list, and nothing else happens."""
    noted: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            signal.signal(number, lambda received, frame: noted.append(received))
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
