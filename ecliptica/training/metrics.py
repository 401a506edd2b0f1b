"""What a run writes down: one JSON object a step, and a progress line that a person can follow."""

import importlib.util
import sys

from tqdm import tqdm

from ecliptica.files import append_lines

NAMES = (
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

SHOWN = (
    "loss",
    "kl",
    "rewards/margins",
    "rewards/accuracies",
    "saturated",
    "preferences_per_second",
)


def shown(metrics):
    """The few numbers a person follows, on one line."""
    return "  ".join(
        f"{name.rpartition('/')[2]} {metrics[name]:.4g}"
        for name in SHOWN
        if metrics.get(name) is not None
    )


class Log:
    """metrics.jsonl, TensorBoard's files if it is installed, and the progress bar: a bar on a terminal, a plain line now and then
    elsewhere. On ranks other than 0 (`main` false) it writes and prints nothing."""

    def __init__(self, run_dir, steps, stamp, main=True):
        self.run_dir, self.steps, self.first, self.stamp, self.main, self.board = (
            run_dir,
            steps,
            {},
            stamp,
            main,
            None,
        )
        self.bar = tqdm(total=steps, unit="step", disable=not (main and sys.stderr.isatty()))

    def start(self, step):
        """Before the first step of this process, which is `step`: a resumed run's bar and curves go on from there."""
        self.bar.update(step)
        if self.main and importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(self.run_dir / "tensorboard", purge_step=step)

    def step(self, number, metrics):
        for side in ("logps/chosen", "logps/rejected"):
            if side in metrics:
                change = metrics[side] - self.first.setdefault(side, metrics[side])
                metrics[f"{side}_change"] = (
                    change  # a chosen likelihood that falls in silence is seen here
                )
        self.append(
            "metrics.jsonl",
            {"step": number} | self.stamp | {name: metrics.get(name) for name in NAMES},
        )
        if self.board:
            for name in NAMES:
                if metrics.get(name) is not None:
                    self.board.add_scalar(name, metrics[name], number)
        self.bar.update()
        self.bar.set_postfix_str(shown(metrics))
        if self.bar.disable and (
            number % max(1, self.steps // 20) == 0 or number == self.steps - 1
        ):
            self.say(f"step {number + 1}/{self.steps}  {shown(metrics)}")

    def append(self, name, record):
        if self.main:
            append_lines(self.run_dir / name, [record])

    def say(self, line):
        if not self.main:
            return
        if self.bar.disable:
            print(line, file=sys.stderr, flush=True)
        else:
            self.bar.write(line, file=sys.stderr)

    def close(self):
        self.bar.close()
        if self.board:
            self.board.close()
