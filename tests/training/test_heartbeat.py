"""Who has stopped: a neighbour that is silent or stuck is named, once."""

from dataclasses import replace

from ecliptica.running.heartbeat import SILENT, Neighbour, Sign

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
