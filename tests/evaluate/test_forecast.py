"""What an agent expects of an episode, and its discounted return: alone, in a pool, and logged."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from pendulum_env import PendulumEnv

from common_utils.specs import DISCOUNTED_RETURN, START_Q, Obs
from evaluate.multi_process_eval import EvalPool
from evaluate.rollout import Forecast, run_eval

GAMMA, GAMES, SEED = 0.9, 5, 3


class Tilted:
    """Acts by a formula, also for batches."""

    stochastic_eval = False

    def act(self, obs, *, eval_mode=True, cpu=True, generator=None):
        return torch.tanh(8 * obs["state"][..., 1:2] + 0.1)


def value(obs: Obs, action: torch.Tensor) -> torch.Tensor:
    """Any function of both."""
    return obs["state"].sum() + 10 * action.sum()


def by_hand(seed: int) -> tuple[float, float]:
    """(value of the start, discounted return) of one episode."""
    env = PendulumEnv({"horizon": 30})
    obs, _ = env.reset(seed=seed)
    expected, rewards, done = None, [], False
    while not done:
        tensors = {"state": torch.from_numpy(obs["state"])}
        action = Tilted().act(tensors)
        expected = float(value(tensors, action)) if expected is None else expected
        obs, reward, terminated, truncated, _ = env.step(action.numpy())
        rewards.append(reward)
        done = terminated or truncated
    env.close()
    assert expected is not None
    return expected, sum(GAMMA**t * r for t, r in enumerate(rewards))


@pytest.mark.parametrize("workers", [0, 2])
def test_every_episode_has_its_forecast_and_its_discounted_return(workers: int) -> None:
    maker, env_cfg = "pendulum_env:make", {"horizon": 30}
    with EvalPool(env_cfg, workers, maker=maker, timeout=60) as pool:
        result = pool.run(Tilted(), GAMES, SEED, forecast=Forecast(value, GAMMA))
        plain = pool.run(Tilted(), GAMES, SEED)
    want = np.array([by_hand(seed) for seed in range(SEED, SEED + GAMES)])
    assert np.array_equal(result.metrics[START_Q], want[:, 0])
    # later actions of a pool may differ in their last bits
    assert np.allclose(result.metrics[DISCOUNTED_RETURN], want[:, 1], rtol=1e-5)
    assert len(set(want[:, 0])) == GAMES
    assert plain.metrics == {}


def test_an_agent_without_a_critic_has_the_discounted_return_alone() -> None:
    env = PendulumEnv({"horizon": 30})
    result = run_eval(env, Tilted(), 2, SEED, forecast=Forecast(lambda *_: None, GAMMA))
    env.close()
    assert set(result.metrics) == {DISCOUNTED_RETURN}
    assert result.metrics[DISCOUNTED_RETURN][0] == pytest.approx(by_hand(SEED)[1])
