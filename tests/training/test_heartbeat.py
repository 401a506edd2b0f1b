"""Who has stopped: a neighbour that is silent or stuck is named, once; one that stays silent ends
the run on every machine."""

import time
from dataclasses import replace

import torch.distributed as dist

from ecliptica.running import heartbeat
from ecliptica.running.heartbeat import SILENT, Neighbour, Sign, Watch
from ecliptica.running.ranks import Ranks

SIGN = Sign(beat=1, places=4, place="step 3, data", process=77, machine="node-2")


def test_a_silent_neighbour_is_named_once_and_again_after_it_moved():
    neighbour = Neighbour(rank=1, stall=1000)
    assert neighbour.hear(SIGN, places=4, now=0) is None
    assert neighbour.hear(SIGN, places=4, now=SILENT) is None
    line = neighbour.hear(SIGN, places=4, now=SILENT + 1)
    assert line == (
        "rank 1 (process 77 on node-2) has given no sign of life for 16 s; "
        "last seen at step 3, data"
    )
    assert neighbour.hear(SIGN, places=4, now=SILENT + 9) is None
    awake = replace(SIGN, beat=2, places=5)
    assert neighbour.hear(awake, places=5, now=SILENT + 10) is None
    assert neighbour.hear(awake, places=5, now=2 * SILENT + 11)


def test_a_neighbour_that_lives_but_stays_behind_is_named():
    neighbour = Neighbour(rank=1, stall=30)
    for beat in range(31):
        sign = replace(SIGN, beat=beat)
        assert neighbour.hear(sign, places=5, now=beat) is None
    line = neighbour.hear(replace(SIGN, beat=31), places=5, now=31)
    assert "has not moved for 31 s; the others wait for it" in line


def test_a_neighbour_that_waits_as_this_rank_does_is_not_named():
    neighbour = Neighbour(rank=1, stall=30)
    for beat in range(100):
        assert neighbour.hear(replace(SIGN, beat=beat), places=4, now=beat) is None


class Clock:
    """Ranks in one process, a beat after the other, by a clock that is set by hand."""

    def __init__(self, machines, stall):
        self.store = dist.HashStore()
        self.machines = machines
        local = [machines[:rank].count(name) for rank, name in enumerate(machines)]
        world = len(machines)
        self.watches = [
            Watch(self.store, Ranks(rank, world, local[rank]), stall) for rank in range(world)
        ]
        self.now = 0.0

    def sign(self, rank, over=False):
        return Sign(int(self.now), 3, "step 3, data", 100 + rank, self.machines[rank], over)

    def until(self, end, silent):
        """Beats up to `end` seconds: {rank: (when it ended, its last words)}."""
        ended = {}
        while self.now < end:
            self.now += 1
            for rank, watch in enumerate(self.watches):
                if rank in silent or rank in ended:
                    continue
                _, last_words = watch.round(self.sign(rank), self.now)
                if last_words is not None:
                    ended[rank] = (self.now, last_words)
        return ended


def test_a_silent_rank_ends_the_others_on_every_machine_within_twice_the_stall():
    machines = ["a", "a", "b", "b", "c", "c"]
    clock = Clock(machines, stall=30)
    assert not clock.until(100, silent=())
    ended = clock.until(200, silent={3})
    assert ended.keys() == {0, 1, 2, 4, 5}
    for rank, (when, _) in ended.items():
        assert 100 + 30 < when < 100 + 2 * 30, f"rank {rank} ended after {when - 100} s"

    # The rank that found it says so, and one process of each other machine.
    words = {rank: last for rank, (_, last) in ended.items()}
    line = (
        "step 3, data: rank 3 (process 103 on b) has given no sign of life for 46 s; last seen at "
        "step 3, data; all stop; start the same command again to go on"
    )
    assert words == {0: line, 1: "", 2: line, 4: line, 5: ""}


def test_a_whole_machine_that_is_gone_ends_the_others():
    clock = Clock(["a", "a", "b", "b"], stall=30)
    clock.until(10, silent=())
    assert clock.until(10 + 2 * 30, silent={2, 3}).keys() == {0, 1}


def test_a_rank_that_ended_well_is_not_waited_for():
    clock = Clock(["a", "a"], stall=30)
    clock.until(10, silent=())
    clock.store.set("1", clock.sign(1, over=True).to_json())
    assert not clock.until(300, silent={1})


def test_a_store_that_does_not_answer_ends_the_process(monkeypatch):
    """It is on the machine of rank 0: when that is gone, nobody else would say so."""
    words = []
    monkeypatch.setattr(heartbeat, "BEAT", 0.01)
    beating = heartbeat.Heartbeat(Ranks(1, 2), stall=0.1)

    def end(line):
        words.append(line)
        beating.over.set()

    monkeypatch.setattr(heartbeat, "end_process", end)
    beating.heard_at = time.monotonic()
    beating._guard()
    assert words == [
        "starting: torchrun's store, on the machine of rank 0, has not answered for 0 s; all stop; "
        "start the same command again to go on"
    ]
