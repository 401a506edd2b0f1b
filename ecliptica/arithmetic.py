"""Two small sums that rooms of every floor share."""

SEEDS = 2**63  # what every generator takes


def ceil_div(a: int, b: int) -> int:
    """How many groups of b hold a."""
    return (a + b - 1) // b


def seed_of(seed: int, number: int, rank: int | None = None) -> int:
    """A seed of its own for the epoch `number` of a run, or for a rank in its step `number`.

    Whatever the run's seed, it is one that generators take: 0 to 2^63 - 1.
    """
    mixed = seed * 1_000_003 + number
    if rank is not None:
        mixed = mixed * 65_536 + rank
    return mixed % SEEDS
