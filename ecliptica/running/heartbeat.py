"""Who has stopped: every rank tells where it is, and its neighbour names it when it is silent or
stuck. A rank that stays silent ends the run, on every machine."""

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
SILENT = 15.0  # seconds without one after which a rank is named, or `stall` if that is shorter
ENDED = 1.5  # times `stall` without one after which the run ends: well within twice
FAILED = 2  # exit code of a process that the watch ends
END = "end"  # the key in the store that says so to all
AGAIN = "all stop; start the same command again to go on"


@dataclass(frozen=True)
class Sign:
    """One sign of life, as it stands in the store that all ranks share."""

    beat: int  # counts up as long as the rank lives
    places: int  # how many places it has passed
    place: str  # the last of them, in words
    process: int
    machine: str
    over: bool = False  # it has ended well, and gives no other sign

    def to_json(self) -> str:
        return json.dumps(list(vars(self).values()))

    @staticmethod
    def from_json(text: bytes) -> "Sign":
        return Sign(*json.loads(text))


class Heartbeat:
    """at(step, what) marks where this rank is.

    Rank r watches rank r + 1 in a thread of its own, and prints one line if that one is silent, or
    has stayed behind this one for `stall` seconds. Where a rank is silent for ENDED times `stall`,
    or the store is (which is on rank 0's machine), all processes end: NCCL would leave them inside
    a collective until its own limit. Alone it does nothing.
    """

    def __init__(self, ranks: Ranks, stall: float):
        self.ranks = ranks
        self.stall = stall
        self.places = 0
        self.place = "starting"
        self.over = threading.Event()
        self.heard_at = 0.0  # when the store last answered
        self.threads = [
            threading.Thread(target=target, daemon=True) for target in (self._run, self._guard)
        ]

    def __enter__(self) -> "Heartbeat":
        if self.ranks.world > 1:
            self.store = _own_store()
            self.heard_at = time.monotonic()
            for thread in self.threads:
                thread.start()
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        self.over.set()
        # A last sign, so that a neighbour that takes longer to end does not think it silent. A rank
        # that failed gives none.
        if self.ranks.world > 1 and kind is None:
            self.threads[0].join(2 * BEAT)
            self.threads[1].join(2 * BEAT)
            self._say_over()

    def _say_over(self) -> None:
        try:
            self.store.set(f"{self.ranks.rank}", self._sign(0, over=True).to_json())
        except RuntimeError:
            return  # the store went first: nobody is left to be told

    def at(self, step: int, what: str) -> None:
        """Only where every rank passes: the count of places is how ranks are compared."""
        self.place = f"step {step}, {what}"
        self.places += 1

    def _sign(self, beat: int, over: bool = False) -> Sign:
        return Sign(beat, self.places, self.place, os.getpid(), socket.gethostname(), over)

    def _run(self) -> None:
        """Give signs, and hear those of the neighbour."""
        watch = Watch(_own_store(), self.ranks, self.stall)
        beat = 0
        while not self.over.wait(BEAT):
            beat += 1
            try:
                complaint, last_words = watch.round(self._sign(beat), time.monotonic())
            except (RuntimeError, ValueError):
                continue  # the store does not answer: the guard counts how long
            self.heard_at = time.monotonic()
            if complaint:
                print(complaint, file=sys.stderr, flush=True)
            if last_words is not None:
                end_process(last_words)

    def _guard(self) -> None:
        """End the process when the store has been silent for too long: the thread that asks it may
        be waiting for an answer that never comes."""
        while not self.over.wait(BEAT):
            silent = time.monotonic() - self.heard_at
            if silent > ENDED * self.stall:
                end_process(
                    f"{self.place}: torchrun's store, on the machine of rank 0, has not answered "
                    f"for {silent:.0f} s; {AGAIN}"
                )

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


def end_process(last_words: str) -> None:
    """At once, whatever the main thread waits for. last_words: printed if there are any."""
    if last_words:
        print(f"error: {last_words}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(FAILED)


class Watch:
    """One rank's side of the watching, a round a beat."""

    def __init__(self, store: dist.Store, ranks: Ranks, stall: float):
        self.store = store
        self.ranks = ranks
        self.stall = stall
        self.neighbour = Neighbour((ranks.rank + 1) % ranks.world, stall)

    def round(self, sign: Sign, now: float) -> tuple[str | None, str | None]:
        """Give this rank's sign and hear the neighbour's: (a line to print, the last words of this
        process if the run is to end).

        The first rank to find a silence decides for all. It says what it found, and so does the
        first process of every other machine; the others' last words are empty.
        """
        self.store.set(f"{self.ranks.rank}", sign.to_json())
        if self.store.check([END]):
            return None, self._follow(self.store.get(END), sign.machine)
        if not self.store.check([f"{self.neighbour.rank}"]):
            return None, None
        heard = Sign.from_json(self.store.get(f"{self.neighbour.rank}"))
        complaint = self.neighbour.hear(heard, sign.places, now)
        if heard.over or now - self.neighbour.alive_at <= ENDED * self.stall:
            return complaint, None

        last_words = f"{sign.place}: {self.neighbour.silence(now)}; {AGAIN}"
        claim = json.dumps([sign.machine, last_words])
        first = self.store.compare_set(END, "", claim)
        if first.decode() == claim:
            return complaint, last_words
        return complaint, self._follow(first, sign.machine)

    def _follow(self, claim: bytes, machine: str) -> str:
        """The last words of a rank that is told to end."""
        finder, last_words = json.loads(claim)
        if finder == machine or self.ranks.local:
            return ""
        return last_words


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
        if self.named or sign.over:
            return None
        still = now - self.moved_at
        if now - self.alive_at > min(SILENT, self.stall):
            self.named = True
            return self.silence(now)
        if sign.places < places and still > self.stall:
            self.named = True
            return self._line(f"has not moved for {still:.0f} s; the others wait for it")
        return None

    def silence(self, now: float) -> str:
        """A line that says how long it has given no sign of life."""
        return self._line(f"has given no sign of life for {now - self.alive_at:.0f} s")

    def _line(self, what: str) -> str:
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
