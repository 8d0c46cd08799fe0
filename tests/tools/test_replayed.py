"""Recordings of robosuite's own collection script, given to the trainers as they are."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import train_bc
import train_rl
from bc.demo_store import DatasetError
from common_utils import run_config
from env.robosuite.control import Noise
from env.robosuite.experts import task_expert
from env.robosuite.sim import import_robosuite
from tests.bc.test_dataset import write_robomimic
from tools.replayed import CACHE, cache_folder, with_observations

HUMAN = Path(os.environ.get("SHARED_DATA", "../shared/data")) / "human_demos"


def collect(folder: Path, episodes: int) -> Path:
    """What ``collect_human_demonstrations`` writes, but a scripted expert holds the controls."""
    robosuite = import_robosuite()
    from robosuite.scripts.collect_human_demonstrations import gather_demonstrations_as_hdf5
    from robosuite.wrappers import DataCollectionWrapper

    controller = robosuite.load_composite_controller_config(controller=None, robot="Panda")
    config = {"env_name": "Lift", "robots": ["Panda"], "controller_configs": controller}
    info = json.dumps(config)
    env: Any = robosuite.make(
        **config, has_renderer=False, has_offscreen_renderer=False, ignore_done=True,
        use_camera_obs=False, reward_shaping=True, control_freq=20, renderer="mujoco", seed=3,
    )  # fmt: skip
    env = DataCollectionWrapper(env, str(folder / "episodes"))
    for number in range(episodes):
        env.reset()
        expert = task_expert("Lift", env.env, number, Noise.of(0.2))
        held = 0  # the script records 10 steps more
        while held < 10:
            env.step(expert.act())
            held = held + 1 if held or env.env._check_success() else 0
    env.close()
    gather_demonstrations_as_hdf5(str(folder / "episodes"), str(folder), info)
    shutil.rmtree(folder / "episodes")
    return folder / "demo.hdf5"


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demonstration of Lift."""
    return collect(tmp_path_factory.mktemp("collected"), 1)


def bc_config(path: Path, save_dir: Path, **more: object) -> train_bc.MainConfig:
    options = {
        "dataset.path": path, "dataset.use_state": 1, "num_epoch": 1, "epoch_len": 2,
        "batch_size": 8, "num_eval_episode": 0, "device": "cpu", "state_policy.hidden_dim": 16,
        "save_dir": save_dir, **more,
    }  # fmt: skip
    return run_config.parse_args(train_bc.MainConfig, [f"--{k}={v}" for k, v in options.items()])


def test_a_collected_file_trains_bc_and_rl_and_is_replayed_once(collected, tmp_path, capsys):
    work = train_bc.run(bc_config(collected, tmp_path / "bc"))
    assert work.data.num_episodes == 1 and work.data.task_name == "Lift"
    (folder,) = (tmp_path / CACHE).iterdir()
    written = folder / "processed_data96.hdf5"
    assert work.cfg.dataset.path == str(written)
    out = capsys.readouterr().out
    assert f"{collected} is a raw recording: it is replayed into {folder}\n" in out
    with h5py.File(collected) as raw, h5py.File(written) as file:
        args = json.loads(file["data"].attrs["env_args"])
        assert args["replayed"] == {"file": "demo.hdf5", "env_version": "1.5.2"}
        for theirs, ours in zip(raw["data"].values(), file["data"].values(), strict=True):
            np.testing.assert_array_equal(ours["states"][()], theirs["states"][()])
            np.testing.assert_allclose(ours["actions"][()], theirs["actions"][()], atol=1e-7)
            # success first shows after the eleventh last action, and stays
            assert ours["rewards"][()].tolist() == [0.0] * (len(ours["rewards"]) - 10) + [1.0] * 10
            assert ours.attrs["single_step_error"] < 1e-3 and list(ours.attrs["notes"]) == []
    before = written.stat()
    train_bc.run(bc_config(collected, tmp_path / "bc", resume=1, num_epoch=2))
    options = {
        "preload_datapath": collected, "preload_num_data": 1, "use_state": 1, "mix_rl_rate": 0.5,
        "num_warm_up_episode": 0, "num_train_step": 2, "log_per_step": 2, "num_eval_episode": 0,
        "batch_size": 4, "q_agent.device": "cpu", "q_agent.act_method": "rl",
        "q_agent.state_critic.hidden_dim": 16, "q_agent.state_actor.hidden_dim": 16,
        "save_dir": tmp_path / "rl",
    }  # fmt: skip
    args = [f"--{k}={v}" for k, v in options.items()]
    rl = train_rl.run(run_config.parse_args(train_rl.MainConfig, args))
    assert rl.replay.size(bc=True) == 1 and rl.cfg.preload_datapath == str(written)
    assert written.stat() == before
    assert "exists already" in capsys.readouterr().out


def test_a_changed_recording_and_other_cameras_are_replayed_anew(collected, tmp_path):
    path, run = tmp_path / "demo.hdf5", str(tmp_path / "run")
    shutil.copy(collected, path)
    states = cache_folder(path, [], run)
    assert states == cache_folder(path, [], run) and states.parent == tmp_path / CACHE
    pictures = cache_folder(path, ["agentview"], run)
    with h5py.File(path, "r+") as file:
        file["data/demo_1/actions"][0] = 0
    assert len({states, pictures, cache_folder(path, [], run)}) == 3


def test_other_files_are_left_to_the_reader(collected, tmp_path):
    full = write_robomimic(tmp_path / "d.hdf5")
    other = tmp_path / "other.hdf5"
    shutil.copy(collected, other)
    with h5py.File(other, "r+") as file:
        file["data"].attrs["env_info"] = json.dumps({"env_name": "Door"})
    damaged = tmp_path / "damaged.hdf5"
    damaged.write_bytes(full.read_bytes()[:3000])
    for path in (full, other, damaged, tmp_path / "absent.hdf5"):
        assert with_observations(str(path), [], str(tmp_path / "run")) == str(path)
    with pytest.raises(DatasetError, match="'obs': missing: a raw recording"):
        train_bc.run(bc_config(other, tmp_path / "bc"))
    assert not (tmp_path / CACHE).exists()


def test_real_teleoperation_goes_straight_into_training(tmp_path, capsys):
    path = HUMAN / "lift_panda_robosuite101.hdf5"
    if not path.is_file():
        pytest.skip(f"{path} absent (set SHARED_DATA to the folder of real datasets)")
    more = {"dataset.eval_episode_len": 1000}
    work = train_bc.run(bc_config(path, tmp_path / "bc", **more))
    assert work.data.num_steps == 412
    assert "recorded with robosuite 1.0.0, replayed in" in capsys.readouterr().out
