"""Workers that do tasks, whichever is free: games of an evaluation, attempts of an expert.

    while crew.assign(tasks, begin):
        for member, message in crew.answers():
            ...                     # crew.tell(member, the next message), or crew.done(member)

A task must have the same result wherever and however often it is done. So a worker that dies or
hangs costs nothing but time: another one takes its place, and whoever is free does its task again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from env.remote import TRIES, Worker, WorkerLost, end, worker_class

T = TypeVar("T")
Message = tuple[Any, ...]
# seconds to wait for workers before checking again whether to continue
PAUSE_EVERY = 0.5


@dataclass
class Member(Generic[T]):
    """A worker, and the task that it does."""

    number: int
    worker: Worker
    built: bool = False  # whether it has its environment
    task: T | None = None
    losses: int = 0  # workers that were lost with the task before

    @property
    def is_busy(self) -> bool:
        """Whether an answer is due."""
        return not self.built or self.task is not None


class Crew(Generic[T]):
    """Workers with environments of one kind; none is started before :meth:`fill`.

    Args:
        engine: where they are, a row of ``env.remote.WORKERS``.
        num: how many; fewer if the engine has no room for so many.
        name: of a worker, in messages.
        timeout: seconds that an answer may take before its worker counts as hung.
        error: raised if an environment fails, or if a task's workers are lost TRIES times.
        maker: "module:function" that builds an environment, importable in a worker.
        env_cfg: what ``maker`` takes.
        say: gets lines about workers that were lost.
    """

    def __init__(
        self,
        engine: str,
        num: int,
        name: str,
        timeout: float,
        error: type[Exception],
        maker: str,
        env_cfg: Mapping[str, Any],
        say: Callable[[str], None] = print,
    ) -> None:
        self.num, self.name, self.timeout, self.error = num, name, timeout, error
        self.say = say
        self.members: list[Member[T]] = []
        self.spec: dict[str, Any] | None = None  # of their environments, once one is built
        self._engine, self._maker, self._env_cfg = engine, maker, env_cfg
        self._again: deque[tuple[T, int]] = deque()  # tasks whose worker was lost, and how often

    def fill(self) -> None:
        """Start workers that are missing; they build their environments at the same time."""
        kind = worker_class(self._engine)
        num = min(self.num, kind.most())
        if num < 1:
            raise self.error(f"engine {self._engine}: no CPU, expected at least one")
        here = {member.number for member in self.members}
        for number in range(num):
            if number not in here:
                self._start(number)

    def _start(self, number: int) -> None:
        kind = worker_class(self._engine)
        worker = kind(f"{self.name} {number}", self.timeout, self.error)
        member = Member[T](number, worker)
        self.members.append(member)
        try:
            worker.build(self._maker, self._env_cfg)
        except WorkerLost as error:
            self._lose(member, error)

    def assign(self, tasks: Iterator[T], begin: Callable[[T], tuple[Message, str]]) -> bool:
        """Give tasks to those that have none: lost ones again, then the next of ``tasks``.

        begin: the first message about a task, and what the worker does then, in words.
        Returns whether any task is unfinished.
        """
        idle = False
        for member in list(self.members):
            if member.is_busy:
                continue
            if self._again:
                member.task, member.losses = self._again.popleft()
            else:
                member.task, member.losses = next(tasks, None), 0
            if member.task is None:
                idle = True
                break
            message, member.worker.what = begin(member.task)
            member.worker.timeout = self.timeout
            self.tell(member, message)
        return not idle or bool(self._again) or any(m.task is not None for m in self.members)

    def tell(self, member: Member[T], message: Message) -> None:
        """Send the next message of its task."""
        try:
            member.worker.send(message)
        except WorkerLost as error:
            self._lose(member, error)

    def done(self, member: Member[T]) -> None:
        """Its task is finished."""
        member.task = None

    def answers(self, pause: Callable[[], None] = lambda: None) -> list[tuple[Member[T], Message]]:
        """Wait until something has happened; the messages about tasks that have come.

        pause: called again and again; if it raises, the waiting ends.
        Raises ``error`` if an environment failed, or if a task was lost too often.
        """
        got: list[tuple[Member[T], Message]] = []
        happened = False
        while not happened:
            pause()
            waiting = [m for m in self.members if m.is_busy]
            left = min(m.worker.deadline for m in waiting) - time.monotonic()
            workers = [m.worker for m in waiting]
            ready = type(workers[0]).first(workers, min(max(0.0, left), PAUSE_EVERY))
            for member in waiting:
                try:
                    if member.worker in ready:
                        got += self._received(member)
                    elif member.worker.is_late():
                        raise WorkerLost(member.worker.overdue())
                    else:
                        continue
                except WorkerLost as error:
                    self._lose(member, error)
                happened = True
        return got

    def _received(self, member: Member[T]) -> list[tuple[Member[T], Message]]:
        """Its message, if it is about a task."""
        message = member.worker.receive()
        if member.built:
            return [(member, message)]
        member.built, self.spec = True, message[1]
        return []

    def _lose(self, member: Member[T], why: WorkerLost) -> None:
        """Another worker takes its place, and its task waits for one that is free."""
        self.members.remove(member)
        member.worker.kill()
        if not member.built:  # no memory, or no room in a cluster: another one would fare no better
            if not self.members:
                raise self.error(str(why)) from None
            self.say(f"note: {why}; {len(self.members)} go on without it")
            return
        if member.task is not None:
            losses = member.losses + 1
            if losses == TRIES:
                raise self.error(f"lost {TRIES} times: {why}") from None
            self._again.append((member.task, losses))
        self.say(f"note: {why}; another worker takes its place")
        self._start(member.number)

    def close(self) -> None:
        """End the workers and forget their tasks; safe to call twice."""
        members, self.members = self.members, []
        self._again.clear()
        end([member.worker for member in members])
