"""The one face of all scripted experts."""

from __future__ import annotations

import numpy as np
import pytest

from env.core import Env, EnvError
from env.experts import EXPERTS, make_expert
from env.factory import make_env
from env.suites import SUITES

# of each suite here: a task, and options of its expert
TASKS = {
    "robosuite": ("Lift", {"jitter": 0.02}),
    "metaworld": ("CoffeePush", {"random_rate": 0.3}),
    "particle": ("PARTICLE_3d", {"random_order": True}),
    "block_pushing": ("PUSH_MULTIMODAL", {"tolerance": 0.05}),
}


def make(suite: str) -> Env:
    return make_env({"suite": suite, "task": TASKS[suite][0], "use_state": 1, "episode_length": 40})


def play(env: Env, expert, seed: int, steps: int = 12) -> np.ndarray:
    """The first actions of the episode ``seed``, and the states they lead to."""
    obs, _ = env.reset(seed=3)
    expert.reset(np.random.default_rng(seed))
    rows = []
    for _ in range(steps):
        action = expert.act()
        assert action.dtype == np.float32 and action.shape == (env.spec.action_dim,)
        assert np.abs(action).max() <= 1
        rows.append(np.concatenate([action, obs["state"]]))
        obs, *_ = env.step(action)
    assert isinstance(expert.phase, str) and isinstance(expert.achieved, tuple)
    return np.stack(rows)


@pytest.mark.parametrize("suite", TASKS)
def test_an_episode_follows_from_its_generator(suite):
    env, options = make(suite), TASKS[suite][1]
    expert = make_expert(env, 0.01, **options)
    first, other = play(env, expert, seed=5), play(env, expert, seed=6)
    assert np.array_equal(play(env, expert, seed=5), first), "nothing is left of other episodes"
    assert np.array_equal(play(env, make_expert(env, 0.01, **options), seed=5), first)
    assert not np.array_equal(other, first)
    env.close()


def test_phases_are_reported():
    for suite in ("robosuite", "block_pushing"):
        env = make(suite)
        expert = make_expert(env)
        play(env, expert, seed=1, steps=1)
        assert expert.phase in ("hover", "move_to_pre_block")
        env.close()


@pytest.mark.parametrize("suite", TASKS)
def test_unknown_options_are_refused(suite):
    env = make(suite)
    with pytest.raises(EnvError, match=f"expert of {env.spec.task} has no such option.*patience"):
        make_expert(env, patience=3)
    env.close()


def test_suites_without_one_are_refused():
    env = make_env({"suite": "d4rl", "task": "door-human-v0", "use_state": 1})
    with pytest.raises(EnvError, match="no expert for suite 'd4rl'; there is one for .*robosuite"):
        make_expert(env)
    env.close()
    env = make_env({"suite": "robosuite", "task": "PickPlace", "use_state": 1})
    expert = make_expert(env)
    env.reset(seed=0)
    with pytest.raises(EnvError, match="no scripted expert for robosuite task 'PickPlace'"):
        expert.reset(np.random.default_rng(0))
    env.close()
    assert EXPERTS.keys() <= SUITES.keys()


def test_robosuites_needs_an_episode():
    env = make("robosuite")
    with pytest.raises(EnvError, match="no episode yet; call reset"):
        make_expert(env).act()
    env.close()
