"""Who has stopped: every rank tells where it is, one thread each, and a rank that is silent or stuck is named by its neighbour."""

import json
import os
import socket
import sys
import threading
import time
from datetime import timedelta

import torch.distributed as dist

BEAT = 1.0  # seconds between signs of life
SILENT = 15.0  # seconds without one after which a rank is named


class Watch:
    """at(step, what) marks where this rank is. Rank r watches rank r + 1 and prints one line if that one is silent, or has stayed
    behind this one for `stall` seconds. Alone it does nothing."""

    def __init__(self, ranks, stall):
        self.ranks, self.stall, self.place, self.over = (
            ranks,
            stall,
            [0, "starting"],
            threading.Event(),
        )
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        if self.ranks.world > 1:
            self.store = _store()
            self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()

    def at(self, step, what):
        """Only where every rank passes: the count of places is how ranks are compared."""
        self.place = [self.place[0] + 1, f"step {step}, {what}"]

    def _run(self):
        store, me, beat = _store(), self.ranks.rank, 0
        next_rank = (me + 1) % self.ranks.world
        heard, moved, last, named = time.monotonic(), time.monotonic(), None, None
        while not self.over.wait(BEAT):
            beat += 1
            try:
                store.set(
                    f"{me}", json.dumps([beat, *self.place, os.getpid(), socket.gethostname()])
                )
                told = (
                    json.loads(store.get(f"{next_rank}")) if store.check([f"{next_rank}"]) else None
                )
            except (
                RuntimeError,
                ValueError,
            ):  # the store went with its rank: torchrun ends the others, lost() tells who
                return
            now = time.monotonic()
            if told is None:
                continue
            if last is None or told[0] != last[0]:
                heard = now
            if last is None or told[1] != last[1]:
                moved, named = now, None
            last = told
            behind = told[1] < self.place[0]
            if named is None and now - heard > SILENT:
                named = self._name(
                    next_rank, told, f"has given no sign of life for {now - heard:.0f} s"
                )
            elif named is None and behind and now - moved > self.stall:
                named = self._name(
                    next_rank,
                    told,
                    f"has not moved for {now - moved:.0f} s; the others wait for it",
                )

    def _name(self, rank, told, what):
        print(
            f"rank {rank} (process {told[3]} on {told[4]}) {what}; last seen at {told[2]}",
            file=sys.stderr,
            flush=True,
        )
        return rank

    def lost(self):
        """Called when a collective failed: (ranks that give no sign of life any more, whether this rank is the one to say so). Takes 3
        beats. The first rank to find out decides, since who has found out goes away too. No ranks: they are all there."""
        try:
            before = self._beats()
            time.sleep(3 * BEAT)
            now = self._beats()
            gone = [
                rank
                for rank in range(self.ranks.world)
                if rank != self.ranks.rank and before.get(rank) == now.get(rank)
            ]
            if not gone:
                return [], True
            by, gone = json.loads(
                self.store.compare_set("gone", "", json.dumps([self.ranks.rank, gone]))
            )
        except RuntimeError:
            return [0], True  # the store is on rank 0's machine
        return gone, by == self.ranks.rank

    def _beats(self):
        names = [f"{rank}" for rank in range(self.ranks.world)]
        return {
            rank: json.loads(self.store.get(name))[0]
            for rank, name in enumerate(names)
            if self.store.check([name])
        }


def _store():
    """A connection of one's own to torchrun's store: a connection is not for two threads."""
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timedelta(seconds=10),
    )
    return dist.PrefixStore(
        f"ecliptica/{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}",
        store,
    )
