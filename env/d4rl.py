"""D4RL's Adroit and Franka kitchen tasks, simulated by gymnasium-robotics.

Names, observations, rewards, time limits and ends of episodes are those of D4RL's v0 tasks,
for which Implicit Behavioral Cloning reports its returns (table 2):

* Adroit (door, hammer, pen, relocate): gymnasium-robotics has the same observations. Since version
  1.2.1 it rewards the hand for being far from the object, not near it. The rewards here are D4RL's:
  replayed human demonstrations of door get the recorded rewards. pen ends when the pen is dropped,
  and after 100 steps.
* Franka kitchen: the reward is the number of subtasks completed at that step, so that the return
  is the number of completed subtasks (D4RL's recordings hold the running count instead). The
  observation is mapped by :func:`kitchen_state`.

Success in Adroit is the paper's: the goal is achieved at more than 25 steps of the episode.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np

from common_utils.extras import how_to_install
from common_utils.success_rule import AsRecorded, SuccessRule
from env.config import EnvConfig
from env.core import EnvError, ObsDict
from env.gymnasium_adapter import GymnasiumEnv

SUITE = "d4rl"
# an Adroit episode is a success with more steps at the goal than this
SUCCESS_STEPS = 25
_COMPLETE = ("microwave", "kettle", "light switch", "slide cabinet")
_MIXED = ("microwave", "kettle", "bottom burner", "light switch")


@dataclass(frozen=True)
class Task:
    """A task of D4RL: its id in gymnasium, time limit in control steps, the kitchen's subtasks."""

    env_id: str
    horizon: int
    subtasks: tuple[str, ...] = ()


TASKS = {
    "door-human-v0": Task("AdroitHandDoor-v1", 200),
    "hammer-human-v0": Task("AdroitHandHammer-v1", 200),
    "pen-human-v0": Task("AdroitHandPen-v1", 100),
    "relocate-human-v0": Task("AdroitHandRelocate-v1", 200),
    "kitchen-complete-v0": Task("FrankaKitchen-v1", 280, _COMPLETE),
    # its demonstrations also contain other subtasks; the task is the same
    "kitchen-partial-v0": Task("FrankaKitchen-v1", 280, _COMPLETE),
    "kitchen-mixed-v0": Task("FrankaKitchen-v1", 280, _MIXED),
}


# ------------------------------------------------------------------------- the kitchen

# indices of each subtask's joints in the simulation's 30 positions
KITCHEN_JOINTS = {
    "bottom burner": slice(11, 13),
    "top burner": slice(15, 17),
    "light switch": slice(17, 19),
    "slide cabinet": slice(19, 20),
    "hinge cabinet": slice(20, 22),
    "microwave": slice(22, 23),
    "kettle": slice(23, 30),
}


def kitchen_state(observation: np.ndarray, goals: Mapping[str, np.ndarray]) -> np.ndarray:
    """D4RL's observation float64 [..., 60] from FrankaKitchen-v1's [..., 59] and its goals.

    ========  ==========================================  ===========================
    D4RL      meaning                                     FrankaKitchen-v1
    ========  ==========================================  ===========================
    0 - 8     robot's joint positions, noisy              0 - 8
    9 - 29    positions of the kitchen's joints           18 - 38
    30 - 59   goal for all 30 positions: the subtasks'    ``desired_goal``, by
              goals, 0 for the others                     KITCHEN_JOINTS
    -         velocities (9 robot, 20 kitchen)            9 - 17 and 39 - 58, left out
    ========  ==========================================  ===========================

    Args:
        goals: goal [..., k] of each subtask, by name. Raises EnvError for an unknown name.
    """
    if observation.shape[-1] != 59:
        raise EnvError(
            f"kitchen: observation has shape {list(observation.shape)}, expected [..., 59]"
        )
    goal = np.zeros((*observation.shape[:-1], 30))
    for name, value in goals.items():
        if name not in KITCHEN_JOINTS:
            raise EnvError(f"kitchen: goal '{name}', expected one of {', '.join(KITCHEN_JOINTS)}")
        goal[..., KITCHEN_JOINTS[name]] = value
    return np.concatenate([observation[..., :9], observation[..., 18:39], goal], axis=-1)


class KitchenTask(gymnasium.Wrapper):
    """FrankaKitchen-v1 with D4RL's observation; it ends when all subtasks are completed."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (60,), np.float64)

    def _state(self, raw: Mapping[str, Any]) -> np.ndarray:
        return kitchen_state(raw["observation"], raw["desired_goal"])

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        raw, info = self.env.reset(**kwargs)
        return self._state(raw), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        raw, reward, terminated, truncated, info = self.env.step(action)
        return self._state(raw), float(reward), terminated, truncated, info


# ------------------------------------------------------------------------- Adroit


def door_reward(obs: np.ndarray, sim: Any) -> float:
    """Reward for an open door; ``obs`` [39]: hinge 28, palm - handle 35:38."""
    angle = obs[28]
    reward = -0.1 * np.linalg.norm(obs[35:38]) - 0.1 * (angle - 1.57) ** 2
    reward -= 1e-5 * np.square(sim.data.qvel).sum()
    return float(reward + 2 * (angle > 0.2) + 8 * (angle > 1.0) + 10 * (angle > 1.35))


def hammer_reward(obs: np.ndarray, sim: Any) -> float:
    """Reward for a driven nail; ``obs`` [46]: palm 33:36, hammer 36:39, nail 42:45."""
    palm, hammer, nail = obs[33:36], obs[36:39], obs[42:45]
    head = sim.data.site_xpos[sim.tool_site_id]
    left = np.linalg.norm(nail - sim.data.site_xpos[sim.goal_site_id])
    reward = -0.1 * np.linalg.norm(palm - hammer) - np.linalg.norm(head - nail) - 10 * left
    reward -= 1e-2 * np.linalg.norm(sim.data.qvel)
    lifted = hammer[2] > 0.04 and head[2] > 0.04
    return float(reward + 2 * lifted + 25 * (left < 0.02) + 75 * (left < 0.01))


def pen_reward(obs: np.ndarray, sim: Any) -> float:
    """Reward for a pen in its goal pose; ``obs`` [45]: height 26, direction 33:36, goal direction
    36:39, position - goal position 39:42."""
    distance, similarity = np.linalg.norm(obs[39:42]), obs[33:36] @ obs[36:39]
    near = distance < 0.075
    bonus = 10 * (near and similarity > 0.9) + 50 * (near and similarity > 0.95)
    return float(similarity - distance + bonus - 5 * _dropped(obs))


def relocate_reward(obs: np.ndarray, sim: Any) -> float:
    """Reward for a ball at the target; ``obs`` [39]: palm - ball 30:33, palm - target 33:36, ball -
    target 36:39."""
    palm, left = np.linalg.norm(obs[33:36]), np.linalg.norm(obs[36:39])
    reward = -0.1 * np.linalg.norm(obs[30:33])
    if sim.data.xpos[sim.obj_body_id][2] > 0.04:
        reward += 1 - 0.5 * palm - 0.5 * left
    return float(reward + 10 * (left < 0.1) + 20 * (left < 0.05))


def _dropped(obs: np.ndarray) -> bool:
    return bool(obs[26] < 0.075)


REWARDS: dict[str, Callable[[np.ndarray, Any], float]] = {
    "door": door_reward,
    "hammer": hammer_reward,
    "pen": pen_reward,
    "relocate": relocate_reward,
}


class AdroitTask(gymnasium.Wrapper):
    """An AdroitHand environment with D4RL's reward and end."""

    def __init__(self, env: gymnasium.Env, kind: str) -> None:
        super().__init__(env)
        self.kind = kind

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, _, _, truncated, info = self.env.step(action)
        reward = REWARDS[self.kind](obs, self.env.unwrapped)
        return obs, reward, self.kind == "pen" and _dropped(obs), truncated, info


# ------------------------------------------------------------------------- behind the interface


def import_robotics() -> None:
    """Import gymnasium-robotics, which registers its environments.

    Its notice about changed Adroit rewards is hidden, because these rewards are not used. Raises
    EnvError if it is not installed.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            import gymnasium_robotics  # noqa: F401
    except ImportError as error:
        raise EnvError(
            f"suite d4rl: cannot import gymnasium_robotics ({error}); {how_to_install('sim')}"
        ) from error
    finally:
        lines = printed.getvalue().splitlines(keepends=True)
        sys.stderr.writelines(x for x in lines if "reward functions were updated" not in x)


def make_task(name: str, render_mode: str | None = None) -> gymnasium.Env:
    """D4RL's task as a gymnasium environment without time limit."""
    task = TASKS[name]
    import_robotics()
    kwargs: dict[str, Any] = {"render_mode": render_mode, "max_episode_steps": -1}
    if task.subtasks:
        kwargs["tasks_to_complete"] = list(task.subtasks)
    env = gymnasium.make(task.env_id, disable_env_checker=True, **kwargs)
    return KitchenTask(env) if task.subtasks else AdroitTask(env, name.split("-")[0])


class D4RLEnv(GymnasiumEnv):
    """A task of D4RL behind the environment interface.

    Delivers ``state`` float32 [S * state_stack] (door and relocate 39, hammer 46, pen 45,
    kitchen 60), and images of the camera "render" if requested. An episode lasts until the task's
    time limit (or ``episode_length``, if that is shorter), even after success, because the score
    is the return. pen also ends when the pen is dropped, the kitchen when everything is done.
    Metrics: ``goal_achieved_steps``, or ``completed_subtasks`` and each subtask by name.
    """

    def __init__(self, cfg: EnvConfig) -> None:
        name = cfg.task.lower()
        if name not in TASKS:
            raise EnvError(f"task '{cfg.task}' is unknown; d4rl has {', '.join(TASKS)}")
        self.task = TASKS[name]
        self._achieved, self._completed = 0, frozenset[str]()
        cfg = replace(
            cfg,
            task=name,
            use_state=int(cfg.use_state or not cfg.cameras),
            gym_state_key="",
            gym_prop_key="",
            gym_success_key="",
            end_on_success=0,
        )
        self._open(cfg, lambda mode: make_task(name, mode))
        horizon = min(self.task.horizon, cfg.episode_length)
        self.spec = replace(self.spec, suite=SUITE, horizon=horizon)

    @classmethod
    def same_task(cls, a: str, b: str) -> bool:
        """Upper and lower case are the same."""
        return a.lower() == b.lower()

    @classmethod
    def success_rule(cls, cfg: EnvConfig) -> SuccessRule:
        """Episodes last until the time limit, even after success; the score is the return."""
        return AsRecorded(cfg.suite)

    def reset(self, *, seed: int) -> tuple[ObsDict, dict[str, Any]]:
        """Start the episode that belongs to ``seed``."""
        self._achieved, self._completed = 0, frozenset()
        return super().reset(seed=seed)

    def _succeeded(self, reward: float, terminated: bool, info: Mapping[str, Any]) -> bool:
        """Count what the simulation's step achieved; returns whether this is a success."""
        if self.task.subtasks:
            self._completed |= frozenset(info["step_task_completions"])
            return len(self._completed) == len(self.task.subtasks)
        self._achieved += bool(info["success"])
        return self._achieved > SUCCESS_STEPS

    def _info(self, success: bool) -> dict[str, Any]:
        info = super()._info(success)
        if self._running:
            return info
        if self.task.subtasks:
            metrics = {name.replace(" ", "_"): float(name in self._completed)
                       for name in self.task.subtasks}  # fmt: skip
            info["metrics"] = {"completed_subtasks": float(len(self._completed)), **metrics}
        else:
            info["metrics"] = {"goal_achieved_steps": float(self._achieved)}
        return info
