"""The environment side of a worker: one environment, driven by messages, each with one answer.

A worker of this machine is started as ``python -m env.worker FD MEMORY``, not by multiprocessing,
which would import the parent's main module (and torch with it) again in every worker. FD and MEMORY
are the descriptors of an ``env.shared_arrays.SharedConnection``. The first item of a message is its
kind:

    -> ("env", maker, env_cfg)          <- ("ready", spec dict, whether it is replayable)
    -> ("call", method, args, kwargs)   <- ("result", what the environment's method returned,
                                            seconds it took, seconds of them spent drawing)
    -> ("play", seed, discount|None)    <- ("obs", obs)
    -> ("act", action)                  <- ("obs", obs) | ("done", score, success, length,
                                                   metrics; with a discount the
                                                   DISCOUNTED_RETURN is one of them)
                                        <- ("misuse", text)       an EnvError; the worker goes on
                                        <- ("refused", text)      another UserError, and
                                                                  the worker ends
                                        <- ("error", traceback)   and the worker ends

A worker ends when its connection ends, so none outlives its pool.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Generator
from typing import Any

import numpy as np

from common_utils.errors import UserError
from common_utils.finite import check_observed
from common_utils.lookup import resolve
from common_utils.specs import DISCOUNTED_RETURN
from env.shared_arrays import SharedConnection


def make_env(env_cfg: dict[str, Any]) -> Any:
    """The environment of a plain ``asdict(EnvConfig)``."""
    # imported here, so that a pool with another maker needs no suite at all
    from env import factory

    return factory.make_env(env_cfg)


Message = tuple[Any, ...]


class Answerer:
    """Holds one environment, and gives each message its answer (the module's table)."""

    def __init__(self) -> None:
        self._env: Any = None
        self._episode: Generator[Message, np.ndarray, None] | None = None
        self.failed = False  # whether it has ended

    def answer(self, message: Message) -> Message:
        """The answer to ``message``; whatever goes wrong is an answer too."""
        try:
            return self._answer(message)
        except UserError as error:  # a task that is not there, no OpenGL, a reward that is NaN
            self.failed = True
            return "refused", str(error)
        except Exception:
            self.failed = True
            return "error", traceback.format_exc()

    def _answer(self, message: Message) -> Message:
        kind, *rest = message
        if kind == "env":
            self._env = resolve(rest[0])(rest[1])
            return "ready", self._env.spec.to_dict(), getattr(self._env, "replayable", True)
        if kind == "call":
            return _call(self._env, *rest)
        if kind == "play":
            self._episode = _episode(self._env, *rest)
            return next(self._episode)
        assert self._episode is not None  # "act" comes after "play"
        return self._episode.send(rest[0])

    def close(self) -> None:
        """Free the environment; safe to call twice."""
        env, self._env = self._env, None
        if env is not None:
            env.close()


def _episode(env: Any, seed: int, discount: float | None) -> Generator[Message, np.ndarray, None]:
    """The answers of an episode, which is sent its actions."""
    task = env.spec.task
    obs, _ = env.reset(seed=seed)
    check_observed(task, seed, 0, obs)
    score, success, length, done = 0.0, False, 0, False
    discounted, factor = 0.0, 1.0
    while not done:
        action = yield "obs", obs
        obs, reward, terminated, truncated, info = env.step(action)
        length += 1
        check_observed(task, seed, length, obs, reward)
        score += float(reward)
        if discount is not None:
            discounted += factor * float(reward)
            factor *= discount
        success = success or bool(info["success"])
        done = terminated or truncated
    metrics = dict(info.get("metrics", {}))
    if discount is not None:
        metrics[DISCOUNTED_RETURN] = discounted
    yield "done", score, success, length, metrics


def _call(env: Any, method: str, args: Any, kwargs: Any) -> Message:
    from env.core import EnvError

    started, drawn = time.perf_counter(), getattr(env, "render_seconds", 0.0)
    try:
        result = getattr(env, method)(*args, **kwargs)
    except EnvError as error:  # a refused action or seed: the caller's, not ours
        return "misuse", str(error)
    took = time.perf_counter() - started
    return "result", result, took, getattr(env, "render_seconds", 0.0) - drawn


def serve(conn: SharedConnection) -> None:
    """Answer until the other side closes the connection."""
    answerer = Answerer()
    answer: Message = ()
    try:
        while not answerer.failed:
            answer = answerer.answer(conn.recv())
            conn.send(answer)
    except (EOFError, ConnectionResetError, BrokenPipeError):  # the pool was closed, or has died
        if answerer.failed:
            print(answer[1], file=sys.stderr)  # nobody is left to hear it
    finally:
        answerer.close()


if __name__ == "__main__":
    serve(SharedConnection(int(sys.argv[1]), int(sys.argv[2])))
