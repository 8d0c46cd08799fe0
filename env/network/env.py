"""Suite ``remote``: an environment that a server offers, behind the environment interface.

Observation keys, success and action bounds are read as for suite gymnasium (``gym_*`` fields). If
the connection is lost, it is tried again with growing delays for ``remote_retry_for`` seconds. Then
an environment that says it is deterministic is brought back to the same step from the episode's
seed and actions. Of any other the episode is over (EpisodeLost): a robot may be anywhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from common_utils.specs import EnvSpec
from env.config import EnvConfig
from env.core import EnvError, EnvGone, EpisodeLost, ObsDict
from env.gymnasium_adapter import RENDER, GymnasiumEnv
from env.network.proxy import VERDICT, Lost, Proxy, Taken

T = TypeVar("T")
FIRST_DELAY, LONGEST_DELAY = 1.0, 30.0  # seconds between two tries
SLICE = 0.2  # seconds between two looks at whether to go on waiting


class RemoteEnv(GymnasiumEnv):
    """The environment at ``cfg.remote_url``, whose name must be ``cfg.task``.

    Connects at once. Raises EnvGone if nobody answers for ``remote_retry_for`` seconds, or if what
    answers is something else.
    """

    only_one = True
    plays_vectors = False
    _draws_here = False

    def __init__(self, cfg: EnvConfig) -> None:
        if not cfg.remote_url:
            raise EnvError(
                "remote.url (of a BC run env.remote_url): empty, expected the address of a server "
                "of an environment, ws://HOST:PORT (python -m tools.serve_env starts one)"
            )
        self.cfg, self._proxy = cfg, Proxy(cfg)
        self._proxy.link.idle = lambda: self.on_wait()
        self._until_it_works(self._proxy.connect)
        offer = self._proxy.offer
        self.replayable, self.control_hz = offer.deterministic, offer.control_hz
        self._open(cfg, lambda _: self._proxy)

    def _make_spec(self, spaces: dict[str, Any]) -> EnvSpec:
        spec, limit = super()._make_spec(spaces), self._proxy.offer.episode_length
        return spec if limit is None else replace(spec, horizon=min(spec.horizon, limit))

    @property
    def network_seconds(self) -> float:  # type: ignore[override]
        """Seconds in which messages were on their way so far."""
        return self._proxy.network_seconds

    # -------------------------------------------------------- losing and finding

    def _until_it_works(self, call: Callable[[], T], error: Lost | None = None) -> T:
        """What ``call`` returns, in the end. ``error``: why the first try already failed.

        Waits longer and longer between tries. Raises EnvGone ``remote_retry_for`` seconds after the
        first failure.
        """
        lost, delay = math.inf, FIRST_DELAY  # since when
        while True:
            if error is not None and not isinstance(error, Taken):
                lost = min(lost, time.monotonic())
                left = lost + self.cfg.remote_retry_for - time.monotonic()
                if left <= 0:
                    tried = f"tried for {self.cfg.remote_retry_for:g} s (remote.retry_for)"
                    raise EnvGone(f"{error}; {tried}")
                self.say(f"{error}; next try in {min(delay, left):.0f} s, for {left:.0f} s more")
                self._sleep(min(delay, left))
                delay = min(2 * delay, LONGEST_DELAY)
            try:
                result = call()
            except Lost as again:
                error = again
                continue
            if lost < math.inf:
                self.say(f"{self._proxy.who}: answers, {time.monotonic() - lost:.0f} s later")
            return result

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.on_wait()
            time.sleep(min(left, SLICE))

    def _go_on(self, error: Lost, steps: int, call: Callable[[], T]) -> T:
        """``call`` again, ``steps`` steps after the reset; EpisodeLost if nothing leads there."""
        seed, actions = self._seed, self._actions[:steps]
        if not self.replayable:
            self._until_it_works(self._proxy.connect, error)
            self._running = False
            raise EpisodeLost(f"{error}; the episode ended after {steps} steps")

        def again() -> T:
            self._proxy.connect()
            assert seed is not None  # an episode is running
            GymnasiumEnv.reset(self, seed=seed)
            for action in actions:
                GymnasiumEnv.step(self, np.array(action, np.float64))
            return call()

        return self._until_it_works(again, error)

    # ------------------------------------------------------------------ episode

    def reset(self, *, seed: int) -> tuple[ObsDict, dict[str, Any]]:
        """Start the episode that belongs to ``seed``; waits if the connection is lost."""
        begin = super().reset

        def connected() -> tuple[ObsDict, dict[str, Any]]:
            self._proxy.connect()
            return begin(seed=seed)

        return self._until_it_works(connected)

    def step(self, action: np.ndarray) -> tuple[ObsDict, float, bool, bool, dict[str, Any]]:
        """One control step; waits if the connection is lost."""
        steps, play = len(getattr(self, "_actions", ())), super().step
        try:
            return play(action)
        except Lost as error:
            return self._go_on(error, steps, lambda: play(action))

    def _succeeded(self, reward: float, terminated: bool, info: Mapping[str, Any]) -> bool:
        """What a person pressed counts more than anything else."""
        if VERDICT not in info:
            return super()._succeeded(reward, terminated, info)
        self._success_seen = True
        return info[VERDICT] == "success"

    # ------------------------------------------------------------------- images

    def render(self, camera: str | None = None) -> np.ndarray:
        """Image uint8 [image_size, image_size, 3]: of a camera, or drawn by the server."""
        draw = super().render
        try:
            return draw(camera)
        except Lost as error:
            return self._go_on(error, len(self._actions), lambda: draw(camera))

    def _first_picture(self) -> None:
        """Nothing is drawn before the first episode: the robot would have to move for that."""
        if not self.cfg.cameras:
            self._check_render()

    def _start_rendering(self) -> None:
        self._check_render()

    def _check_render(self) -> None:
        if not self._proxy.offer.renders:
            raise EnvError(
                f"{self._proxy.who}: no pictures: the environment there has no render_mode "
                f"rgb_array, and {RENDER} needs it; expected one of its cameras"
            )
