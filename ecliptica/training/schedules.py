"""What changes with the step: the learning rate. (The KL's weight: objectives/kl.py.)"""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Now:
    """What holds in one step."""

    step: int
    steps: int
    learning_rate: float


@dataclass(frozen=True)
class Schedule:
    """A run's schedule: functions of the step alone, so a resumed run needs no state of it."""

    options: Any  # the section `training`
    steps: int

    def at(self, step: int) -> Now:
        return Now(step, self.steps, learning_rate(step, self.steps, self.options))


def learning_rate(step: int, steps: int, options: Any) -> float:
    """Linear warm-up over the first `warmup` share of the steps, then cosine to 0, or constant."""
    warm = max(1, round(options.warmup * steps)) if options.warmup else 0
    if step < warm:
        return options.lr * (step + 1) / warm
    if options.schedule == "constant":
        return options.lr
    return options.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
