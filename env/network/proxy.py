"""A gymnasium.Env whose reset and step are messages to a server (``tools/serve_env.py``)."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Mapping
from typing import Any, NoReturn

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from common_utils.errors import shortened
from common_utils.link import Link, LinkLost, LinkRefused
from common_utils.specs import ArraySpec
from common_utils.wire import WireError
from env.config import EnvConfig
from env.core import EnvError, EnvGone
from env.network.offer import Offer, read_offer

# all connections of a process are one client: the environment is theirs until the last one ends
CLIENT = f"{socket.gethostname()}, process {os.getpid()}, {uuid.uuid4().hex[:8]}"
VERDICT = "verdict"  # info key: "success" or "failure", pressed by a person


class Lost(EnvError):
    """The episode cannot go on; connecting and resetting may help."""


class Taken(Lost):
    """Another environment of this process has begun an episode in the meantime."""


class Proxy(gymnasium.Env):
    """The environment at ``cfg.remote_url``; not connected yet.

    Raises Lost when it is worth trying again, and EnvGone when it is not.
    """

    offer: Offer

    def __init__(self, cfg: EnvConfig) -> None:
        self.who = f"remote.url: {cfg.remote_url}"
        self.link = Link(cfg.remote_url, timeout=cfg.remote_step_timeout, field="remote.url")
        self._cfg = cfg
        self._known = False
        self.network_seconds = 0.0

    # --------------------------------------------------------------- connection

    def connect(self) -> None:
        """Connect unless there is a connection; checks that it leads to what was there before."""
        if self.link.is_open:
            return
        try:
            self.link.timeout = self._cfg.remote_step_timeout
            offer = read_offer(self.link.connect(), self.who)
            self._remember(offer)
            self._ask({"type": "hello", "client": CLIENT}, self._cfg.remote_step_timeout)
        except LinkLost as error:
            raise Lost(str(error)) from None
        except (LinkRefused, WireError) as error:
            self._give_up(error)
        except EnvError:
            self.link.close()
            raise

    def _remember(self, offer: Offer) -> None:
        if self._known:
            if difference := self.offer.difference(offer):
                raise EnvGone(
                    f"{self.who}: {difference}; expected the environment that was there before"
                )
            return
        task = self._cfg.task
        if task != offer.name:
            raise EnvGone(
                f"{self.who}: task: found '{offer.name}', expected '{task}' (task_name; of a BC "
                "run, that of its demonstrations)"
            )
        self.offer, self._known = offer, True
        self.action_space = Box(offer.low, offer.high, dtype=offer.low.dtype.type)
        self.observation_space = Dict({k: _box(s) for k, s in offer.observations.items()})
        self.render_mode = "rgb_array" if offer.renders else None

    def _give_up(self, error: Exception) -> NoReturn:
        said = str(error)
        raise EnvGone(said if said.startswith(self.who) else f"{self.who}: {said}") from None

    def _ask(self, message: dict[str, Any], timeout: float) -> Mapping[str, Any]:
        """The answer to a message, of the type that belongs to it."""
        if not self.link.is_open:  # it would connect, and ask a server that knows no episode
            raise Lost(f"{self.who}: the connection was lost")
        self.link.timeout, started = timeout, time.perf_counter()
        try:
            answer = self.link.ask(message)
        except LinkLost as error:
            raise Lost(str(error)) from None
        except (LinkRefused, WireError) as error:
            self._give_up(error)
        if not isinstance(answer, Mapping):
            raise self._wrong("answer", answer, "a map")
        if answer.get("type") == "error":
            self._refused(str(answer.get("code")), shortened(str(answer.get("message")), 300))
        if answer.get("type") != message["type"]:
            raise self._wrong("type", answer.get("type"), f"'{message['type']}'")
        took, there = time.perf_counter() - started, answer.get("seconds", 0.0)
        if isinstance(there, float) and 0 <= there <= took:
            self.network_seconds += took - there
        return answer

    def _refused(self, code: str, message: str) -> NoReturn:
        """An error that the server reports: ``code`` says whether trying again may help."""
        text = f"{self.who}: {message}"
        if code == "taken":
            raise Taken(text)
        if code in ("busy", "lost", "fault"):
            raise Lost(text)
        raise EnvGone(text)

    def _wrong(self, field: str, value: Any, expected: str) -> EnvGone:
        self.link.close()
        found = shortened(repr(value))
        return EnvGone(f"{self.who}: {field}: found {found}, expected {expected}")

    # ------------------------------------------------------------------ episode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start the episode that belongs to ``seed``."""
        steps = min(self._cfg.episode_length, self.offer.episode_length or self._cfg.episode_length)
        begin = {"type": "reset", "seed": seed, "steps": steps * self._cfg.action_repeat}
        answer = self._ask(begin, self._cfg.remote_reset_timeout)
        return self._observation(answer), self._info(answer)

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """One step; ``action`` in the environment's own units."""
        answer = self._ask({"type": "step", "action": action}, self._cfg.remote_step_timeout)
        reward, ends = answer.get("reward"), (answer.get("terminated"), answer.get("truncated"))
        if not isinstance(reward, (int, float)) or isinstance(reward, bool):
            raise self._wrong("reward", reward, "a number")
        if not all(isinstance(end, bool) for end in ends):
            raise self._wrong("terminated, truncated", ends, "true or false")
        observation, info = self._observation(answer), self._info(answer)
        return observation, float(reward), bool(ends[0]), bool(ends[1]), info

    def render(self) -> Any:
        """uint8 [H, W, 3]."""
        picture = self._ask({"type": "render"}, self._cfg.remote_step_timeout).get("picture")
        expected = "uint8 [H, W, 3]"
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or not picture.size:
            raise self._wrong("picture", picture, expected)
        if picture.ndim != 3 or picture.shape[2] != 3:
            raise self._wrong("picture", list(picture.shape), expected)
        return picture

    def _observation(self, answer: Mapping[str, Any]) -> dict[str, np.ndarray]:
        found, expected = answer.get("observation"), self.offer.observations
        if not isinstance(found, Mapping) or found.keys() != expected.keys():
            names = sorted(map(str, found)) if isinstance(found, Mapping) else found
            raise self._wrong("observation", names, f"{', '.join(sorted(expected))}")
        for key, spec in expected.items():
            array = found[key]
            what = f"{np.dtype(spec.dtype).name}{list(spec.shape)}, as in the greeting"
            if not isinstance(array, np.ndarray):
                raise self._wrong(f"observation.{key}", array, what)
            if array.shape != spec.shape or array.dtype != spec.dtype:
                is_ = f"{array.dtype.name}{list(array.shape)}"
                raise self._wrong(f"observation.{key}", is_, what)
        return dict(found)

    def _info(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        info = answer.get("info", {})
        if not isinstance(info, Mapping):
            raise self._wrong("info", info, "a map")
        return dict(info)

    def close(self) -> None:
        """End the connection; the server's environment stays."""
        self.link.close()


def _box(spec: ArraySpec) -> Box:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return Box(-np.inf, np.inf, spec.shape, dtype.type)
    limits = np.iinfo(dtype)
    return Box(limits.min, limits.max, spec.shape, dtype.type)
