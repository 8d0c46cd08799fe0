"""Demonstrations of an RL run: where they end by the suite's rule, and what they are read with."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import train_bc
import train_rl
from bc.dataset import ReplayDemos
from bc.demos import DatasetError
from common_utils.demo_file import Recording, write_demos
from common_utils.errors import UserError
from common_utils.run_config import ConfigError, parse_args
from common_utils.specs import ArraySpec, EnvSpec
from env.config import EnvConfig
from env.factory import env_args, make_env
from tests.bc.test_dataset import write_robomimic
from tests.runs import assert_same_run
from tools import convert_dataset
from workspace.preload import read_preload
from workspace.rl_config import rl_env_config

LIMIT = 12  # of an episode, in steps
PENDULUM = EnvConfig(
    suite="gymnasium",
    task="InvertedPendulum-v5",
    use_state=1,
    episode_length=LIMIT,
    gym_success_key="truncated",
)


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes, of which one falls: each step earns a reward of 1, but a fall 0."""
    env, recordings = make_env(PENDULUM), []
    for seed, push in ((0, 0.0), (1, 1.0), (2, 0.0)):
        obs, _ = env.reset(seed=seed)
        recording, over = Recording(), False
        while not over:
            state, action = obs["state"], np.full(1, push, np.float32)
            obs, reward, terminated, truncated, _ = env.step(action)
            recording.append({"state": state}, state, action, reward)
            over = terminated or truncated
        recordings.append(recording)
    env.close()
    assert len(recordings[0]) == len(recordings[2]) == LIMIT > len(recordings[1])
    return write_demos(tmp_path_factory.mktemp("pendulum"), recordings, [], env_args(PENDULUM))


def config(save_dir: Path, data: Path, **more: object) -> train_rl.MainConfig:
    options = {
        "suite": "gymnasium",
        "task_name": "InvertedPendulum-v5",
        "use_state": 1,
        "episode_length": LIMIT,
        "preload_num_data": 3,
        "preload_datapath": data,
        "num_warm_up_episode": 0,
        "num_train_step": 2,
        "log_per_step": 2,
        "num_eval_episode": 0,
        "batch_size": 4,
        "q_agent.device": "cpu",
        "q_agent.act_method": "rl",
        "q_agent.state_critic.hidden_dim": 16,
        "q_agent.state_actor.hidden_dim": 16,
        "save_dir": save_dir,
        **more,
    }
    return parse_args(train_rl.MainConfig, [f"--{k}={v}" for k, v in options.items()])


def preloaded(cfg: train_rl.MainConfig) -> tuple[train_rl.Workspace, str]:
    """A run, and what its log says of the demonstrations."""
    work = train_rl.run(cfg)
    lines = (Path(cfg.save_dir) / "train.log").read_text().splitlines()
    return work, "\n".join(x for x in lines if "demonstrations" in x or "note" in x)


def lengths(path: Path) -> list[int]:
    with h5py.File(path) as file:
        return [len(demo["actions"]) for demo in file["data"].values()]


@pytest.mark.parametrize(
    ("key", "said", "successes"),
    [
        ("truncated", "the end of its recording (gym.success_key 'truncated'); 1 of them", 2),
        ("terminated", "the end of its recording (gym.success_key 'terminated'); 2 of them", 1),
        ("", "the end of its recording (gym.success_key '': a reward of 1 is success); from", 3),
        ("up", "its first success by infos/up (gym.success_key 'up'); from", 3),
    ],
)
def test_a_reward_at_each_step_ends_nothing(tmp_path, pendulum, key, said, successes):
    path, steps = pendulum, lengths(pendulum)
    if key == "up":
        path = tmp_path / "d.hdf5"
        path.write_bytes(pendulum.read_bytes())
        with h5py.File(path, "r+") as file:
            for demo in file["data"].values():
                demo["infos/up"] = np.arange(len(demo["actions"])) >= 2
        steps = [3, 3, 3]
    # one step: the played environment has no info "up", which it would say at an episode's end
    cfg = config(tmp_path / "run", path, **{"gym.success_key": key, "num_train_step": 1})
    work, log = preloaded(cfg)
    assert f"3 demonstrations, {sum(steps)} steps, each ends at {said}" in log
    assert ("note: " in log) == (key == "")
    played = int(key == "")  # there one step is an episode, as the note says
    assert work.replay.num_transitions() == sum(steps) + played
    assert work.replay.num_success == successes + played


def test_only_successes_are_imitated(tmp_path, pendulum):
    more = {"gym.success_key": "truncated", "mix_rl_rate": 0.5}
    work, _ = preloaded(config(tmp_path / "run", pendulum, **more))
    assert (work.replay.size(), work.replay.size(bc=True)) == (3, 2)
    with pytest.raises(DatasetError, match="none of its 3 demonstrations is a success.*recording"):
        train_rl.run(config(tmp_path / "none", pendulum, episode_length=LIMIT + 9, **more))


def test_a_time_limit_is_bootstrapped_from_the_last_observation(tmp_path, pendulum):
    more = {"gym.success_key": "truncated", "bootstrap_truncated": 1, "nstep": 1}
    work, _ = preloaded(config(tmp_path / "run", pendulum, **more))
    short = lengths(pendulum)[1]
    assert work.replay.num_transitions() == 2 * (LIMIT - 1) + short
    batch = work.replay.sample(512)
    with h5py.File(pendulum) as file:
        last = np.float32(file["data/demo_0/obs/state"][-1])
        fallen = np.float32(file["data/demo_1/obs/state"][-1])
    limit = (batch.next_obs["state"].numpy() == last).all(1)
    assert limit.any() and (batch.bootstrap[limit] == np.float32(0.99)).all()
    fall = (batch.obs["state"].numpy() == fallen).all(1)
    assert fall.any() and (batch.bootstrap[fall] == 0).all()


@pytest.fixture
def scaled(tmp_path, pendulum) -> Path:
    """The same demonstrations with actions in another unit: 10 + 5 a."""
    path = tmp_path / "scaled.hdf5"
    path.write_bytes(pendulum.read_bytes())
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            demo["actions"][...] = 10 + 5 * demo["actions"][()]
    return path


def read(suite: str, data: Path, **more: object) -> ReplayDemos:
    """The demonstrations of a run on states of 23 numbers and actions of 7."""
    task = {"suite": suite, "task_name": "PickPlaceCan", "preload_num_data": 1}
    cfg = config(data.parent / "run", data, **{**task, **more})
    spec = EnvSpec(suite, "PickPlaceCan", {"state": ArraySpec((23,))}, 7, 200)
    return read_preload(cfg, rl_env_config(cfg), spec, ["state"])


def test_what_the_file_says_of_its_actions_is_checked_as_for_bc(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(5,))
    assert len(read("robosuite", path)) == 1
    for kwargs, said in (
        ({"control_delta": False}, "its actions are absolute"),
        ({"kp": 10}, "controller kp was 10"),
    ):
        args = {"env_name": "PickPlaceCan", "env_kwargs": {"controller_configs": kwargs}}
        with h5py.File(path, "r+") as file:
            file["data"].attrs["env_args"] = json.dumps(args)
        with pytest.raises(DatasetError, match=f"d.hdf5', env_args: {said}"):
            read("robosuite", path)
    args = {"env_name": "PickPlaceCan", "env_kwargs": {"action_repeat": 2}}
    with h5py.File(path, "r+") as file:
        file["data"].attrs["env_args"] = json.dumps(args)
    assert len(read("metaworld", path, action_repeat=2)) == 1
    with pytest.raises(DatasetError, match=r"the demonstrations use 2, but action_repeat .* is 1"):
        read("metaworld", path)


SCALE = {"dataset.action_low": "[5]", "dataset.action_high": "[15]"}
KEY = {"gym.success_key": "truncated"}


def test_the_action_range_is_honoured(tmp_path, pendulum, scaled):
    work, log = preloaded(config(tmp_path / "run", scaled, **SCALE, **KEY))
    assert "actions are scaled from [5.0] .. [15.0] to [-1, 1]" in log
    assert set(work.replay.sample(256).action.ravel().tolist()) == {0.0, 1.0}
    with pytest.raises(DatasetError, match=r"scaled.hdf5.*'actions'.*must be in \[-1, 1\]"):
        train_rl.run(config(tmp_path / "unscaled", scaled, **KEY))


def test_the_action_range_is_that_of_the_bc_policy(tmp_path, scaled):
    bc = ["--dataset.use_state=1", f"--dataset.path={scaled}", f"--save_dir={tmp_path / 'bc'}"]
    bc += ["--num_epoch=1", "--epoch_len=2", "--num_eval_episode=0", "--device=cpu"]
    bc += [f"--{k}={v}" for k, v in SCALE.items()]
    train_bc.run(parse_args(train_bc.MainConfig, bc))
    ibrl = {"bc_policy": tmp_path / "bc" / "model0.pt", "q_agent.act_method": "ibrl", **KEY}
    work, log = preloaded(config(tmp_path / "run", scaled, **ibrl))
    assert "actions are scaled from [5.0] .. [15.0]" in log
    assert set(work.replay.sample(256).action.ravel().tolist()) == {0.0, 1.0}
    other = {"dataset.action_low": "[0]", "dataset.action_high": "[20]"}
    with pytest.raises(ConfigError, match=r"dataset.action_low \[0.0\].*bc_policy.*\[5.0\]"):
        train_rl.run(config(tmp_path / "other", scaled, **ibrl, **other))


@pytest.mark.parametrize("bad", ["demonstrations", "weights"])
def test_a_run_is_not_replaced_by_one_whose_inputs_are_refused(
    bad: str, pendulum: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train_rl.run(config(run, pendulum))
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert run / "model0.pt" in before and run / "cfg.yaml" in before
    if bad == "demonstrations":
        again = config(run, write_robomimic(tmp_path / "other.hdf5", lengths=(7,)), overwrite=1)
    else:
        torch.save({"x": torch.zeros(1)}, tmp_path / "x.pt")
        options = {"load_pretrained_agent": tmp_path / "x.pt", "overwrite": 1}
        again = config(run, pendulum, **options)
    with pytest.raises(UserError, match=r"other\.hdf5|x\.pt"):
        train_rl.run(again)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_more_demonstrations_than_the_file_has_are_refused(pendulum: Path, tmp_path: Path) -> None:
    said = r"holds 3 demonstrations, expected at least 9 \(.*preload_num_data of an RL run\)"
    with pytest.raises(DatasetError, match=said):
        train_rl.run(config(tmp_path / "run", pendulum, preload_num_data=9))
    assert not (tmp_path / "run").exists()


def test_demonstrations_that_are_named_but_not_asked_for_are_reported(
    pendulum: Path, tmp_path: Path
) -> None:
    cfg = config(tmp_path / "run", pendulum, preload_num_data=0, num_warm_up_episode=1)
    _, log = preloaded(cfg)
    assert f"note: {pendulum} is not read: preload_num_data is 0" in log


def test_pictures_of_an_older_robosuite_are_reported(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(5,), size=48)
    for version, noted in (("1.4.1", True), ("1.5.1", False)):
        with h5py.File(path, "r+") as file:
            args = json.loads(file["data"].attrs["env_args"]) | {"env_version": version}
            file["data"].attrs["env_args"] = json.dumps(args)
        cfg = {"suite": "robosuite", "task_name": "PickPlaceCan", "preload_num_data": 1}
        run = config(tmp_path / "run", path, **cfg, use_state=0, rl_camera="agentview")
        spec = EnvSpec("robosuite", "PickPlaceCan", {"agentview": ArraySpec((3, 48, 48), "uint8")},
                       7, 200)  # fmt: skip
        demos = read_preload(run, rl_env_config(run), spec, ["agentview"])
        assert len(list(demos)) == 1  # this also closes the file
        assert noted == any("pictures were drawn by robosuite 1.4.1" in x for x in demos.notes)
    bc = ["--dataset.rl_camera=agentview", f"--dataset.path={path}", "--num_eval_episode=0"]
    bc += [
        "--num_epoch=1",
        "--epoch_len=1",
        "--batch_size=4",
        "--device=cpu",
        f"--save_dir={tmp_path / 'bc'}",
    ]
    with h5py.File(path, "r+") as file:
        args = json.loads(file["data"].attrs["env_args"]) | {"env_version": "1.4.1"}
        file["data"].attrs["env_args"] = json.dumps(args)
    train_bc.run(parse_args(train_bc.MainConfig, bc))
    assert "pictures were drawn by robosuite 1.4.1" in (tmp_path / "bc" / "train.log").read_text()


@pytest.mark.parametrize("kind", ["lerobot", "zarr", "minari"])
def test_training_on_another_format_is_the_same_training(tmp_path, pendulum, kind):
    args = ["--dataset", str(pendulum), "--out", str(tmp_path / "copy-v0"), "--format", kind]
    args += ["--fps", "20"] if kind == "lerobot" else []
    copied = convert_dataset.convert(parse_args(convert_dataset.MainConfig, args))
    key = {"gym.success_key": "truncated"}
    runs = [config(tmp_path / f"rl{i}", p, **key) for i, p in enumerate((pendulum, copied))]
    for run in runs:
        train_rl.run(run)
    assert_same_run(*(Path(run.save_dir) for run in runs))
    for i, path in enumerate((pendulum, copied)):
        train_bc.run(
            parse_args(
                train_bc.MainConfig,
                [f"--dataset.path={path}", "--dataset.use_state=1", "--num_epoch=1",
                 "--epoch_len=3", "--num_eval_episode=1", "--num_final_episode=1", "--mp_eval=0",
                 "--env.gym_success_key=truncated", "--device=cpu", f"--save_dir={tmp_path}/bc{i}"],
            )
        )  # fmt: skip
    assert_same_run(tmp_path / "bc0", tmp_path / "bc1")
