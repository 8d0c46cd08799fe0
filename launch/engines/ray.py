"""A Ray cluster: one task per trial.

Every node reaches the sweep's folder and the program by the same paths. If a node is lost, Ray
starts its trials again elsewhere, and they resume from the states in the sweep's folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common_utils.elsewhere import found_elsewhere, joined_ray, last_line, variables
from common_utils.errors import ConfigError
from launch.attempt import Outcome, run_to_end
from launch.engines.base import Engine, Handle
from launch.trial import Trial

LOST_NODES = 100  # after which a trial is given up


class Task:
    """A trial in Ray's queue, or running."""

    def __init__(self, ray: Any, ref: Any) -> None:
        self._ray, self._ref = ray, ref
        self._stopped = False

    def poll(self) -> Outcome | None:
        """None until the task has ended."""
        ready, _ = self._ray.wait([self._ref], timeout=0)
        if not ready:
            return None
        try:
            status, stopped, _ = self._ray.get(self._ref)
        except Exception as error:  # Ray's, whatever has ended the task
            return Outcome(1, self._stopped, f"Ray: {last_line(error)}")
        return Outcome(status, stopped or self._stopped)

    def stop(self) -> None:
        """Interrupt it: the trial saves its state."""
        if not self._stopped:
            self._stopped = True
            self._ray.cancel(self._ref, force=False)


class RayEngine(Engine):
    """Tasks of Ray."""

    SETTINGS: Mapping[str, str] = {
        "address": "of the cluster; default: RAY_ADDRESS, or a cluster of this machine alone",
        "num_gpus": "GPUs of a trial, a fraction if several share one (0)",
        "memory_gb": "memory of a trial that Ray reserves (0)",
    }

    def __init__(self, sweep: Path, settings: Mapping[str, str]) -> None:
        super().__init__(sweep, settings)
        self._gpus, self._memory = (_amount(settings, n) for n in ("num_gpus", "memory_gb"))
        self._ray = joined_ray("--engine ray", settings.get("address"))
        found_elsewhere()
        self._given = variables()
        there = {name: value for name, value in self._given.items() if value is not None}
        self._run = self._ray.remote(
            max_retries=LOST_NODES, retry_exceptions=False, runtime_env={"env_vars": there}
        )(run_to_end)

    def submit(self, trials: Sequence[Trial]) -> list[Handle]:
        """Queue a task for each."""
        return [Task(self._ray, self._start(trial)) for trial in trials]

    def _start(self, trial: Trial) -> Any:
        task = self._run.options(
            name=trial.name,
            num_cpus=trial.cores,
            num_gpus=self._gpus,
            memory=int(self._memory * 1e9),
        )
        return task.remote(trial, self.sweep, self._given)

    def close(self) -> None:
        """Leave the cluster."""
        self._ray.shutdown()


def _amount(settings: Mapping[str, str], name: str) -> float:
    text = settings.get(name, "0")
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < 1e6:
        raise ConfigError(f"--engine_option: {name}: '{text}', expected a number of at least 0")
    return value
