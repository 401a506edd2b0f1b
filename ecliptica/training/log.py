"""What a run writes down: one JSON object a step, and a progress line that a person can follow."""

import importlib.util
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ecliptica.files import append_lines

# Every line of metrics.jsonl has these, null where the run has no such number: a table of several
# runs has the same columns. What else an objective measures follows them.
COLUMNS = (
    "loss",
    "sft",
    "preference",
    "kl",
    "kl_weight",
    "logps/chosen",
    "logps/rejected",
    "logps/chosen_change",
    "logps/rejected_change",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "saturated",
    "grad_norm",
    "lr",
    "tokens_per_second",
    "preferences_per_second",
    "step_seconds",
    "data_seconds",
    "mfu",
    "peak_memory_gib",
)

# What the progress line shows, of these what there is.
SHOWN = (
    "loss",
    "reward",
    "kl",
    "length",
    "ended",
    "clip_share",
    "rewards/margins",
    "rewards/accuracies",
    "saturated",
    "preferences_per_second",
)
WATCHED = ("logps/chosen", "logps/rejected")  # their change since the first step is logged too
LINES = 20  # of a whole run, where there is no terminal


def shown(metrics: dict[str, Any]) -> str:
    """The few numbers a person follows, on one line."""
    there = [name for name in SHOWN if metrics.get(name) is not None]
    return "  ".join(f"{name.rpartition('/')[2]} {metrics[name]:.4g}" for name in there)


def finite(record: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the record with null for every number that is none, the names of those)."""
    names = [
        name
        for name, value in record.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]
    return record | dict.fromkeys(names), names


class Log:
    """metrics.jsonl, TensorBoard's files if it is installed, and the progress bar: a bar on a
    terminal, a plain line now and then elsewhere.

    stamp: what every line carries, such as {"ablation": True}. On ranks other than 0 (`main` false)
    it writes and prints nothing.
    """

    def __init__(self, run_dir: Path, steps: int, stamp: dict[str, Any], main: bool = True):
        self.run_dir = run_dir
        self.steps = steps
        self.stamp = stamp
        self.main = main
        self.first: dict[str, float] = {}  # the watched numbers at the first step
        self.board = None
        self.bar = tqdm(total=steps, unit="step", disable=not (main and sys.stderr.isatty()))

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()
        if self.board:
            self.board.close()

    def start(self, step: int) -> None:
        """Before the first step of this process, which is `step`: a resumed run's bar and curves go
        on from there."""
        self.bar.update(step)
        if self.main and importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(self.run_dir / "tensorboard", purge_step=step)

    def step(self, number: int, metrics: dict[str, Any]) -> None:
        """One step's numbers: whatever names they have."""
        # A chosen likelihood that falls in silence is seen in its change.
        changes = {}
        for name in WATCHED:
            if name in metrics:
                changes[f"{name}_change"] = metrics[name] - self.first.setdefault(
                    name, metrics[name]
                )
        record = dict.fromkeys(COLUMNS) | metrics | changes
        self.append("metrics.jsonl", number, [record])
        if self.board:
            for name, value in record.items():
                if value is not None:
                    self.board.add_scalar(name, value, number)
        self.bar.update()
        self.bar.set_postfix_str(shown(record))
        now_and_then = number % max(1, self.steps // LINES) == 0 or number == self.steps - 1
        if self.bar.disable and now_and_then:
            self.say(f"step {number + 1}/{self.steps}  {shown(record)}")

    def append(self, name: str, step: int, records: Iterable[dict[str, Any]]) -> None:
        """Lines at the end of a journal of the run; JSON knows no NaN, so that is said, and
        null."""
        if not self.main:
            return
        lines = []
        for record in records:
            line, none = finite({"step": step} | self.stamp | record)
            lines.append(line)
            if none:
                self.say(f"step {step}: no finite number: {', '.join(none)}; null in {name}")
        append_lines(self.run_dir / name, lines)

    def say(self, line: str) -> None:
        """One line for the person who watches, on stderr."""
        if not self.main:
            return
        if self.bar.disable:
            print(line, file=sys.stderr, flush=True)
        else:
            self.bar.write(line, file=sys.stderr)

    def result(self, line: str) -> None:
        """One line of what came of it, on stdout."""
        if self.main:
            print(line)
