"""MetaWorldEnv on the real simulator, from states (no OpenGL)."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from common_utils.ibrl_utils import concat_obs
from common_utils.run_config import ConfigError
from env.config import EnvConfig
from env.core import EnvError
from env.experts import make_expert
from env.factory import make_env
from env.metaworld.env import MetaWorldEnv, task_id

TASKS = ["Assembly", "coffee-push", "box-close-v3", "StickPull"]


def make(task: str = "Assembly", **options) -> MetaWorldEnv:
    options = {"use_state": 1, "action_repeat": 2, **options}
    return make_env(EnvConfig(suite="metaworld", task=task, **options))


@pytest.fixture(scope="module")
def assembly():
    env = make(episode_length=12)
    yield env
    env.close()


def actions(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (n, 4)).astype(np.float32)


def play(env, seed: int, moves: np.ndarray) -> tuple[list[dict], list[tuple]]:
    obs, info = env.reset(seed=seed)
    observations, outcomes = [obs], [(info["success"],)]
    for move in moves:
        obs, reward, terminated, truncated, info = env.step(move)
        observations.append(obs)
        outcomes.append((reward, terminated, truncated, info["success"]))
        if terminated or truncated:
            break
    return observations, outcomes


def assert_equal(a: list[dict], b: list[dict]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for k in x:
            np.testing.assert_array_equal(x[k], y[k], err_msg=k)


def play_expert(env: MetaWorldEnv, seed: int) -> list[tuple]:
    """(reward, terminated, truncated, info) of each step."""
    expert = make_expert(env)
    env.reset(seed=seed)
    outcomes = []
    while not outcomes or not (outcomes[-1][1] or outcomes[-1][2]):
        outcomes.append(env.step(expert.act())[1:])
    return outcomes


@pytest.mark.parametrize("task", TASKS)
def test_an_episode_is_its_seed_and_actions(task):
    used, fresh = make(task), make(task)
    want, outcome = play(used, 7, actions(20))
    # the used environment has played other things, another goal, and stopped midway
    play(used, 8, actions(9, seed=1))
    again, outcome_again = play(used, 7, actions(20))
    first, outcome_first = play(fresh, 7, actions(20))
    assert_equal(again, want)
    assert_equal(first, want)
    assert outcome == outcome_again == outcome_first
    other, _ = play(fresh, 9, actions(20))
    assert (other[0]["state"][36:39] != want[0]["state"][36:39]).any(), "the goal is random"
    used.close(), fresh.close()


@pytest.mark.parametrize("task", TASKS)
def test_state_dict_brings_an_episode_back_bit_for_bit(task):
    env, other = make(task, state_stack=3), make(task, state_stack=3)
    moves = actions(16)
    play(env, 5, moves[:9])
    state = json.loads(json.dumps(env.state_dict()))
    play(other, 6, moves[:4])
    obs = other.load_state_dict(state)
    assert other.state_dict() == state
    for move in moves[9:]:
        a, b = env.step(move), other.step(move)
        assert_equal([a[0]], [b[0]])
        assert a[1:] == b[1:]
    assert obs is not None and obs["state"].shape == (117,)
    env.close(), other.close()


def test_state_dict_before_the_first_reset_and_after_the_end():
    env, other = make(episode_length=3), make(episode_length=3)
    assert other.load_state_dict(env.state_dict()) is None
    with pytest.raises(EnvError, match="call reset first"):
        other.step(np.zeros(4))
    play(env, 1, actions(3))
    other.load_state_dict(env.state_dict())
    with pytest.raises(EnvError, match="no episode is running"):
        other.step(np.zeros(4))
    with pytest.raises(EnvError, match=r"keys \['seed'\], expected seed and actions"):
        other.load_state_dict({"seed": 3})
    env.close(), other.close()


def test_observations_are_as_the_spec_says():
    env = make(prop_stack=3, state_stack=2)
    obs, _ = env.reset(seed=0)
    assert env.spec.suite == "metaworld" and env.spec.task == "assembly-v3"
    assert env.spec.action_dim == 4 and env.spec.horizon == 100 and env.spec.cameras == ()
    assert {k: v.stack for k, v in env.spec.observations.items()} == {"prop": 3, "state": 2}
    for observation in (obs, env.step(np.zeros(4))[0]):
        assert observation.keys() == env.spec.observations.keys()
        for key, spec in env.spec.observations.items():
            assert observation[key].shape == spec.shape
            assert observation[key].dtype == np.dtype(spec.dtype)
    assert set(make(use_state=0).spec.observations) == {"prop"}
    env.close()


@pytest.mark.parametrize("stack", [1, 2, 4])
def test_stacks_are_concat_obs(stack):
    plain, stacked = make(), make(prop_stack=stack, state_stack=stack)
    frames, _ = play(plain, 3, actions(6))
    stacks, _ = play(stacked, 3, actions(6))
    for key in ("prop", "state"):
        single = [torch.from_numpy(f[key]) for f in frames]
        for i, observation in enumerate(stacks):
            want = concat_obs(i, single, stack)
            assert torch.equal(torch.from_numpy(observation[key]), want), (key, i)
    plain.close(), stacked.close()


def test_action_repeat_is_that_many_steps():
    once, twice = make(action_repeat=1), make(action_repeat=3)
    moves = actions(5)
    slow, _ = play(once, 2, np.repeat(moves, 3, axis=0))
    fast, _ = play(twice, 2, moves)
    assert_equal(slow[::3], fast)
    once.close(), twice.close()


def test_success_is_judged_after_the_last_simulator_step(assembly):
    seen = iter([1.0, 0.0, 0.0, 1.0])
    step = assembly._sim.step

    def fake(action):
        obs, reward, terminated, truncated, info = step(action)
        return obs, reward, terminated, truncated, info | {"success": next(seen)}

    assembly.reset(seed=0)
    assembly._sim.step = fake
    try:
        assert assembly.step(np.zeros(4))[1:] == (0.0, False, False, {"success": False})
        assert assembly.step(np.zeros(4))[1:] == (1.0, True, False, {"success": True})
    finally:
        del assembly._sim.step


def test_time_limit_truncates(assembly):
    for _ in range(2):  # the simulator's own limit does not interfere in a later episode
        _, outcomes = play(assembly, 0, actions(50))
        assert len(outcomes) == 1 + 12
        assert outcomes[-1] == (0.0, False, True, False)
        assert all(o == (0.0, False, False, False) for o in outcomes[1:-1])


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_success_ends_the_episode_and_is_paid_once(scale):
    env = make(env_reward_scale=scale)
    outcomes = play_expert(env, 3)
    assert outcomes[-1] == (scale, True, False, {"success": True})
    assert {o[0] for o in outcomes[:-1]} == {0.0}
    env.close()


def test_without_end_on_success_the_episode_goes_on_to_its_limit():
    env = make(end_on_success=0, env_reward_scale=0.5)
    outcomes = play_expert(env, 3)
    assert len(outcomes) == 100 and outcomes[-1][1:3] == (False, True)
    rewards = np.array([o[0] for o in outcomes])
    np.testing.assert_array_equal(rewards, [0.5 * o[3]["success"] for o in outcomes])
    assert (rewards > 0).sum() > 20
    env.close()


def test_task_names():
    names = ["Assembly", "assembly", "assembly-v3", "assembly-v2", "ASSEMBLY", "Assembly-V3"]
    assert {task_id(n) for n in names} == {"assembly-v3"}
    assert {task_id(n) for n in ("PegInsertSide", "peg_insert_side", "peg-insert-side")} == {
        "peg-insert-side-v3"
    }
    for wired in ["Basketball", "BoxClose", "CoffeePush", "HandInsert", "StickPull", "Soccer"]:
        assert task_id(wired).endswith("-v3")
    with pytest.raises(EnvError, match=r"no task 'Assembli'; expected one of assembly, basketb"):
        make("Assembli")


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(3), "4 finite numbers"),
        (np.zeros((1, 4)), "4 finite numbers"),
        (np.array([0, 0, np.nan, 0]), "4 finite numbers"),
        (np.array([0, 0, 1.5, 0]), r"lie in \[-1, 1\], got \[0.0, 0.0, 1.5, 0.0\]"),
    ],
)
def test_bad_actions_are_refused_and_leave_the_episode_alone(assembly, action, message):
    moves = actions(4)
    want, _ = play(assembly, 4, moves)
    assembly.reset(seed=4)
    for move in moves[:3]:
        assembly.step(move)
    with pytest.raises(EnvError, match=message):
        assembly.step(action)
    assert_equal([assembly.step(moves[3])[0]], want[-1:])


@pytest.mark.parametrize("seed", [-1, 1.5, True, "1", None])
def test_bad_seeds_are_refused(assembly, seed):
    with pytest.raises(EnvError, match="expected an integer, 0 or more"):
        assembly.reset(seed=seed)


def test_bad_configs_are_refused():
    with pytest.raises(ConfigError, match="action_repeat: .*, got 0"):
        make(action_repeat=0)
    with pytest.raises(EnvError, match="suite 'atari' is unknown"):
        make_env(EnvConfig(suite="atari"))


def test_global_generators_are_left_alone(assembly):
    states = (random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state())
    want, _ = play(assembly, 3, actions(5))
    env = make(episode_length=12)
    assert random.getstate() == states[0]
    # the whole state: the position in the stream moves long before its numbers do
    np.testing.assert_equal(np.random.get_state(legacy=False), states[1])
    assert torch.equal(torch.get_rng_state(), states[2])
    # nor do they matter
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert_equal(play(env, 3, actions(5))[0], want)
    env.close()


def test_states_need_no_opengl(python):
    code = (
        "import sys; from env.factory import make_env\n"
        "env = make_env(dict(suite='metaworld', task='Assembly', use_state=1))\n"
        "env.reset(seed=0); env.step([0, 0, 0, 0]); env.close(); env.close()\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('OpenGL', 'torch')]\n"
        "sys.exit(', '.join(bad) or 0)"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_pixels_without_opengl_say_what_to_do(python):
    code = (
        "from env.factory import make_env; from env.core import EnvError\n"
        "cfg = dict(suite='metaworld', task='Assembly', cameras=['corner2'])\n"
        "try: make_env(cfg)\n"
        "except EnvError as error: print(error)"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "OpenGL rendering is not available here (MUJOCO_GL=disabled)" in done.stdout
    assert "apt-get install" in done.stdout and "common_utils.doctor" in done.stdout
