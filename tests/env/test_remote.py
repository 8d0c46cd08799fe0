"""An environment in a process of its own gives what it gives here."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from env.config import EnvConfig
from env.core import EnvError
from env.factory import make_env
from env.remote import RemoteEnv

CONFIG = EnvConfig(suite="metaworld", task="Assembly", use_state=1, episode_length=20)


def test_same_episode_as_in_this_process() -> None:
    here, there = make_env(CONFIG), RemoteEnv(asdict(CONFIG))
    rng = np.random.default_rng(0)
    try:
        assert there.spec == here.spec
        obs, _ = here.reset(seed=3)
        np.testing.assert_array_equal(there.reset(seed=3)[0]["state"], obs["state"])
        for _ in range(5):
            action = rng.uniform(-1, 1, here.spec.action_dim).astype(np.float32)
            there.send_step(action)
            expected = here.step(action)
            result = there.receive_step()
            np.testing.assert_array_equal(result[0]["state"], expected[0]["state"])
            assert result[1:] == expected[1:]
        assert there.state_dict() == here.state_dict()
        again = there.load_state_dict(here.state_dict())
        assert again is not None
        np.testing.assert_array_equal(again["state"], expected[0]["state"])
    finally:
        there.close()
        here.close()


def test_misuse_leaves_it_alive_and_death_is_told() -> None:
    env = RemoteEnv(asdict(CONFIG))
    try:
        with pytest.raises(EnvError, match="seed is -1"):
            env.reset(seed=-1)
        env.reset(seed=0)
        with pytest.raises(EnvError, match="no step is under way"):
            env.receive_step()
        env.send_step(np.zeros(4, np.float32))
        with pytest.raises(EnvError, match="a step is under way"):
            env.reset(seed=1)
        env.receive_step()
        env._worker.process.kill()
        env._worker.process.wait()
        with pytest.raises(EnvError, match="was killed by signal 9 while doing step"):
            env.step(np.zeros(4, np.float32))
    finally:
        env.close()


def test_environment_that_cannot_be_built() -> None:
    with pytest.raises(EnvError, match=r"building its environment(.|\n)*NoSuchTask"):
        RemoteEnv(asdict(EnvConfig(suite="metaworld", task="NoSuchTask", use_state=1)))
