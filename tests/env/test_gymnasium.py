"""Third-party gymnasium environments behind the interface (gymnasium's own MuJoCo tasks)."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from env.config import EnvConfig
from env.core import EnvError
from env.factory import make_env
from env.gymnasium_adapter import GymnasiumEnv


def make(task: str = "InvertedPendulum-v5", **options) -> GymnasiumEnv:
    options = {"use_state": 1, "episode_length": 20, "gym_success_key": "truncated", **options}
    return make_env(EnvConfig(suite="gymnasium", task=task, **options))


def test_pusher_is_delivered_as_gymnasium_plays_it():
    env, plain = make("Pusher-v5", action_repeat=2), gymnasium.make("Pusher-v5")
    obs, info = env.reset(seed=4)
    want, _ = plain.reset(seed=4)
    assert info == {"success": False} and env.spec.action_dim == 7
    assert env.spec.observations["state"].shape == (23,)
    np.testing.assert_array_equal(obs["state"], want.astype(np.float32))
    rng = np.random.default_rng(0)
    for _ in range(5):
        action = rng.uniform(-1, 1, 7)
        obs, reward, terminated, truncated, _ = env.step(action)
        total = 0.0
        for _ in range(2):  # the bounds are [-2, 2]
            want, r, *_ = plain.step((2 * action).astype(np.float32))
            total += float(r)
        np.testing.assert_array_equal(obs["state"], want.astype(np.float32))
        assert reward == pytest.approx(total) and not terminated and not truncated
    env.close(), plain.close()


def test_episodes_replay_from_their_state_and_end_at_the_limit():
    env, other = make(state_stack=2), make(state_stack=2)
    env.reset(seed=2)
    for _ in range(3):
        env.step(np.array([0.01]))
    restored = other.load_state_dict(env.state_dict())
    for _ in range(3):
        a, b = env.step(np.array([-0.01])), other.step(np.array([-0.01]))
        np.testing.assert_array_equal(a[0]["state"], b[0]["state"])
    assert restored is not None and restored["state"].shape == (8,)
    env.close(), other.close()
    env = make(episode_length=5)
    env.reset(seed=0)
    outcomes = [env.step(np.zeros(1))[2:] for _ in range(5)]
    assert outcomes[-1] == (False, True, {"success": True})
    assert outcomes[0] == (False, False, {"success": False})
    with pytest.raises(EnvError, match="no episode is running"):
        env.step(np.zeros(1))
    env.close()


class Reacher(gymnasium.Env):
    """A user's environment: camera, proprioception and state in a Dict, success in info."""

    action_space = gymnasium.spaces.Box(np.float32([0, -5]), np.float32([1, 5]))
    observation_space = gymnasium.spaces.Dict(
        wrist=gymnasium.spaces.Box(0, 255, (48, 48, 3), np.uint8),
        joints=gymnasium.spaces.Box(-9, 9, (2,), np.float32),
        goal=gymnasium.spaces.Box(-9, 9, (3,), np.float64),
    )

    def _obs(self):
        picture = np.full((48, 48, 3), self.t, np.uint8)
        return {"wrist": picture, "joints": self.last, "goal": np.full(3, float(self.t))}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.last = 10, np.zeros(2, np.float32)
        return self._obs(), {}

    def step(self, action):
        self.t, self.last = self.t + 1, action
        return self._obs(), 0.25, False, False, {"reached": self.t == 13}


def test_cameras_proprioception_state_and_success_by_key():
    cfg = EnvConfig(
        suite="gymnasium",
        task="reacher",
        cameras=["wrist"],
        rl_image_size=24,
        image_size=48,
        obs_stack=2,
        use_state=1,
        gym_state_key="goal+joints",
        gym_prop_key="joints",
        gym_success_key="reached",
        env_reward_scale=4.0,
    )
    env = GymnasiumEnv.from_env(Reacher, cfg)
    shapes = {k: v.shape for k, v in env.spec.observations.items()}
    assert shapes == {"wrist": (6, 24, 24), "prop": (2,), "state": (5,)}
    obs, _ = env.reset(seed=0)
    assert (obs["wrist"][:3] == 10).all() and not obs["wrist"][3:].any()
    obs, reward, terminated, *_ = env.step(np.array([-1.0, 1.0]))
    assert reward == 1.0 and not terminated
    assert obs["prop"].tolist() == [0.0, 5.0] and obs["state"].tolist() == [11, 11, 11, 0, 5]
    assert (obs["wrist"][:3] == 11).all() and (obs["wrist"][3:] == 10).all()
    assert env.render().shape == (48, 48, 3)
    env.step(np.zeros(2))
    _, _, terminated, truncated, info = env.step(np.zeros(2))
    assert (terminated, truncated, info) == (True, False, {"success": True})


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("NoSuchTask-v0", {}, "gymnasium cannot make 'NoSuchTask-v0'"),
        ("CartPole-v1", {}, "expected a float Box"),
        ("Pusher-v5", {"gym_state_key": "joints"}, "gym_state_key: 'joints' is not an observation"),
        ("Pusher-v5", {"cameras": ["wrist"]}, "camera 'wrist' does not exist"),
        ("Pusher-v5", {"gym_module": "no_such_module"}, "cannot import 'no_such_module'"),
        ("Pusher-v5", {"use_state": 0}, "would deliver nothing"),
    ],
)
def test_misfits_are_refused(task, options, message):
    with pytest.raises(EnvError, match=message):
        make(task, **options)


def test_a_success_key_that_never_shows_is_reported():
    env = make("Pusher-v5", episode_length=2, gym_success_key="won")
    env.reset(seed=0)
    env.step(np.zeros(7))
    with pytest.raises(EnvError, match=r"gym_success_key: info of task 'Pusher-v5' has no 'won'"):
        env.step(np.zeros(7))
    env.close()
