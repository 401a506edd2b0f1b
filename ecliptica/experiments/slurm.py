"""Cells as jobs of a Slurm cluster, through submitit (an extra): pip install submitit."""

import importlib.util
from pathlib import Path

from model.errors import InputError

LOST = ("FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED")


class Slurm:
    """What launches a cell as a job. partition: of the cluster; minutes: a job's limit."""

    def __init__(self, out: Path, partition: str, minutes: int, gpus: int):
        if importlib.util.find_spec("submitit") is None:
            raise InputError(
                "--slurm: needs submitit, which is not installed: pip install submitit"
            )
        import submitit

        self.executor = submitit.AutoExecutor(folder=str(out / "slurm"), cluster="slurm")
        words = {"timeout_min": minutes, "gpus_per_node": gpus}
        if partition:
            words["slurm_partition"] = partition
        self.executor.update_parameters(**words)

    def __call__(self, plan: Path, place: int) -> "Job":
        return Job(self.executor.submit(run_cell, str(plan)))


def run_cell(plan: str) -> int:
    """In the job: the cell's process, its output into its log."""
    import subprocess
    import sys

    with open(Path(plan).with_suffix(".log"), "a", encoding="utf-8") as log:
        words = [sys.executable, "-m", "ecliptica.experiments.work", plan]
        return subprocess.run(words, stdout=log, stderr=subprocess.STDOUT).returncode


class Job:
    """A job that was submitted."""

    def __init__(self, job):
        self.job = job

    def ended(self) -> int | None:
        """The cell's exit code; 1 for a job that the cluster ended."""
        if not self.job.done():
            return None
        if self.job.state.startswith(LOST):
            return 1
        return self.job.result()

    def stop(self) -> None:
        self.job.cancel()
