"""Lanes in a ``gymnasium.vector.VectorEnv``: a simulator that steps many environments in one call.

``gym.vector`` chooses gymnasium's own (sync, async) or the one that the task registers as its
``vector_entry_point``, which may simulate on a GPU. Each lane reads its row as the suite gymnasium
reads a single environment: keys, stacks, success, time limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from common_utils.run_config import check
from env.config import EnvConfig
from env.core import EnvError
from env.gymnasium_adapter import GymnasiumEnv
from env.lanes import Lanes, Reply, Request
from env.named_modules import import_named, split_task

# of gymnasium's vector environments, which then reset the lanes that we name, with our seeds
OWN = {"autoreset_mode": AutoresetMode.DISABLED}


class _Row(gymnasium.Env):
    """One environment of a vector environment; it returns what its row last was."""

    def __init__(self, vector: VectorEnv) -> None:
        self.action_space = vector.single_action_space
        self.observation_space = vector.single_observation_space
        self.render_mode = None
        self.last: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.last

    def step(self, action: Any) -> Any:
        return self.last


class VectorLanes(Lanes):
    """See the module's docstring.

    Lanes without a request are stepped too, and reset before they begin an episode. They cannot be
    brought back to a step (``replayable``). The simulator resets the lanes of a mask: autoreset
    mode ``DISABLED``. ``env.self_resetting`` has the other modes.
    """

    modes: tuple[AutoresetMode, ...] = (AutoresetMode.DISABLED,)

    def __init__(self, vector: VectorEnv, cfg: EnvConfig) -> None:
        self.num, self._vector = vector.num_envs, vector
        if (mode := vector.metadata.get("autoreset_mode")) not in self.modes:
            expected = " or ".join(m.value for m in AutoresetMode)
            raise EnvError(
                f"gym.vector: task '{cfg.task}' has autoreset mode {getattr(mode, 'value', mode)}, "
                f"expected metadata['autoreset_mode'] to be {expected}"
            )
        if cfg.action_repeat != 1:
            raise EnvError(f"action_repeat: {cfg.action_repeat}, expected 1 with gym.vector")
        self._rows = [_Row(vector) for _ in range(self.num)]
        self._envs = [GymnasiumEnv.from_env(row, cfg) for row in self._rows]
        self.spec = self._envs[0].spec
        self._asked: list[Request | None] = [None] * self.num
        self._ready: set[int] = set()  # lanes whose row answers their request
        self._begun = False
        self._over = set(range(self.num))  # lanes without an episode
        self.notes = [f"{self.num} environments in {type(vector).__name__} of '{cfg.task}'"]

    @classmethod
    def open(cls, cfg: EnvConfig, num: int, timeout: float) -> VectorLanes:
        """See :class:`Lanes`; the simulator sets its time limits itself."""
        return cls(made(cfg, num), cfg)

    @property
    def replayable(self) -> bool:
        """See :class:`Lanes`."""
        return False

    def listen(self, say: Callable[[str], None], on_wait: Callable[[], None]) -> None:
        """See :class:`Lanes`; it says nothing."""

    # ------------------------------------------------------------------ playing

    def reset(self, lane: int, seed: int) -> None:
        """See :class:`Lanes`."""
        self._asked[lane] = Request(seed=seed)
        self._ready.discard(lane)

    def send(self, lane: int, action: np.ndarray) -> None:
        """See :class:`Lanes`."""
        self._asked[lane] = Request(action=action)
        self._ready.discard(lane)

    def receive(self, lane: int) -> Reply:
        """See :class:`Lanes`; the first one of a round steps all lanes."""
        asked = self._asked[lane]
        if asked is None:
            raise EnvError("receive: nothing was asked")
        if lane not in self._ready:
            self._begin() if asked.seed is not None else self._step()
        self._asked[lane] = None
        env = self._envs[lane]
        if asked.seed is not None:
            self._over.discard(lane)
            return Reply(env.reset(seed=asked.seed)[0], 0.0, False, False, {"success": False})
        assert asked.action is not None
        reply = Reply(*env.step(asked.action))
        if reply.terminated or reply.truncated:
            self._over.add(lane)
        return reply

    def _begin(self) -> None:
        """Start the episodes of all lanes that are asked for one."""
        seeds = {k: a.seed for k, a in enumerate(self._asked) if a and a.seed is not None}
        obs, infos = self._masked_reset(seeds)
        for lane in seeds:
            self._rows[lane].last = row_of(obs, lane), row_info(infos, lane)
            self._ready.add(lane)

    def _masked_reset(self, seeds: Mapping[int, int | None]) -> tuple[Any, dict[str, Any]]:
        mask = np.array([k in seeds for k in range(self.num)])
        every = [seeds.get(k) for k in range(self.num)]
        options = {"reset_mask": mask} if self._begun else None  # the first reset is of all
        self._begun = True
        # a list of seeds, as gymnasium documents, though its base class says int
        return self._vector.reset(seed=every, options=options)  # type: ignore[arg-type]

    def _step(self) -> None:
        """Step all lanes; those that were not asked with the middle of the action space."""
        asked = self._actions_asked()
        idle = {k: 0 for k in self._over if k not in asked}
        if idle:  # what has ended cannot be stepped
            self._masked_reset(idle)
        obs, reward, terminated, truncated, infos = self._vector.step(self._scaled(asked))
        for lane in asked:
            outcome = float(reward[lane]), bool(terminated[lane]), bool(truncated[lane])
            self._rows[lane].last = (row_of(obs, lane), *outcome, row_info(infos, lane))
            self._ready.add(lane)

    def _actions_asked(self) -> dict[int, np.ndarray]:
        return {k: a.action for k, a in enumerate(self._asked) if a and a.action is not None}

    def _scaled(self, asked: Mapping[int, np.ndarray]) -> np.ndarray:
        """The actions of all lanes, in the simulator's units."""
        middle = np.zeros(self.spec.action_dim)
        actions = (np.asarray(asked.get(k, middle), np.float64) for k in range(self.num))
        rows = [env._scaled(action) for env, action in zip(self._envs, actions, strict=True)]
        return np.stack(rows)

    # ------------------------------------------------------------------ state

    def state_dict(self) -> list[dict[str, Any]]:
        """See :class:`Lanes`; episodes are not kept."""
        return [{"seed": None, "actions": [], "asked": None}] * self.num

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """See :class:`Lanes`; nothing is brought back."""

    def close(self) -> None:
        """See :class:`Lanes`."""
        self._vector.close()


def made(cfg: EnvConfig, num: int) -> VectorEnv:
    """The vector environment that ``cfg.gym_vector`` chooses, of ``num`` lanes."""
    check(cfg)
    if cfg.cameras or cfg.record_images:
        raise EnvError(f"cameras: {cfg.cameras}, expected none with gym.vector: set use_state 1")
    prefix, task = split_task(cfg.task)
    for module, field in ((cfg.gym_module, "gym_module"), (prefix, "task")):
        if module:
            import_named(module, field)
    own = cfg.gym_vector != "vector_entry_point"
    more: dict[str, Any] = {"max_episode_steps": -1, "disable_env_checker": True} if own else {}
    try:
        vector = gymnasium.make_vec(
            task, num, cfg.gym_vector, vector_kwargs=dict(OWN) if own else {}, **more
        )
    except gymnasium.error.Error as error:
        raise EnvError(f"task: gymnasium cannot make '{cfg.task}': {error}") from error
    return vector


def row_of(batch: Any, lane: int) -> Any:
    """One lane's observation, a copy."""
    if isinstance(batch, Mapping):
        return {k: np.array(v[lane]) for k, v in batch.items()}
    return np.array(batch[lane])


def row_info(infos: Mapping[str, Any], lane: int) -> dict[str, Any]:
    """One lane's entries of a vector environment's infos."""
    names = (k for k in infos if not k.startswith("_") and not isinstance(infos[k], dict))
    return {k: infos[k][lane] for k in names if f"_{k}" not in infos or infos[f"_{k}"][lane]}
