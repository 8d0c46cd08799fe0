"""Scripted demonstrations: real episodes in the documented layout."""

from __future__ import annotations

import json

import h5py
import imageio.v2 as imageio
import numpy as np
import pytest
import torch

from bc.dataset import read_demos
from common_utils import run_config
from common_utils.gl import best_backend
from common_utils.run_config import ConfigError
from common_utils.success_rule import SparseReward
from env.config import EnvConfig
from env.core import EnvError
from env.factory import make_env
from mw_main.generate_metaworld_dataset import MainConfig, MetaWorldEnvConfig, generate


def config(folder, task: str = "CoffeePush", **options) -> MainConfig:
    env_cfg = MetaWorldEnvConfig(
        env_name=task, frame_stack=1, end_on_success=1, camera_names=[], device="cpu"
    )
    return MainConfig(output_path=str(folder), env_cfg=env_cfg, **options)


def test_layout_lengths_and_replay(tmp_path):
    path = generate(config(tmp_path, num_episodes=2, seed=1))
    assert path == tmp_path / "dataset.hdf5"
    stored = json.loads((tmp_path / "env_cfg.json").read_text())
    assert stored["env_name"] == "CoffeePush" and stored["env_kwargs"]["action_repeat"] == 2
    task = EnvConfig(suite="metaworld", task="CoffeePush", use_state=1, action_repeat=2)
    env = make_env(task)
    with h5py.File(path) as file:
        assert sorted(file["data"]) == ["demo_0", "demo_1"]
        assert json.loads(file["data"].attrs["env_args"]) == stored
        total = 0
        for demo in file["data"].values():
            length = demo.attrs["num_samples"]
            total += length
            assert 20 <= length <= 40
            shapes = {k: demo[k].shape for k in ("actions", "states", "obs/prop", "obs/state")}
            assert shapes == {
                "actions": (length, 4),
                "states": (length, 39),
                "obs/prop": (length, 4),
                "obs/state": (length, 39),
            }
            assert demo["rewards"].dtype == np.float64 and demo["dones"].dtype == np.int64
            np.testing.assert_array_equal(demo["rewards"], [0.0] * (length - 1) + [1.0])
            np.testing.assert_array_equal(demo["dones"], [0] * (length - 1) + [1])
            # what is stored is what the environment does for that seed and those actions
            obs, _ = env.reset(seed=int(demo.attrs["seed"]))
            for state, action in zip(demo["obs/state"], demo["actions"], strict=True):
                np.testing.assert_array_equal(obs["state"], state)
                obs, *_, info = env.step(action)
            assert info["success"]
        assert file["data"].attrs["total"] == total
    env.close()


def test_seeds_noise_and_overwriting(tmp_path):
    def recorded(name: str, **options) -> np.ndarray:
        with h5py.File(generate(config(tmp_path / name, **options))) as file:
            return file["data/demo_0/actions"][:]

    first = recorded("a", seed=3)
    np.testing.assert_array_equal(recorded("b", seed=3), first)
    other = recorded("c", seed=4)
    assert other.shape != first.shape or (other != first).any()
    noisy = recorded("d", seed=3, action_noise=0.1)
    assert np.abs(noisy).max() <= 1.0 and (noisy[:5] != first[:5]).any()
    unsteady = recorded("e", task="drawer-open", seed=3, random_action_rate=0.3)
    steady = recorded("f", task="drawer-open", seed=3)
    assert 20 < len(steady) < len(unsteady) <= 100 and np.abs(unsteady).max() <= 1.0
    assert np.array_equal(
        unsteady, recorded("g", task="drawer-open", seed=3, random_action_rate=0.3)
    )
    with pytest.raises(ConfigError, match="random_action_rate: .*got 1.5"):
        run_config.from_dict(MainConfig, {"random_action_rate": 1.5})
    with pytest.raises(ConfigError, match="exists; --overwrite 1 replaces it"):
        generate(config(tmp_path / "a"))
    np.testing.assert_array_equal(recorded("a", seed=4, overwrite=1), other)
    assert not list(tmp_path.rglob("*.tmp-*"))


def test_only_successes_are_kept_and_hopeless_settings_are_reported(tmp_path):
    hopeless = config(tmp_path)
    hopeless.env_cfg.episode_length = 5
    with pytest.raises(ConfigError, match=r"20 of 20 scripted episodes of CoffeePush failed"):
        generate(hopeless)
    assert not (tmp_path / "dataset.hdf5").exists()
    with pytest.raises(EnvError, match="no task 'Tea'"):
        generate(config(tmp_path, task="Tea"))
    with pytest.raises(ConfigError, match="save_gifs: 1 needs a camera"):
        generate(config(tmp_path, save_gifs=1))


@pytest.mark.skipif(
    best_backend() == "disabled", reason="no OpenGL back end renders on this machine"
)
def test_pictures_and_videos(forked, tmp_path):
    command = [
        "mw_main/generate_metaworld_dataset.py",
        f"--output_path={tmp_path}",
        "--env_cfg.env_name=CoffeePush",
        "--env_cfg.frame_stack=2",
        "--env_cfg.rl_image_size=48",
        "--env_cfg.end_on_success=1",
        "--env_cfg.render_quality=fast",
        "--save_gifs=1",
        "--add_modem_format=1",
    ]
    done = forked(*command, gl=best_backend())
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "dataset.hdf5") as file:
        images = file["data/demo_0/obs/corner2_image"][:]
        prop = file["data/demo_0/obs/prop"][:]
    assert images.dtype == np.uint8 and images.shape == (len(prop), 6, 48, 48)
    assert not images[0, 3:].any(), "newest first, zeros before the start"
    np.testing.assert_array_equal(images[1:, 3:], images[:-1, :3])
    for suffix in ("gif", "mp4"):
        frames = imageio.mimread(tmp_path / f"episode_0.{suffix}", memtest=False)
        assert len(frames) == len(images) and frames[0].shape[:2] == (224, 224)
    episode = torch.load(tmp_path / "episode_0.pt", weights_only=True)
    assert episode["actions"].shape == (len(prop), 4)


def test_the_readers_of_bc_and_rl_take_it(tmp_path):
    path = generate(config(tmp_path, num_episodes=2))
    demos = list(read_demos(path, rule=SparseReward("metaworld"), use_state=True))
    assert len(demos) == 2
    with h5py.File(path) as file:
        for i, demo in enumerate(demos):
            stored = file[f"data/demo_{i}"]
            np.testing.assert_array_equal(demo.observations["state"], stored["obs/state"])
            np.testing.assert_array_equal(demo.actions, stored["actions"])
