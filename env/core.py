"""The environment interface. Every suite implements it, and trainers use nothing else.

    obs, info = env.reset(seed=k)                       # the same k always gives the same episode
    obs, reward, terminated, truncated, info = env.step(action)

``obs``   dict of numpy arrays exactly as ``env.spec.observations`` says (see common_utils.specs)
``action`` float32 [A] in [-1, 1]
``reward`` float (scaled by the configured reward scale)
``info``  {"success": bool, "images": {camera: uint8 [H, W, 3]}} ("images" only with
          record_images); at an episode's last step a task may add "metrics": {name: float}, which
          evaluations average. "recorded" (with record_sim_state): what demonstration files hold
          besides the observation: arrays for this step, strings for the episode

An environment has no generator of its own. All randomness of an episode follows from the seed
given to ``reset``, so an episode is (seed, actions). This is also how it is resumed. A robot cannot
promise this: it has ``replayable`` False, and a resumed run begins a new episode.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Protocol

import numpy as np

from common_utils.env_args import plain_task
from common_utils.errors import UserError
from common_utils.specs import EnvSpec
from common_utils.success_rule import AsRecorded, SuccessRule
from env.config import EnvConfig

ObsDict = dict[str, np.ndarray]


class EnvError(UserError):
    """An environment was misused, or cannot be built here. The message says what to do."""


class EpisodeLost(EnvError):
    """The running episode cannot go on, but the environment is there: reset it and play another."""


class EnvGone(EnvError):
    """The environment is somewhere else and does not answer any more; nobody waits any longer."""


def _print(line: str) -> None:
    from common_utils.progress import console  # workers need none

    console().print(line, markup=False, highlight=False)


def _do_nothing() -> None:
    """Nothing."""


class Env(ABC):
    """Base class: stacking, validation and replayable episodes live in subclasses' helpers."""

    spec: EnvSpec
    # control steps per second, for videos
    control_hz: float = 20.0
    # size of proprioception, if it is the same for all tasks of the suite
    prop_dim: int = 0
    # recorded episodes with a reward count as achieved, like those with success
    achieved_by_reward: ClassVar[bool] = False
    # seconds spent drawing images so far (if the suite draws them in this process)
    render_seconds: float = 0.0
    # seconds in which messages to another process were on their way so far (suite remote)
    network_seconds: float = 0.0
    # whether the same seed and actions give the same episode. If not, the episode that was running
    # when a state was saved is dropped when that state is loaded
    replayable: bool = True
    # there is one of it: a second one of the same process ends the episode of the first, and
    # evaluations have no workers
    only_one: ClassVar[bool] = False
    # its tasks may be played by a gymnasium.vector.VectorEnv (``gym_vector``)
    plays_vectors: ClassVar[bool] = False
    # prints a line about something outside that was lost, or is back
    say: Callable[[str], None] = staticmethod(_print)
    # called again and again while it waits for something outside; may raise to end that
    on_wait: Callable[[], None] = staticmethod(_do_nothing)

    @abstractmethod
    def reset(self, *, seed: int) -> tuple[ObsDict, dict[str, Any]]:
        """Start the episode that belongs to ``seed`` (a non-negative int)."""

    @abstractmethod
    def step(self, action: np.ndarray) -> tuple[ObsDict, float, bool, bool, dict[str, Any]]:
        """One control step: (obs, reward, terminated, truncated, info).

        Environments that are not ``replayable`` may raise EpisodeLost; any that are somewhere else
        may raise EnvGone, here and in ``reset``.
        """

    @abstractmethod
    def render(self, camera: str | None = None) -> np.ndarray:
        """Upright RGB image uint8 [H, W, 3] of the current state, for videos."""

    @abstractmethod
    def close(self) -> None:
        """Free simulator and GL resources; safe to call twice."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Current episode as plain data: {"seed": int, "actions": [[float]*A]*t}."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> ObsDict | None:
        """Bring the environment to that state (replays the actions); returns its observation.

        Returns None when the state was taken before the first reset.
        """

    # ------------------------------------------- demonstration files of the suite

    @classmethod
    def env_args(cls, cfg: EnvConfig) -> dict[str, Any]:
        """The description of ``cfg``'s environment in demonstration files."""
        return {"suite": cfg.suite, "env_name": cfg.task, "env_kwargs": asdict(cfg)}

    @classmethod
    def recording(cls, cfg: EnvConfig) -> EnvConfig:
        """``cfg``, set to record everything that demonstration files hold of a step."""
        return cfg

    @classmethod
    def adopt(cls, cfg: EnvConfig, args: Mapping[str, Any], action_repeat: int) -> list[str]:
        """Copy a file's description of its environment into ``cfg``; returns contradictions.

        Args:
            args: the file's ``env_args``, {} if it has none.
            action_repeat: the reader's simulator steps per action.
        """
        # in evaluation a policy must see images that look like those of its training
        quality = (args.get("env_kwargs") or {}).get("render_quality")
        if quality in ("faithful", "fast"):
            cfg.render_quality = quality
        return []

    @classmethod
    def oracle_options(cls, task: str) -> tuple[str, ...]:
        """Options of ``tools.collect_oracle`` that are only for some suites, and fit ``task``.

        EnvError for what is no task of the suite.
        """
        return ()

    @classmethod
    def same_task(cls, a: str, b: str) -> bool:
        """Whether two spellings name the same task of the suite."""
        return plain_task(a) == plain_task(b)

    @classmethod
    def control_rate(cls, cfg: EnvConfig) -> float | None:
        """Control steps per second, against which recordings are checked; None: not known."""
        return None

    @classmethod
    def picture_note(cls, args: Mapping[str, Any]) -> str:
        """How recorded pictures differ from those that are drawn here, if they do; else ""."""
        return ""

    @classmethod
    def success_rule(cls, cfg: EnvConfig) -> SuccessRule:
        """Where recorded episodes of ``cfg`` end, and which of them are successes."""
        return AsRecorded(cfg.suite)


class Expert(Protocol):
    """A scripted expert: it reads the state of its environment, not observations.

    ``env.experts.make_expert`` makes one. The docstring of each class describes its options.
    """

    @property
    def phase(self) -> str:
        """What it is doing, for reports; "" if it has no phases."""
        return ""

    @property
    def achieved(self) -> tuple[str, ...]:
        """The finished parts of the task in this episode, in order; () if it reports none."""
        return ()

    def reset(self, rng: np.random.Generator) -> None:
        """Called before each episode, after the environment's reset; ``rng`` is for its choices."""

    def act(self) -> np.ndarray:
        """Action float32 [A] in [-1, 1] for the environment's current state."""
