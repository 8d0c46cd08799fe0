"""The environment that is served, and the episode that is being played in it."""

from __future__ import annotations

import math
import queue
import statistics
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from .messages import PROTOCOL, VERSION, Refused, ServeError, plain, say

REQUESTS = ("reset", "step", "render")


def observation_spaces(env: Any) -> dict[str, Any]:
    """Observation spaces by key; a single Box is the "image" if it is one, else the "state"."""
    space = env.observation_space
    if isinstance(getattr(space, "spaces", None), dict):
        spaces = dict(space.spaces)
    else:
        shape: tuple[int, ...] = getattr(space, "shape", None) or ()
        picture = len(shape) == 3 and shape[2] == 3 and space.dtype == np.uint8
        spaces = {"image" if picture else "state": space}
    for key, box in spaces.items():
        if not hasattr(box, "low") or getattr(box.dtype, "kind", "") not in "iuf":
            raise ServeError(f"observation '{key}': found {box}, expected a Box of numbers")
    return spaces


def describe(
    env: Any, name: str, episode_length: float, control_hz: float, deterministic: bool
) -> dict[str, Any]:
    """The greeting: what a trainer must know of the environment ("" and 0: what it says itself)."""
    space = env.action_space
    low, high = getattr(space, "low", None), getattr(space, "high", None)
    if low is None or space.dtype.kind != "f" or not np.isfinite([low, high]).all():
        raise ServeError(f"actions: found {space}, expected a float Box with finite bounds")
    registered = getattr(env, "spec", None)
    limit = episode_length or getattr(registered, "max_episode_steps", None)
    spaces = observation_spaces(env)
    return {
        "protocol": PROTOCOL,
        "version": VERSION,
        "name": name or getattr(registered, "id", "") or type(env).__name__,
        "observations": {
            k: {"shape": list(s.shape), "dtype": s.dtype.str} for k, s in spaces.items()
        },
        "action": {"low": np.asarray(low), "high": np.asarray(high)},
        "control_hz": float(control_hz or env.metadata.get("render_fps") or 20),
        "episode_length": int(limit) if limit else None,
        "deterministic": deterministic,
        "renders": getattr(env, "render_mode", None) == "rgb_array",
    }


class Player:
    """Answers requests with the environment, in one thread.

    An episode belongs to the connection that reset it, until it ends. ``press`` and ``status`` may
    be called from any thread.
    """

    def __init__(self, env: Any, greeting: dict[str, Any]) -> None:
        self.env, self.greeting = env, greeting
        self.spaces = observation_spaces(env)
        self.owner: Any = None  # connection that plays the episode
        self.shown: Any = None  # connection that saw its last observation
        self.episode, self.steps, self.last = 0, 0, ""
        self.limit = math.inf  # steps that the trainer will take at most
        self.verdict = ""
        self.took: list[float] = []  # seconds of each step
        self._lock = threading.Lock()

    def play(self, jobs: queue.Queue[Any]) -> None:
        """Answer requests until the program is ended; a job without one: a connection is gone."""
        while True:
            request, connection, reply = jobs.get()
            if request is None:
                if self.owner is connection:
                    self._end("the connection was lost")
                continue
            try:
                reply(self.answer(request, connection))
            except Refused as error:
                reply(error.answer())

    def answer(self, request: dict[Any, Any], connection: Any) -> dict[str, Any]:
        """The answer to a request; raises Refused."""
        kind = request.get("type")
        if kind not in REQUESTS:
            raise Refused("request", f"type: found {kind!r}, expected one of {', '.join(REQUESTS)}")
        started = time.perf_counter()
        answer: dict[str, Any] = getattr(self, f"_{kind}")(request, connection)
        return {**answer, "type": kind, "seconds": time.perf_counter() - started}

    def _reset(self, request: dict[Any, Any], connection: Any) -> dict[str, Any]:
        seed = request.get("seed")
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise Refused("request", f"seed: found {seed!r}, expected an integer of at least 0")
        limit = request.get("steps")
        if limit is not None and (type(limit) is not int or limit < 1):
            raise Refused("request", f"steps: found {limit!r}, expected an integer of at least 1")
        self._end("replaced by another")
        observation, info = self._call(self.env.reset, seed=seed)
        answer = {"observation": self._observation(observation), "info": plain(info)}
        with self._lock:
            self.owner = self.shown = connection
            self.limit = limit or math.inf
            self.episode, self.steps, self.verdict, self.took = self.episode + 1, 0, "", []
        return answer

    def _step(self, request: dict[Any, Any], connection: Any) -> dict[str, Any]:
        if self.owner is not connection:
            self._not_theirs()
        action = self._action(request.get("action"))
        started = time.perf_counter()
        observation, reward, terminated, truncated, info = self._call(self.env.step, action)
        self.took.append(time.perf_counter() - started)
        answer: dict[str, Any] = {
            "observation": self._observation(observation),
            "reward": float(reward),
            "terminated": bool(terminated),
            "truncated": bool(truncated),
            "info": plain(info),
        }
        with self._lock:
            self.steps, verdict = self.steps + 1, self.verdict
            if verdict:  # a person decides, whatever the environment says
                answer["info"]["verdict"] = verdict
                answer["reward"] = float(verdict == "success")
                answer["terminated"], answer["truncated"] = True, False
        if answer["terminated"] or answer["truncated"]:
            self._end(f"{verdict} by hand" if verdict else f"ended with reward {reward:g}")
        elif self.steps >= self.limit:
            self._end("the trainer's time limit")
        return answer

    def _render(self, request: dict[Any, Any], connection: Any) -> dict[str, Any]:
        if not self.greeting["renders"]:
            raise Refused("request", "render: the environment has no render_mode rgb_array")
        if self.shown is not connection:  # also after the last step
            self._not_theirs()
        return {"picture": np.asarray(self._call(self.env.render))}

    def _not_theirs(self) -> None:
        if self.owner is not None:
            raise Refused("taken", "another environment of the same program has begun an episode")
        raise Refused("lost", "no episode of this connection is running, expected a reset first")

    def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            traceback.print_exc()
            self._end("the environment failed")
            message = f"the environment failed: {type(error).__name__}: {error}"
            raise Refused("fault", message) from error

    def _action(self, action: Any) -> np.ndarray:
        space = self.env.action_space
        if not isinstance(action, np.ndarray) or action.shape != space.shape:
            found = list(action.shape) if isinstance(action, np.ndarray) else repr(action)[:60]
            raise Refused("request", f"action: found {found}, expected shape {list(space.shape)}")
        if action.dtype != space.dtype:
            raise Refused("request", f"action: found {action.dtype}, expected {space.dtype}")
        # NaN is neither: a robot is not sent what nobody can mean
        if not ((action >= space.low) & (action <= space.high)).all():
            raise Refused("request", f"action: found {action.tolist()}, outside of its bounds")
        return action.copy()

    def _observation(self, observation: Any) -> dict[str, np.ndarray]:
        if not isinstance(observation, dict):
            observation = {next(iter(self.spaces)): observation}
        found = {}
        for key, space in self.spaces.items():
            try:
                found[key] = np.asarray(observation[key], space.dtype)
            except (KeyError, ValueError, TypeError) as error:
                raise Refused("env", f"the environment's observation '{key}': {error!r}") from None
            if found[key].shape != tuple(space.shape):
                shapes = f"found {list(found[key].shape)}, expected {list(space.shape)}"
                raise Refused("env", f"the environment's observation '{key}': {shapes}")
        return found

    def _end(self, how: str) -> None:
        """The running episode is over, if there is one."""
        with self._lock:
            if self.owner is None:
                return
            self.owner = None
            self.last = f"episode {self.episode}: {self.steps} steps, {how}"
        median = f", {1000 * statistics.median(self.took):.1f} ms per step" if self.took else ""
        say(self.last + median)

    # --------------------------------------------------------------------- a person

    def press(self, verdict: str) -> tuple[bool, str]:
        """A person says how the episode ends; returns whether one is running, and a line."""
        with self._lock:
            if self.owner is None:
                return False, "no episode is running"
            self.verdict = verdict
            return True, f"{verdict}: episode {self.episode} ends with this step"

    def status(self) -> dict[str, Any]:
        """What the page shows."""
        with self._lock:
            return {
                "name": self.greeting["name"],
                "running": self.owner is not None,
                "episode": self.episode,
                "step": self.steps,
                "verdict": self.verdict if self.owner is not None else "",
                "last": self.last,
            }
