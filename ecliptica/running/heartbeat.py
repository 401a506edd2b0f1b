"""Who has stopped: every rank tells where it is, and its neighbour names it when it is silent or
stuck."""

import json
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from ecliptica.running.ranks import Ranks

BEAT = 1.0  # seconds between signs of life
SILENT = 15.0  # seconds without one after which a rank is named


@dataclass(frozen=True)
class Sign:
    """One sign of life, as it stands in the store that all ranks share."""

    beat: int  # counts up as long as the rank lives
    places: int  # how many places it has passed
    place: str  # the last of them, in words
    process: int
    machine: str

    def to_json(self) -> str:
        return json.dumps(list(vars(self).values()))

    @staticmethod
    def from_json(text: bytes) -> "Sign":
        return Sign(*json.loads(text))


class Heartbeat:
    """at(step, what) marks where this rank is.

    Rank r watches rank r + 1 in a thread of its own, and prints one line if that one is silent, or
    has stayed behind this one for `stall` seconds. Alone it does nothing.
    """

    def __init__(self, ranks: Ranks, stall: float):
        self.ranks = ranks
        self.stall = stall
        self.places = 0
        self.place = "starting"
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Heartbeat":
        if self.ranks.world > 1:
            self.store = _own_store()
            self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.over.set()

    def at(self, step: int, what: str) -> None:
        """Only where every rank passes: the count of places is how ranks are compared."""
        self.place = f"step {step}, {what}"
        self.places += 1

    def _run(self) -> None:
        store = _own_store()
        neighbour = Neighbour((self.ranks.rank + 1) % self.ranks.world, self.stall)
        beat = 0
        while not self.over.wait(BEAT):
            beat += 1
            sign = Sign(beat, self.places, self.place, os.getpid(), socket.gethostname())
            try:
                store.set(f"{self.ranks.rank}", sign.to_json())
                if not store.check([f"{neighbour.rank}"]):
                    continue
                heard = Sign.from_json(store.get(f"{neighbour.rank}"))
            except (RuntimeError, ValueError):
                # The store went with its rank: torchrun ends the others, `lost` says which is gone.
                return
            complaint = neighbour.hear(heard, self.places, time.monotonic())
            if complaint:
                print(complaint, file=sys.stderr, flush=True)

    def lost(self) -> tuple[list[int], bool]:
        """After a collective that failed: (ranks that give no sign of life any more, whether this
        rank is the one to say so). Takes 3 beats.

        The first rank to find out decides, since that one goes away too. No ranks: all are there.
        """
        try:
            before = self._beats()
            time.sleep(3 * BEAT)
            now = self._beats()
            others = [rank for rank in range(self.ranks.world) if rank != self.ranks.rank]
            gone = [rank for rank in others if before.get(rank) == now.get(rank)]
            if not gone:
                return [], True
            claim = json.dumps([self.ranks.rank, gone])
            speaker, gone = json.loads(self.store.compare_set("gone", "", claim))
        except RuntimeError:
            return [0], True  # the store is on rank 0's machine
        return gone, speaker == self.ranks.rank

    def _beats(self) -> dict[int, int]:
        """{rank: its last beat}, of the ranks that have given one."""
        beats = {}
        for rank in range(self.ranks.world):
            if self.store.check([f"{rank}"]):
                beats[rank] = Sign.from_json(self.store.get(f"{rank}")).beat
        return beats


class Neighbour:
    """The rank that this one watches: what was heard of it, and when it last changed."""

    def __init__(self, rank: int, stall: float):
        self.rank = rank
        self.stall = stall
        self.last = None
        self.alive_at = 0.0  # when its last beat was heard
        self.moved_at = 0.0  # when it last passed a place
        self.named = False  # each silence is said once

    def hear(self, sign: Sign, places: int, now: float) -> str | None:
        """Take note of its sign; the line to print if it is silent or behind, once.

        places: how many this rank has passed. now: seconds of a clock that only goes forward.
        """
        if self.last is None or sign.beat != self.last.beat:
            self.alive_at = now
        if self.last is None or sign.places != self.last.places:
            self.moved_at = now
            self.named = False
        self.last = sign
        if self.named:
            return None
        silent, still = now - self.alive_at, now - self.moved_at
        if silent > SILENT:
            return self._name(f"has given no sign of life for {silent:.0f} s")
        if sign.places < places and still > self.stall:
            return self._name(f"has not moved for {still:.0f} s; the others wait for it")
        return None

    def _name(self, what: str) -> str:
        self.named = True
        who = f"rank {self.rank} (process {self.last.process} on {self.last.machine})"
        return f"{who} {what}; last seen at {self.last.place}"


def _own_store() -> dist.Store:
    """A connection of one's own to torchrun's store: a connection is not for two threads."""
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timedelta(seconds=10),
    )
    run = os.environ.get("TORCHELASTIC_RUN_ID", "")
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"ecliptica/{run}/{restart}", store)
