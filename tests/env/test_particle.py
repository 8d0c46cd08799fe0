"""The particle: what evaluation, resume, stacks and videos need of it; its oracle."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch

from env.config import EnvConfig
from env.core import EnvError
from env.factory import make_env
from env.particle.env import ParticleEnv
from env.particle.oracle import ParticleOracle
from env.particle.sim import ParticleParams
from evaluate.multi_process_eval import run_eval_mp
from evaluate.rollout import run_eval


def particle(task: str = "PARTICLE", **kwargs: object) -> ParticleEnv:
    return make_env({"suite": "particle", "task": task, **kwargs})


def play_oracle(env: ParticleEnv, oracle: ParticleOracle, seed: int) -> tuple[dict, float]:
    env.reset(seed=seed)
    oracle.reset(np.random.default_rng(seed))
    done, score = False, 0.0
    while not done:
        _, reward, terminated, truncated, info = env.step(oracle.act())
        done, score = terminated or truncated, score + reward
    return info, score


class SecondGoal:
    """Knows only the second goal: batched and single observations alike."""

    stochastic_eval = False

    def act(self, obs: dict, **options: object) -> torch.Tensor:
        return obs["state"][..., 4:6] * 2 - 1


@pytest.mark.parametrize("n_dim", [1, 2, 8])
def test_oracle_succeeds_always(n_dim: int) -> None:
    env = particle(f"PARTICLE_{n_dim}d")
    oracle = ParticleOracle(env)
    for seed in range(40):
        info, score = play_oracle(env, oracle, seed)
        assert info["success"] and score == 1
        assert max(info["metrics"].values()) < 0.05


def test_random_order_visits_either_goal_first() -> None:
    env = particle()
    oracle = ParticleOracle(env, random_order=True)
    outcomes = [play_oracle(env, oracle, seed)[0] for seed in range(30)]
    # reward needs both goals in any order, success the second one at the end
    assert 5 < sum(o["success"] for o in outcomes) < 25
    assert all(o["metrics"]["min_dist_second_goal"] < 0.05 for o in outcomes)


def test_pool_and_process_agree_and_report_the_metrics() -> None:
    cfg = EnvConfig(suite="particle", task="PARTICLE_2d")
    env = make_env(cfg)
    alone = run_eval(env, SecondGoal(), 6, 0)
    pooled = run_eval_mp(asdict(cfg), SecondGoal(), 2, 6, 0, one_by_one=True)
    assert set(alone.metrics) == {
        "min_dist_first_goal", "min_dist_second_goal", "final_dist_second_goal"
    }  # fmt: skip
    for name, values in alone.metrics.items():
        np.testing.assert_array_equal(values, pooled.metrics[name])
    assert alone.mean_metrics["final_dist_second_goal"] < 0.01
    assert (alone.lengths == 50).all() and list(alone.successes) == list(pooled.successes)


def test_episode_resumes_by_replay() -> None:
    env, again = (
        particle(state_stack=2, stack_pad="repeat"),
        particle(state_stack=2, stack_pad="repeat"),
    )
    env.reset(seed=3)
    rng = np.random.default_rng(0)
    for _ in range(7):
        obs = env.step(rng.uniform(-1, 1, 2))[0]
    np.testing.assert_array_equal(again.load_state_dict(env.state_dict())["state"], obs["state"])
    action = np.array([0.3, -0.2])
    for mine, other in zip(env.step(action)[:2], again.step(action)[:2], strict=True):
        np.testing.assert_equal(mine, other)


@pytest.mark.parametrize(("pad", "before"), [("zeros", 0), ("repeat", 1)])
def test_stack_is_newest_first_and_padded(pad: str, before: int) -> None:
    env = particle(state_stack=3, stack_pad=pad)
    first = env.reset(seed=0)[0]["state"].reshape(3, 8)
    np.testing.assert_array_equal(first[1], before * first[0])
    second = env.step(np.zeros(2))[0]["state"].reshape(3, 8)
    np.testing.assert_array_equal(second[1], first[0])
    np.testing.assert_array_equal(second[2], before * first[0])


def test_goal_tolerance_and_hidden_velocity() -> None:
    env = particle(goal_tolerance=2.0, hide_velocity=1)
    assert env.spec.observations["state"].shape == (6,)
    env.reset(seed=0)
    for _ in range(50):
        _, reward, _, done, info = env.step(np.ones(2))
    assert done and reward == 1 and info["success"]


@pytest.mark.parametrize("n_dim", [1, 2, 5])
def test_render(n_dim: int) -> None:
    env = particle(f"PARTICLE_{n_dim}d", image_size=96)
    env.reset(seed=0)
    blank = env.render()
    for _ in range(20):
        env.step(np.full(n_dim, 0.5))
    picture = env.render()
    assert picture.shape == (96, 96, 3) and picture.dtype == np.uint8
    assert (picture != blank).any() and (picture == (30, 160, 60)).all(-1).any()


@pytest.mark.parametrize(
    ("kwargs", "names"),
    [
        ({"task": "PARTICLE_0d"}, ["PARTICLE_0d", "PARTICLE_{N}d"]),
        ({"task": "Lift"}, ["Lift", "PARTICLE_{N}d"]),
        ({"task": "PARTICLE", "cameras": ["agentview"]}, ["cameras", "agentview"]),
    ],
)
def test_bad_configurations_are_reported(kwargs: dict, names: list[str]) -> None:
    with pytest.raises(EnvError) as error:
        particle(**kwargs)
    assert all(name in str(error.value) for name in names)


def test_bad_parameters_and_actions_are_reported() -> None:
    with pytest.raises(EnvError, match="dt: 0"):
        ParticleParams(dt=0)
    env = particle()
    with pytest.raises(EnvError, match="reset"):
        env.step(np.zeros(2))
    env.reset(seed=0)
    with pytest.raises(EnvError, match=r"\[-1, 1\]"):
        env.step(np.array([1.5, 0]))
