"""Whole runs on real robosuite (Lift from states): resume, saved successes, evaluation, faults."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml

import train_bc
import train_rl
from bc.dataset import RobomimicDataset, read_demos
from bc.explicit.bc_policy import StateBcPolicy, StateBcPolicyConfig
from bc.loader import DemoFile
from common_utils import run_config
from common_utils.errors import run_program
from common_utils.gl import best_backend
from common_utils.success_rule import SparseReward
from evaluate import eval as evaluate_cli
from tests import forkserver
from tests.runs import assert_same_run, file_size_limit
from tests.train.test_train_rl import wait_for_step
from tools import dataset_states_to_obs, generate_demos
from tools.inspect_dataset import inspect

REPO = Path(__file__).resolve().parents[2]
Main = Any  # of an entry script: run_program(main) -> exit status


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the subprocesses: sums over several threads round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def lift(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``demos/processed_data96.hdf5`` of Lift, and ``bc/model0.pt`` trained on it."""
    root = tmp_path_factory.mktemp("lift")
    demos = generate_demos.MainConfig(
        task="Lift", num=5, noise=0.05, cameras=[], workers=0, out=str(root / "demos")
    )
    data = generate_demos.generate(demos)
    options = {
        "dataset.path": data,
        "dataset.use_state": 1,
        "dataset.state_stack": 3,
        "dataset.eval_episode_len": 80,
        "state_policy.hidden_dim": 128,
        "state_policy.dropout": 0,
        "lr": 1e-3,
        "batch_size": 64,
        "num_epoch": 1,
        "epoch_len": 1000,
        "num_eval_episode": 0,
        "num_final_episode": 0,
        "save_dir": root / "bc",
    }
    args = [f"--{k}={v}" for k, v in options.items()]
    train_bc.run(run_config.parse_args(train_bc.MainConfig, args))
    return root


def arguments(lift: Path, save_dir: Path, *more: str) -> list[str]:
    options = {
        "task_name": "Lift",
        "use_state": 1,
        "state_stack": 3,
        "episode_length": 50,
        "bc_policy": lift / "bc" / "model0.pt",
        "preload_num_data": 3,
        "preload_datapath": lift / "demos" / "processed_data96.hdf5",
        "num_warm_up_episode": 1,
        "num_train_step": 240,
        "log_per_step": 40,
        "num_eval_episode": 1,
        "batch_size": 32,
        "q_agent.act_method": "ibrl",
        "q_agent.state_critic.hidden_dim": 32,
        "q_agent.state_actor.hidden_dim": 32,
        "stddev_max": 0.1,
        "save_dir": save_dir,
    }
    return [*(f"--{k}={v}" for k, v in options.items()), *more]


def train(args: list[str]) -> train_rl.Workspace:
    return train_rl.run(run_config.parse_args(train_rl.MainConfig, args))


# ------------------------------------------------------------ resume, dead workers


def workers_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(c) for c in children if "env.worker" in Path(f"/proc/{c}/cmdline").read_text()]


def test_a_worker_that_dies_in_an_evaluation_changes_nothing(lift: Path, tmp_path: Path) -> None:
    more = ("--mp_eval=1", "--num_eval_worker=1")
    whole, save_dir = tmp_path / "whole", tmp_path / "run"
    train(arguments(lift, whole, *more))
    words = ["train_rl.py", *arguments(lift, save_dir, *more)]
    process = forkserver.Program(words, os.environ | {"MUJOCO_GL": "disabled"})
    wait_for_step(save_dir, 40, process)
    time.sleep(0.1)
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    done = process.done(600)
    assert process.returncode == 0, done.stderr
    assert re.search(r"evaluation worker 0 .*was killed by signal 9", done.stdout + done.stderr)
    assert_same_run(whole, save_dir)


# ----------------------------------------------------------------- saved successes


def test_saved_successes_are_demonstrations(lift: Path, tmp_path: Path) -> None:
    """They replay to the same states, observations and rewards, and are read as any others."""
    run = tmp_path / "run"
    more = ("--save_per_success=1", "--env_reward_scale=0.5", "--num_warm_up_episode=9")
    more += ("--episode_length=80", "--num_train_step=5", "--num_eval_episode=0")
    work = train(arguments(lift, run, *more))
    assert work.replay.successes.num_success == work.replay.num_success - 3 > 0
    assert not (run / f"data{work.replay.successes.num_success + 1}.h5").exists()
    path = run / "data1.h5"
    with DemoFile(path) as file:
        assert (file.suite, file.env_name, len(file.names)) == ("robosuite", "Lift", 1)
        assert file.rewards("demo_0").tolist() == [0.0] * (file.length("demo_0") - 1) + [1.0]
        assert file.vector("demo_0", "prop").shape[1] == 9
    assert inspect(path).problems == {}
    cfg = run_config.from_dict(train_bc.MainConfig, {}).dataset
    cfg.path, cfg.use_state, cfg.state_stack = str(path), 1, 3
    dataset = RobomimicDataset(cfg)
    assert dataset.robots == ["Panda"] and dataset.sample_bc(4).obs["state"].shape == (4, 57)
    args = ["--dataset", str(path), "--output_folder", str(tmp_path / "again"), "--camera_names"]
    assert run_program(dataset_states_to_obs.main, [*args, "--workers", "0"]) == 0
    with h5py.File(path) as saved, h5py.File(tmp_path / "again/processed_data96.hdf5") as again:
        one, two = saved["data/demo_0"], again["data/demo_0"]
        assert set(one["obs"]) == {"state", "sim_state", *two["obs"]}
        for key in ("states", "actions", "rewards"):
            np.testing.assert_array_equal(one[key], two[key])
        for key in two["obs"]:
            np.testing.assert_allclose(one["obs"][key], two["obs"][key], atol=1e-6)
        assert list(two.attrs["notes"]) == [] and list(two.attrs["taken_over"]) == ["cube_main"]
        # played from the recorded states, the actions lead to the next ones
        assert two.attrs["single_step_error"] < 1e-6
    assert (
        len(
            list(
                read_demos(
                    run / "data1.h5",
                    rule=SparseReward("robosuite"),
                    use_state=True,
                    spec=work.spec,
                )
            )
        )
        == 1
    )


PIXELS = """
import sys
import h5py, numpy as np, torch
import train_rl
from common_utils import run_config
from common_utils.logger import RunLogger
from env.robosuite.control import Noise
from env.robosuite.experts import task_expert
from tools.inspect_dataset import inspect

cfg = run_config.parse_args(train_rl.MainConfig, sys.argv[1:])
work = train_rl.Workspace(cfg)
with RunLogger(cfg.save_dir) as work.log:
    work.play.restart()
    env = work.envs.env
    expert = task_expert("Lift", env.sim, 0, Noise(0.0, 0.0))
    while not work.step_env(lambda _: [torch.from_numpy(expert.act().astype(np.float32))]):
        pass
times = work.watch.seconds
assert times["env"] > 0 and times["rendering"] > 0, times
seed, actions = env.state_dict()["seed"], env.state_dict()["actions"]
assert list(work.eval_pool.env_cfg["cameras"]) == ["robot0_eye_in_hand"]
path = work.save_dir / "data1.h5"
assert inspect(path).problems == {}, inspect(path).problems
with h5py.File(path) as file:
    demo = file["data/demo_0"]
    obs = demo["obs"]
    images = {k for k in obs if k.endswith("_image")}
    assert images == {"agentview_image", "robot0_eye_in_hand_image"}, set(obs)
    assert obs["prop"].shape == (len(actions), 27) and obs["prop"].attrs["stack"] == 3
    frame, _ = env.reset(seed=seed)
    for t, action in enumerate(actions[:3]):
        for camera in ("agentview", "robot0_eye_in_hand"):
            np.testing.assert_array_equal(obs[camera + "_image"][t], frame[camera])
        np.testing.assert_array_equal(obs["prop"][t], frame["prop"])
        frame = env.step(np.array(action))[0]
work.close()
"""


def test_saved_successes_of_pixel_runs_have_both_pictures(tmp_path: Path) -> None:
    options = {
        "task_name": "Lift",
        "episode_length": 60,
        "image_size": 64,
        "prop_stack": 3,
        "render_quality": "fast",
        "q_agent.use_prop": 1,
        "q_agent.enc_type": "drq",
        "save_per_success": 1,
        "save_dir": tmp_path,
    }
    words = ["-c", PIXELS, *(f"--{k}={v}" for k, v in options.items())]
    variables = os.environ | {"MUJOCO_GL": best_backend()}
    done = forkserver.run(*words, variables=variables, timeout=600)
    assert done.returncode == 0, done.stderr


# ----------------------------------------------------------------------- evaluation


def games(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[list[str], str]:
    assert run_program(evaluate_cli.main, ["--num_game=3", *args]) == 0
    lines = capsys.readouterr().out.splitlines()
    return sorted(x for x in lines if x.startswith("seed ")), "\n".join(lines)


def test_evaluations_agree_and_folders_are_ranked(
    lift: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weight = f"--weight={lift / 'bc' / 'model0.pt'}"
    here, printed = games(capsys, weight, "--mp=0")
    assert len(here) == 3 and re.search(r"success \d\.\d+ \[\d\.\d+, \d\.\d+\] \(n=3\)", printed)
    assert games(capsys, weight, "--mp=2", "--one_by_one=1")[0] == here
    _, table = games(capsys, f"--folder={lift}", "--include=.pt", "--mp=0")
    assert "95 % interval" in table and re.search(r"bc/(model0|latest).pt +\d\.\d+ +\[", table)


# --------------------------------------------------------------------------- faults


def refused(main: Main, args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the program ends with."""
    before, sys.argv = sys.argv, ["program", *args]
    try:
        assert run_program(main) == 2
    finally:
        sys.argv = before
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[-1].startswith("error: ") and len(errors) == 1, errors
    return errors[-1]


def cut_off(lift: Path, folder: Path) -> Path:
    """Half of a demonstration file."""
    data = (lift / "demos/processed_data96.hdf5").read_bytes()
    path = folder / "half.hdf5"
    path.write_bytes(data[: len(data) // 2])
    return path


def two_armed(lift: Path, folder: Path) -> tuple[Path, Path]:
    """Demonstrations of Lift with 14 action dimensions, and such a policy."""
    path = folder / "demos14.hdf5"
    shutil.copy(lift / "demos/processed_data96.hdf5", path)
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            actions = np.tile(demo["actions"][:], 2)
            del demo["actions"]
            demo["actions"] = actions
    tree = yaml.safe_load((lift / "bc/cfg.yaml").read_text())
    (folder / "cfg.yaml").write_text(yaml.safe_dump(tree | {"action_dim": 14}))
    policy = StateBcPolicy([57], 14, StateBcPolicyConfig(hidden_dim=128, dropout=0))
    torch.save(policy.state_dict(), folder / "model0.pt")
    return path, folder / "model0.pt"


def test_what_does_not_fit_is_reported(
    lift: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_dir = tmp_path / "run"
    rl = train_rl.main
    fits = arguments(lift, save_dir)
    demos14, policy14 = two_armed(lift, tmp_path)
    said = refused(rl, [*fits, f"--bc_policy={policy14}"], capsys)
    assert "bc_policy" in said and "action dimension 14, but robosuite/Lift takes 7" in said
    said = refused(rl, [*fits, f"--preload_datapath={demos14}"], capsys)
    assert str(demos14) in said and "action dimension 14" in said
    assert not save_dir.exists()
    half = cut_off(lift, tmp_path)
    said = refused(rl, [*fits, f"--preload_datapath={half}"], capsys)
    assert f"'{half}' cannot be read as HDF5 (damaged, cut off" in said
    bc = [f"--dataset.path={half}", "--dataset.use_state=1", f"--save_dir={tmp_path / 'bc'}"]
    assert f"'{half}' cannot be read as HDF5" in refused(train_bc.main, bc, capsys)
    can = ["--task_name=PickPlaceCan", "--q_agent.act_method=rl", "--bc_policy="]
    printed = refused(rl, [*fits, *can], capsys)
    assert "demonstrations of robosuite/Lift, but the environment is robosuite/PickPlace" in printed

    pixels = ["--use_state=0", "--q_agent.act_method=rl", "--bc_policy=", "--preload_num_data=0"]
    printed = refused(rl, [*fits, *pixels, "--rl_camera=side"], capsys)
    assert "camera 'side' does not exist in Lift; expected one of frontview, " in printed
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    monkeypatch.setattr("env.rendering._context", None)
    printed = refused(rl, [*fits, *pixels, "--rl_camera=agentview"], capsys)
    assert "OpenGL rendering is not available here (MUJOCO_GL=disabled)" in printed
    # what a worker refuses is printed as plainly
    generate = ["--task=Lift", "--num=1", "--workers=1", f"--out={tmp_path / 'new'}"]
    printed = refused(generate_demos.main, [*generate, '--cameras=["side"]'], capsys)
    assert "recording worker 0 failed while building its environment: camera 'side'" in printed


def test_a_full_disk_while_training_is_reported_and_nothing_is_lost(
    lift: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, save_dir = tmp_path / "whole", tmp_path / "run"
    short = ("--num_eval_episode=0", "--log_per_step=20", "--num_train_step=60")
    train(arguments(lift, whole, *short))
    train(arguments(lift, save_dir, *short, "--num_train_step=20"))
    resume = arguments(lift, save_dir, *short, "--resume=1")
    with file_size_limit(60_000):
        said = refused(train_rl.main, resume, capsys)
    assert f"save_dir '{save_dir}': the file size limit is reached" in said
    assert "state/step_000000020_1 is kept, --resume 1 continues from it" in said
    train(resume)
    assert_same_run(whole, save_dir)
