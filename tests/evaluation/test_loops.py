"""Loops: shares counted by hand."""

import pytest

from ecliptica.evaluation.metrics.loops import is_loop, repeated_share

TEN = "one two three four five six seven eight nine ten"


@pytest.mark.parametrize(
    "text, share",
    [
        ("", 0.0),
        (TEN, 0.0),
        (f"{TEN}. {TEN}.", 10 / 20),  # the second sentence
        ("Yes. No. Yes. Maybe so.", 1 / 5),  # a sentence of one word
        (f"{TEN} and one two three four five then", 5 / 17),  # five words that came before
        (f"{TEN} and one two three four then", 0.0),  # four are none
        ("self balancing " * 6, 10 / 12),  # all but the first two words
        ("- a list\n- a list\n- a list", 4 / 6),  # lines are sentences
    ],
)
def test_the_repeated_share_by_hand(text, share):
    assert repeated_share(text) == pytest.approx(share)


def test_a_loop_repeats_more_than_30_percent():
    assert not is_loop(f"{TEN} and one two three four five then")
    assert is_loop("A self-balancing, self-balancing, self-balancing, self-balancing scooter.")
    assert not is_loop("Take the stairs. Bring a coat, and leave the window open for the cat.")
