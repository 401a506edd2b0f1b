"""SIGTERM and SIGINT: a wish to stop, which the run fulfils where nothing is lost.

The exit code, 128 + the signal's number, is model/cli.py's.
"""

import signal

from ecliptica.running.ranks import Ranks
from model.errors import Stopped

HEEDED = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Inside the block a signal becomes a wish that the run reads after each step.

    A second SIGINT interrupts a single process at once. Under torchrun a Ctrl-C arrives twice
    (from the terminal and from torchrun), and it is torchrun that ends a process that takes too
    long.
    """

    def __init__(self, ranks: Ranks):
        self.ranks = ranks
        self.number = 0  # of the first signal that arrived here; 0: none
        self.interrupts = 0
        self.before = {}

    def __enter__(self) -> "Signals":
        for number in HEEDED:
            self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        self.number = self.number or number
        self.interrupts += number == signal.SIGINT
        if self.interrupts > 1 and self.ranks.world == 1:
            raise KeyboardInterrupt

    def check(self, run: str) -> None:
        """Between two pieces of the preparation, where there is nothing to save. Collective.

        run: what it is called. Raises Stopped on every rank if any was asked to stop.
        """
        (number,) = self.ranks.reduce([self.number], "max")
        if number:
            raise self.stopped(int(number), run, "before its next step")

    def stopped(self, number: int, run: str, where: str) -> Stopped:
        """What all ranks raise once they agree on a signal; rank 0's line is printed."""
        name = signal.Signals(number).name
        line = f"{run}: stopped by {name} {where}; the same command goes on"
        return Stopped(number, line, elsewhere=not self.ranks.main)
