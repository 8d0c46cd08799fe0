"""Slurm, through submitit: trials that are ready together are one job array.

Before a job's time is over, or when it is preempted, submitit is sent a signal: the trial saves its
state and is queued again. submitit writes its own files, pickled functions and results, below
``OUT/slurm``; only the sweep itself and its jobs read them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common_utils.elsewhere import found_elsewhere, last_line, variables
from common_utils.errors import ConfigError
from common_utils.extras import optional
from launch.attempt import Attempt, Outcome, run_to_end
from launch.engines.base import Engine, Handle
from launch.trial import Trial

CLUSTERS = ("slurm", "local", "debug")
TIME = 24 * 60  # minutes of a job; a longer trial continues in the next one
MOST_JOBS = 1000  # of one trial, each as long as its time allows


class SlurmTrial:
    """What runs on the node."""

    def __init__(self, trial: Trial, sweep: Path, given: Mapping[str, str | None]) -> None:
        self.trial, self.sweep, self.given = trial, sweep, given
        self._attempts: list[Attempt] = []

    def __call__(self) -> tuple[int, bool]:
        """Run to the end; returns exit status, and whether it was stopped."""
        outcome = run_to_end(self.trial, self.sweep, self.given, self._attempts)
        return outcome.status, outcome.stopped

    def checkpoint(self) -> Any:
        """Called in the place of the running call when the job is about to end: the trial saves
        its state, and the same is queued again."""
        for attempt in self._attempts:
            attempt.stop()
            while attempt.poll() is None:
                time.sleep(0.1)
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(SlurmTrial(self.trial, self.sweep, self.given))


class Job:
    """A trial in the queue, or running."""

    def __init__(self, job: Any) -> None:
        self._job = job
        self._stopped = False

    def poll(self) -> Outcome | None:
        """None until the job has ended."""
        if not self._job.done():
            return None
        try:
            status, stopped = self._job.result()
        except Exception as error:  # submitit's, whatever has ended the job
            return Outcome(1, self._stopped, f"job {self._job.job_id}: {last_line(error)}")
        return Outcome(status, stopped or self._stopped)

    def stop(self) -> None:
        """Cancel it: Slurm sends SIGTERM to the trial, which saves its state."""
        if not self._stopped:
            self._stopped = True
            self._job.cancel()


class SlurmEngine(Engine):
    """Jobs of submitit."""

    SETTINGS: Mapping[str, str] = {
        "cluster": "slurm; local (processes of this machine) and debug (inside the sweep) try it",
        "timeout_min": f"minutes of a job ({TIME})",
        "mem_gb": "memory of a job",
        "gpus_per_node": "GPUs of a job",
        "partition": "as of sbatch",
        "account": "as of sbatch",
        "qos": "as of sbatch",
        "constraint": "as of sbatch",
        "exclude": "as of sbatch",
    }
    NUMBERS = ("timeout_min", "mem_gb", "gpus_per_node")

    def __init__(self, sweep: Path, settings: Mapping[str, str]) -> None:
        super().__init__(sweep, settings)
        submitit = optional("submitit", "scale", "--engine slurm")
        cluster = settings.get("cluster", "slurm")
        if cluster not in CLUSTERS:
            raise ConfigError(
                f"--engine_option: cluster: '{cluster}', expected one of {', '.join(CLUSTERS)}"
            )
        jobs = {"slurm_max_num_timeout": MOST_JOBS, "local_max_num_timeout": MOST_JOBS}
        try:
            self._executor = submitit.AutoExecutor(sweep / "slurm", cluster=cluster, **jobs)
        except RuntimeError as error:  # no srun here
            raise ConfigError(f"--engine slurm: {error}; expected the commands of Slurm") from None
        found_elsewhere()
        self._given = variables()

    def submit(self, trials: Sequence[Trial]) -> list[Handle]:
        """Queue them as one array."""
        wanted: dict[str, Any] = {"timeout_min": TIME}
        for name, text in self.settings.items():
            if name in self.NUMBERS:
                wanted[name] = _number(name, text)
            elif name != "cluster":
                wanted[f"slurm_{name}"] = text
        cores = max(trial.cores for trial in trials)
        self._executor.update_parameters(name="sweep", cpus_per_task=cores, **wanted)
        with self._executor.batch():
            jobs = [
                self._executor.submit(SlurmTrial(trial, self.sweep, self._given))
                for trial in trials
            ]
        return [Job(job) for job in jobs]


def _number(name: str, text: str) -> int:
    if not text.isdigit() or not int(text):
        raise ConfigError(f"--engine_option: {name}: '{text}', expected an integer of at least 1")
    return int(text)
