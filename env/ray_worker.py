"""Workers on any node of a Ray cluster; each is an actor that reserves one CPU."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from functools import cache
from typing import Any

from common_utils.elsewhere import import_path, joined_ray, last_line, variables
from env.remote import Worker, WorkerLost
from env.worker import Answerer

RAY = "rollout or engine ray"  # what needs the package, for messages
ENDING = 0.5  # seconds in which an actor may free its environment


class EnvActor:
    """Runs on some node: an environment that answers messages as every worker's does.

    folder: the working directory of the process that started it, for relative paths.
    """

    def __init__(self, folder: str) -> None:
        try:
            os.chdir(folder)
        except OSError:
            pass  # a node without it can still play what needs no files there
        self._answerer = Answerer()

    def answer(self, message: tuple[Any, ...]) -> tuple[Any, ...]:
        """See ``env.worker``."""
        # arrays that Ray hands over are read-only
        return self._answerer.answer(copy.deepcopy(message))

    def close(self) -> None:
        """Free the environment."""
        self._answerer.close()


@cache
def _actor_class() -> Any:
    """Ray's class of EnvActor, which is sent to the cluster once."""
    return joined_ray(RAY).remote(EnvActor)


class RayWorker(Worker):
    """An actor, and its unfinished answer."""

    def __init__(self, name: str, timeout: float, error: type[Exception]) -> None:
        super().__init__(name, timeout, error)
        self._ray = joined_ray(RAY)
        given = {k: v for k, v in variables().items() if v is not None}
        given |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": import_path()}
        options = {"runtime_env": {"env_vars": given}, "scheduling_strategy": "SPREAD"}
        self._actor = _actor_class().options(num_cpus=1, **options).remote(os.getcwd())
        self._answer: Any = None
        self._released: Any = None

    def overdue(self) -> str:
        """See :class:`Worker`; also whether it could not begin."""
        full = self._ray.available_resources().get("CPU", 0) < 1
        return super().overdue() + ("; no CPU of the cluster is free" if full else "")

    @property
    def place(self) -> str:
        """See :class:`Worker`."""
        return f"Ray actor {self._actor._actor_id.hex()[:8]}"

    def has_answer(self, seconds: float) -> bool:
        """See :class:`Worker`."""
        return bool(self._ray.wait([self._answer], timeout=seconds)[0])

    @classmethod
    def first(cls, workers: Sequence[Worker], seconds: float) -> list[Worker]:
        """See :class:`Worker`."""
        ray = joined_ray(RAY)
        by_answer = {w._answer: w for w in workers if isinstance(w, RayWorker)}
        if not ray.wait(list(by_answer), timeout=seconds)[0]:
            return []
        every = ray.wait(list(by_answer), num_returns=len(by_answer), timeout=0)[0]
        return [by_answer[answer] for answer in every]

    @classmethod
    def most(cls) -> int:
        """See :class:`Worker`: the cluster's CPUs."""
        return int(joined_ray(RAY).cluster_resources().get("CPU", 0))

    def housing(self) -> str:
        """See :class:`Worker`."""
        nodes = sum(node["Alive"] for node in self._ray.nodes())
        return f"in a Ray actor of its own ({nodes} nodes, {self.most()} CPUs)"

    def _put(self, message: tuple[Any, ...]) -> None:
        self._answer = self._actor.answer.remote(message)

    def _take(self) -> tuple[Any, ...]:
        try:
            answer = self._ray.get(self._answer)
        except self._ray.exceptions.RayError as error:
            raise WorkerLost(
                f"{self.name} ({self.place}) was lost while {self.what}: {last_line(error)}"
            ) from None
        message: tuple[Any, ...] = copy.deepcopy(answer)  # writeable, and out of Ray's memory
        return message

    def release(self) -> None:
        """See :class:`Worker`."""
        if self._released is None:
            self._released = self._actor.close.remote()

    def kill(self) -> None:
        """See :class:`Worker`."""
        self.release()
        self._ray.wait([self._released], timeout=ENDING)
        self._ray.kill(self._actor)
