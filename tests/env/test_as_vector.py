"""Environments of the suites as a ``gymnasium.vector.VectorEnv``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.performance import benchmark_vector_step
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import RescaleAction, TimeLimit
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

from env.as_vector import SuiteVectorEnv
from env.config import EnvConfig
from env.core import EnvError
from env.lanes import open_lanes
from env.worker_lanes import WorkerLanes

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
HORIZON, NUM = 5, 3


def pendulum() -> EnvConfig:
    return EnvConfig(
        suite="gymnasium", task="Pendulum-v1", use_state=1, episode_length=HORIZON,
        gym_success_key="truncated",
    )  # fmt: skip


@pytest.fixture(scope="module")
def shared() -> Iterator[SuiteVectorEnv]:
    envs = SuiteVectorEnv.open(pendulum(), NUM)
    yield envs
    envs.close()


def test_it_plays_as_gymnasiums_own(shared: SuiteVectorEnv) -> None:
    """Seeds, masks, rewards and ends are those of SyncVectorEnv around the same environments."""
    assert isinstance(shared.lanes, WorkerLanes)

    def one() -> gymnasium.Env:
        base = gymnasium.make("Pendulum-v1", max_episode_steps=-1, disable_env_checker=True)
        low, high = np.float32([-1]), np.float32([1])
        return TimeLimit(RescaleAction(base, low, high), HORIZON)

    own = SyncVectorEnv([one] * NUM, autoreset_mode=AutoresetMode.DISABLED)
    assert shared.metadata["autoreset_mode"] == own.metadata["autoreset_mode"]
    rng = np.random.default_rng(0)
    obs, infos = shared.reset(seed=7)
    expected, _ = own.reset(seed=7)
    np.testing.assert_array_equal(obs["state"], expected)
    assert infos["success"].tolist() == [False] * NUM and infos["_success"].all()
    mask = np.array([True, False, True])
    for step in range(3 * HORIZON):
        actions = rng.uniform(-1, 1, (NUM, 1)).astype(np.float32)
        obs, *outcome, infos = shared.step(actions)
        expected, *want, _ = own.step(actions)
        np.testing.assert_allclose(obs["state"], expected, rtol=1e-6)
        for found, wanted in zip(outcome, want, strict=True):
            assert found.dtype == wanted.dtype
            np.testing.assert_allclose(found, wanted, rtol=1e-6)
        over = outcome[2]
        assert (infos["success"] == over).all()
        chosen = mask if step == 1 else over  # once in the middle of episodes
        if chosen.any():
            seeds = [100 * step + lane for lane in range(NUM)]
            obs, infos = shared.reset(seed=seeds, options={"reset_mask": chosen})
            expected, _ = own.reset(seed=seeds, options={"reset_mask": chosen.copy()})
            np.testing.assert_allclose(obs["state"], expected, rtol=1e-6)
            assert (infos["_success"] == chosen).all()
    own.close()


def test_observations_are_those_of_the_lanes(shared: SuiteVectorEnv) -> None:
    obs, _ = shared.reset(seed=[3, None, 5])
    lane = open_lanes(pendulum())
    for number, seed in ((0, 3), (2, 5)):
        lane.reset(0, seed)
        np.testing.assert_array_equal(obs["state"][number], lane.receive(0).obs["state"])
    lane.close()


def test_it_is_a_vector_environment(shared: SuiteVectorEnv) -> None:
    """Spaces, and gymnasium's own tools for vector environments."""
    assert shared.observation_space == batch_space(shared.single_observation_space, NUM)
    assert shared.action_space == batch_space(shared.single_action_space, NUM)
    obs, _ = shared.reset(seed=1)
    assert obs in shared.observation_space
    obs, rewards, *_ = shared.step(shared.action_space.sample())
    assert obs in shared.observation_space and rewards.shape == (NUM,)
    first, second = (shared.reset(seed=1)[0], shared.reset()[0])
    again, third = (shared.reset(seed=1)[0], shared.reset()[0])
    np.testing.assert_array_equal(first["state"], again["state"])
    np.testing.assert_array_equal(second["state"], third["state"])  # drawn from the first seed
    assert not np.array_equal(first["state"], second["state"])

    wrapped: Any = DictInfoToList(RecordEpisodeStatistics(shared))
    wrapped.reset(seed=1)
    for _ in range(HORIZON):
        *_, infos = wrapped.step(np.zeros((NUM, 1), np.float32))
    assert [i["episode"]["l"] for i in infos] == [HORIZON] * NUM


def test_gymnasiums_benchmark_of_vector_environments_runs() -> None:
    class Resets(gymnasium.vector.VectorWrapper):
        """The benchmark expects environments that reset by themselves, or never end."""

        def step(self, actions: Any) -> Any:
            obs, rewards, terminated, truncated, infos = self.env.step(actions)
            if (over := terminated | truncated).any():
                obs, _ = self.env.reset(options={"reset_mask": over})
            return obs, rewards, terminated, truncated, infos

    envs = SuiteVectorEnv.open(EnvConfig(suite="particle", task="PARTICLE_2d", use_state=1), 1)
    assert benchmark_vector_step(Resets(envs), target_duration=1, seed=0) > 0
    envs.close()


def test_mistakes_are_said(shared: SuiteVectorEnv) -> None:
    fresh = SuiteVectorEnv(open_lanes(pendulum()))
    with pytest.raises(EnvError, match=r"step: environments \[0\] have no episode"):
        fresh.step(np.zeros((1, 1), np.float32))
    with pytest.raises(EnvError, match=r"reset_mask: environments \[0\] have never begun"):
        fresh.reset(options={"reset_mask": np.array([False])})
    fresh.close()
    shared.reset(seed=0)
    with pytest.raises(EnvError, match=r"actions: shape \(2, 1\), expected \(3, 1\)"):
        shared.step(np.zeros((2, 1), np.float32))
    with pytest.raises(EnvError, match=r"reset_mask: int64 \[3\], expected bool \[3\]"):
        shared.reset(options={"reset_mask": np.ones(3, int)})
    with pytest.raises(EnvError, match="options: low, expected reset_mask or nothing"):
        shared.reset(options={"low": 0})
    for _ in range(HORIZON):
        shared.step(np.zeros((NUM, 1), np.float32))
    with pytest.raises(EnvError, match=r"environments \[0, 1, 2\] have no episode.*reset_mask"):
        shared.step(np.zeros((NUM, 1), np.float32))


def test_the_example_of_the_page_runs() -> None:
    (example,) = re.findall(r"```python\n(from env.as_vector.*?)```", PAGE.read_text(), re.S)
    lift = 'suite="robosuite", task="Lift", '
    assert lift in example and len(example.splitlines()) <= 12
    names: dict[str, Any] = {}
    exec(example.replace(lift, 'suite="particle", task="PARTICLE_2d", '), names)
    assert names["envs"].closed and names["successes"] >= 0
