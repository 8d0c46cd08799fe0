"""D4RL's tasks: replays of the human demonstrations, rewards, metrics, observations, resume."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from bc.dataset import DatasetConfig, RobomimicDataset
from env.config import EnvConfig
from env.core import EnvError
from env.d4rl import KITCHEN_JOINTS, REWARDS, TASKS, AdroitTask, D4RLEnv, kitchen_state
from env.factory import make_env
from evaluate.multi_process_eval import run_eval_mp
from evaluate.rollout import run_eval

SHARED = Path(os.environ.get("SHARED_DATA", "../shared/data"))
ADROIT = [name for name, task in TASKS.items() if not task.subtasks]
STATE_DIMS = {"door": 39, "hammer": 46, "pen": 45, "relocate": 39, "kitchen": 60}
ACTION_DIMS = {"door": 28, "hammer": 26, "pen": 24, "relocate": 30, "kitchen": 9}


def d4rl(task: str = "door-human-v0", **kwargs: object) -> D4RLEnv:
    return make_env({"suite": "d4rl", "task": task, "episode_length": 300, **kwargs})


def real(name: str) -> Path:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{path} absent (set SHARED_DATA to the folder of real datasets)")
    return path


class Still:
    """Zero actions, for batched and single observations."""

    stochastic_eval = False

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def act(self, obs: dict, **options: object) -> torch.Tensor:
        return torch.zeros(*obs["state"].shape[:-1], self.dim)


def put_at(sim: AdroitTask, state: np.ndarray) -> None:
    """The door where an observation [39] says, everything at rest."""
    door = sim.unwrapped
    qpos, zero = door.init_qpos.copy(), np.zeros(len(door.init_qvel))
    qpos[1:28], qpos[-1], qpos[-2] = state[:27], state[27], state[28]
    # the frame's position moves the handle by as much
    door.set_env_state({"qpos": qpos, "qvel": zero, "door_body_pos": np.zeros(3)})
    frame = state[32:35].astype(np.float64) - door._get_obs()[32:35]
    door.set_env_state({"qpos": qpos, "qvel": zero, "door_body_pos": frame})


def test_replayed_door_demonstrations_earn_what_was_recorded() -> None:
    sim = d4rl()._sim
    sim.reset(seed=0)
    worst = []
    with h5py.File(real("door-human-v0_merged.hdf5")) as file:
        for demo in file["data"].values():
            states, rewards = demo["obs/state"][:], demo["rewards"][:]
            put_at(sim, states[0])
            drift, earned = [], []
            for action in demo["actions"][:].astype(np.float64):
                obs, reward, terminated, _, _ = sim.step(action)
                drift.append(np.abs(obs - states[min(len(drift) + 1, len(states) - 1)]).max())
                earned.append(reward)
                assert not terminated
            worst.append(max(drift[:-1]))
            np.testing.assert_allclose(earned, rewards, atol=1e-4)
            assert sum(earned) == pytest.approx(rewards.sum(), abs=2e-3)
    assert len(worst) == 6
    # one demonstration amplifies rounding at a contact, for a few steps
    assert sorted(worst)[4] < 1e-6 and max(worst) < 3e-3


@pytest.mark.parametrize("task", ADROIT)
def test_rewards_differ_from_the_simulators_by_the_sign_of_one_term(task: str) -> None:
    """gymnasium-robotics 1.2.1 and later reward the distance of hand and object."""
    env = d4rl(task)
    env.reset(seed=1)
    sim, rng, kind = env._sim, np.random.default_rng(0), task.split("-")[0]
    hand_to_object = {
        "door": lambda o: o[35:38],
        "hammer": lambda o: o[33:36] - o[36:39],
        "pen": lambda o: np.zeros(3),
        "relocate": lambda o: o[30:33],
    }[kind]
    rewards = []
    for _ in range(60):
        obs, theirs, _, _, _ = sim.env.step(rng.uniform(-1, 1, env.spec.action_dim))
        rewards.append(REWARDS[kind](obs, sim.unwrapped))
        expected = theirs - 0.2 * np.linalg.norm(hand_to_object(obs))
        assert rewards[-1] == pytest.approx(float(np.squeeze(expected)), abs=1e-9)
    assert np.ptp(rewards) > 1e-3


@pytest.mark.parametrize("task", TASKS)
def test_spec_and_episode(task: str) -> None:
    env, kind = d4rl(task), task.split("-")[0]
    assert env.spec.suite == "d4rl" and env.spec.task == task
    assert env.spec.observations["state"].shape == (STATE_DIMS[kind],)
    assert env.spec.action_dim == ACTION_DIMS[kind]
    assert env.spec.horizon == {"pen": 100, "kitchen": 280}.get(kind, 200)
    first, info = env.reset(seed=4)
    assert first["state"].dtype == np.float32 and not info["success"] and "metrics" not in info
    again = env.reset(seed=4)[0]["state"]
    np.testing.assert_array_equal(first["state"], again)
    assert (env.reset(seed=5)[0]["state"] != again).any()


@pytest.mark.parametrize("task", ["pen-human-v0", "kitchen-mixed-v0"])
def test_episode_resumes_by_replay(task: str) -> None:
    env, again = d4rl(task, state_stack=2), d4rl(task, state_stack=2)
    env.reset(seed=3)
    rng = np.random.default_rng(0)
    for _ in range(12):
        obs = env.step(rng.uniform(-1, 1, env.spec.action_dim))[0]
    np.testing.assert_array_equal(again.load_state_dict(env.state_dict())["state"], obs["state"])
    action = np.full(env.spec.action_dim, 0.3)
    for mine, other in zip(env.step(action)[:2], again.step(action)[:2], strict=True):
        np.testing.assert_equal(mine, other)


def test_success_needs_more_than_25_steps_and_the_episode_goes_on() -> None:
    env = d4rl("door-human-v0", episode_length=60)
    env.reset(seed=0)
    successes = []
    for step in range(60):
        sim = env._sim.unwrapped
        state = sim.get_env_state()
        state["qvel"][:] = 0
        # the door is put open at 26 steps in a row, and once more
        state["qpos"][-2] = 1.45 if 10 <= step < 36 or step == 50 else 0
        sim.set_env_state(state)
        _, _, terminated, truncated, info = env.step(np.zeros(28))
        successes.append(info["success"])
    assert successes == [step >= 35 for step in range(60)]
    assert truncated and not terminated and info["metrics"] == {"goal_achieved_steps": 27.0}
    env.reset(seed=0)  # the count belongs to one episode
    for _ in range(60):
        _, _, _, _, info = env.step(np.zeros(28))
    assert not info["success"] and info["metrics"] == {"goal_achieved_steps": 0.0}


def test_pen_ends_when_it_is_dropped() -> None:
    env = d4rl("pen-human-v0")
    env.reset(seed=0)
    rewards, done = [], False
    while not done:  # the wrist turns, the fingers open
        action = np.concatenate([[-1, 1], np.full(22, -1)])
        obs, reward, terminated, truncated, _ = env.step(action)
        rewards.append(reward)
        assert terminated == bool(obs["state"][26] < 0.075)
        done = terminated or truncated
    assert terminated and len(rewards) < 100
    assert rewards[-1] < rewards[-2] - 4  # and 5 are taken away


def test_kitchen_observation_is_mapped() -> None:
    raw = np.arange(59.0)
    goals = {"microwave": np.array([-0.75]), "kettle": np.arange(7.0)}
    state = kitchen_state(raw, goals)
    np.testing.assert_array_equal(state[:9], raw[:9])
    np.testing.assert_array_equal(state[9:30], raw[18:39])
    assert state[30 + 22] == -0.75 and list(state[53:60]) == [0, 1, 2, 3, 4, 5, 6]
    assert (state[30:52] == 0).all()
    rows = kitchen_state(np.stack([raw, raw]), {k: np.stack([v, v]) for k, v in goals.items()})
    np.testing.assert_array_equal(rows, [state, state])
    with pytest.raises(EnvError, match="oven"):
        kitchen_state(raw, {"oven": np.zeros(1)})
    with pytest.raises(EnvError, match="60"):
        kitchen_state(np.zeros(60), goals)


def test_kitchen_joints_are_the_simulators() -> None:
    from gymnasium_robotics.envs.franka_kitchen.kitchen_env import OBS_ELEMENT_INDICES

    for name, where in KITCHEN_JOINTS.items():
        assert list(range(30))[where] == list(OBS_ELEMENT_INDICES[name])


def test_kitchen_starts_as_recorded_and_replays_as_far_as_its_physics_allow() -> None:
    env = d4rl("kitchen-complete-v0")
    with h5py.File(real("kitchen-complete-v0.hdf5")) as file:
        demos = [
            (d["obs/state"][:], d["actions"][:], d["rewards"][:]) for d in file["data"].values()
        ]
    for states, actions, counts in demos:
        start = env.reset(seed=0)[0]["state"]
        np.testing.assert_allclose(start[30:], states[0, 30:], atol=1e-6)  # the goal
        np.testing.assert_allclose(start[9:30], states[0, 9:30], atol=0.02)  # at rest
        np.testing.assert_allclose(start[:9], states[0, :9], atol=0.25)  # noisy
        done_at: list[int] = []
        for step, action in enumerate(actions):
            _, reward, terminated, _, info = env.step(action)
            done_at += [step] * int(reward)
            if terminated:
                assert info["success"] and info["metrics"]["completed_subtasks"] == 4
                break
        # the recordings hold the running count; microwave and kettle come first
        recorded = np.flatnonzero(np.diff(counts) > 0)
        assert terminated == (len(done_at) == 4) and len(done_at) >= 2
        np.testing.assert_allclose(done_at[:2], recorded[:2], atol=10)


def test_kitchen_ends_when_everything_is_done_and_reports_the_subtasks() -> None:
    from gymnasium_robotics.envs.franka_kitchen.kitchen_env import OBS_ELEMENT_GOALS

    env = d4rl("kitchen-mixed-v0", episode_length=40)
    env.reset(seed=0)
    data, score = env._sim.unwrapped.data, 0.0
    for number, name in enumerate(TASKS["kitchen-mixed-v0"].subtasks, start=1):
        data.qpos[KITCHEN_JOINTS[name]] = OBS_ELEMENT_GOALS[name]
        data.qvel[:] = 0
        _, reward, terminated, truncated, info = env.step(np.zeros(9))
        score += reward
        assert terminated == (number == 4) and not truncated
        assert info["success"] == terminated and ("metrics" in info) == terminated
    assert score == 4
    assert info["metrics"] == {
        "completed_subtasks": 4, "microwave": 1, "kettle": 1, "bottom_burner": 1, "light_switch": 1
    }  # fmt: skip


def test_pool_and_process_agree() -> None:
    cfg = EnvConfig(suite="d4rl", task="relocate-human-v0", episode_length=30)
    agent = Still(30)
    alone = run_eval(make_env(cfg), agent, 3, 0)
    pooled = run_eval_mp(asdict(cfg), agent, 2, 3, 0, one_by_one=True)
    np.testing.assert_array_equal(alone.scores, pooled.scores)
    np.testing.assert_array_equal(
        alone.metrics["goal_achieved_steps"], pooled.metrics["goal_achieved_steps"]
    )
    assert (alone.lengths == 30).all()


@pytest.mark.parametrize(
    ("name", "task", "rows"),
    [
        ("door-human-v0_merged.hdf5", "door-human-v0", [300] * 5 + [200]),
        ("door-human-v0.hdf5", "door-human-v0", [200, 100] * 5 + [200]),
        ("kitchen-complete-v0.hdf5", "kitchen-complete-v0", [184, 185, 191, 195]),
    ],
)
def test_real_files_are_read_and_fit_the_task(name: str, task: str, rows: list[int]) -> None:
    cfg = DatasetConfig(path=str(real(name)), use_state=1, eval_episode_len=-1)
    data = RobomimicDataset(cfg)
    assert (data.suite, data.task_name) == ("d4rl", task)
    assert [len(d) for d in data.episodes()] == rows
    data.check_frames(d4rl(task).spec, list(data.observation_specs))
    cfg.boundary_rows = 0
    assert RobomimicDataset(cfg).num_steps == sum(rows) - len(rows)


@pytest.mark.parametrize(
    ("kwargs", "names"),
    [
        ({"task": "door-expert-v0"}, ["door-expert-v0", "door-human-v0", "kitchen-mixed-v0"]),
        ({"cameras": ["front"]}, ["front", "render"]),
    ],
)
def test_bad_configurations_are_reported(kwargs: dict, names: list[str]) -> None:
    with pytest.raises(EnvError) as error:
        d4rl(**kwargs)
    assert all(name in str(error.value) for name in names)


def test_states_need_no_gl_and_the_notice_is_not_shown(python: Callable) -> None:
    script = (
        "from env.factory import make_env\n"
        "env = make_env({'suite': 'd4rl', 'task': 'hammer-human-v0'})\n"
        "env.reset(seed=0); print(env.step([0.0] * 26)[1])\n"
    )
    done = python("-c", script, gl="disabled")
    assert done.returncode == 0, done.stderr
    assert "reward functions" not in done.stderr + done.stdout
    assert float(done.stdout) < 0
