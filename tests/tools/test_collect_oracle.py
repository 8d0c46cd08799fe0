"""tools.collect_oracle: what is in its files, and that only the options decide it."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from bc.dataset import DatasetConfig, RobomimicDataset
from common_utils import run_config
from common_utils.run_config import ConfigError
from env.core import EnvError
from env.factory import make_env, suite_class
from tests import runs
from tools import collect_oracle, generate_demos
from tools.collect_oracle import MainConfig, collect
from tools.recording import PARTS, Parts

ROOT = Path(__file__).resolve().parents[2]


def run(out: Path, task: str = "PARTICLE_2d", **kwargs: Any) -> Path:
    return collect(MainConfig(task=task, out=str(out), **({"num": 3, "replicas": 0} | kwargs)))


def content(path: Path) -> dict[str, np.ndarray]:
    found = {}
    with h5py.File(path, "r") as file:
        found["env_args"] = np.array(file["data"].attrs["env_args"])
        file["data"].visititems(
            lambda name, item: (
                found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
        )
    return found


def assert_same(one: Path, two: Path) -> None:
    a, b = content(one), content(two)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_replicas_change_nothing_and_seeds_everything(tmp_path: Path) -> None:
    one = run(tmp_path / "a", num=5)
    assert_same(one, run(tmp_path / "b", num=5, replicas=2))
    other = content(run(tmp_path / "c", num=5, seed=1))
    assert (other["demo_0/states"] != content(one)["demo_0/states"]).any()


def test_a_cluster_needs_workers() -> None:
    said = "0 plays in this process, expected engine process"
    with pytest.raises(ValueError, match=f"replicas: {said}"):
        MainConfig(replicas=0, engine="ray")
    with pytest.raises(ValueError, match=f"workers: {said}"):
        generate_demos.MainConfig(workers=0, engine="ray")


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add, left = Parts.add, iter(range(4))

    def stopped(self: Parts, number: int, success: bool) -> None:
        add(self, number, success)
        if next(left) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "add", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "a", num=6)
    assert len(Parts(tmp_path / "a" / PARTS).won) == 3
    with pytest.raises(ConfigError, match="noise"):
        run(tmp_path / "a", num=6, noise=0.1)
    assert_same(run(tmp_path / "a", num=6), run(tmp_path / "b", num=6))
    assert not (tmp_path / "a" / PARTS).exists()
    run(tmp_path / "a", num=6)  # is there: nothing to do
    with pytest.raises(ConfigError, match="made with other options"):
        run(tmp_path / "a", num=7)


def test_particle_rows(tmp_path: Path) -> None:
    path = run(tmp_path)
    with h5py.File(path, "r") as file:
        demo = file["data/demo_1"]
        assert demo["actions"].shape == (51, 2) and demo["obs/state"].shape == (51, 8)
        assert list(demo["step_type"][[0, 1, 49, 50]]) == [0, 1, 1, 2]
        assert list(demo["rewards"][-3:]) == [0, 1, 0] and demo.attrs["success"]
        assert np.abs(demo["actions"]).max() <= 1
        # played again from its seed, it is the same
        env = make_env({"suite": "particle", "task": "PARTICLE_2d"})
        obs, _ = env.reset(seed=int(demo.attrs["seed"]))
        for state, action in zip(demo["obs/state"][:50], demo["actions"][:50], strict=True):
            np.testing.assert_array_equal(state, obs["state"])
            obs = env.step(action)[0]
        np.testing.assert_array_equal(demo["obs/state"][50], obs["state"])


def test_without_boundary_rows_the_reader_sees_the_same_steps(tmp_path: Path) -> None:
    def read(path: Path, **kwargs: Any) -> list[Any]:
        cfg = DatasetConfig(path=str(path), use_state=1, eval_episode_len=50, **kwargs)
        with closing(RobomimicDataset(cfg)) as data:
            assert data.suite == "particle" and data.task_name == "PARTICLE_2d"
            return list(data.episodes())

    with_rows = run(tmp_path / "a")
    without = run(tmp_path / "b", boundary_rows=0)
    assert [len(d) for d in read(with_rows)] == [51] * 3
    for one, two in zip(read(with_rows, boundary_rows=0), read(without), strict=True):
        np.testing.assert_array_equal(one.actions, two.actions)
        np.testing.assert_array_equal(one.observations["state"], two.observations["state"])


def test_block_pushing_with_pictures_and_a_video(tmp_path: Path) -> None:
    path = run(
        tmp_path, "REACH", num=2, use_image_obs=1, image_size=24, render_quality="fast",
        num_videos=1, goal_tolerance=0.03,
    )  # fmt: skip
    with h5py.File(path, "r") as file:
        args = json.loads(file["data"].attrs["env_args"])
        demo = file["data/demo_0"]
        length = len(demo["actions"])
        assert demo["obs/rgb_image"].shape == (length, 3, 24, 32)
        assert demo["obs/state"].shape == (length, 10)
        assert demo["rewards"][-2] == 1 and demo["rewards"][-1] == 0
    assert args["suite"] == "block_pushing" and args["env_name"] == "REACH"
    assert args["env_kwargs"] == {
        "cameras": ["rgb"], "rl_image_size": 24, "image_size": 24, "use_state": 1,
        "goal_tolerance": 0.03, "render_quality": "fast",
    }  # fmt: skip
    assert json.loads((tmp_path / "env_cfg.json").read_text()) == args
    assert len(list((tmp_path / "videos").glob("0000_success.mp4"))) == 1
    cfg = DatasetConfig(path=str(path), rl_camera="rgb", eval_episode_len=60, obs_stack=2)
    with closing(RobomimicDataset(cfg)) as data:
        assert data.observation_specs["rgb"].shape == (6, 24, 32)
        env = make_env(
            {"suite": data.suite, "task": data.task_name, "cameras": ["rgb"],
             "rl_image_size": data.image_size, "obs_stack": 2}
        )  # fmt: skip
        data.check_frames(env.spec, list(data.observation_specs))
        env.close()


def test_failures_can_be_left_out(tmp_path: Path) -> None:
    # so much noise that some episodes miss a goal
    both = content(run(tmp_path / "a", num=8, noise=0.07))
    wins = content(run(tmp_path / "b", num=8, noise=0.07, save_successes_only=1))
    with h5py.File(tmp_path / "a" / "dataset.hdf5", "r") as file:
        outcomes = [bool(file[f"data/demo_{i}"].attrs["success"]) for i in range(8)]
    assert 0 < sum(outcomes) < 8
    with h5py.File(tmp_path / "b" / "dataset.hdf5", "r") as file:
        assert all(d.attrs["success"] for d in file["data"].values())
    first = outcomes.index(True)
    np.testing.assert_array_equal(both[f"demo_{first}/states"], wins["demo_0/states"])


def test_rewarded_episodes_of_either_order_are_kept(tmp_path: Path) -> None:
    both = content(run(tmp_path / "a", num=8, random_order=1))
    wins = content(run(tmp_path / "b", num=8, random_order=1, save_successes_only=1))
    assert sum(both[f"demo_{i}/rewards"].sum() for i in range(8)) == 8
    with h5py.File(tmp_path / "b" / "dataset.hdf5", "r") as file:
        outcomes = [bool(d.attrs["success"]) for d in file["data"].values()]
    assert 0 < sum(outcomes) < 8  # success: the second goal at the end
    assert all((both[f"demo_{i}/states"] == wins[f"demo_{i}/states"]).all() for i in range(8))


@pytest.mark.parametrize(
    ("kwargs", "names"),
    [
        ({"task": "PUSH", "random_order": 1}, ["random_order", "PUSH"]),
        ({"task": "PARTICLE_2d", "use_image_obs": 1}, ["use_image_obs", "PARTICLE_2d"]),
        ({"task": "PUSH", "wait": 3}, ["wait", "PUSH"]),
        ({"task": "Lift", "suite": "robosuite", "wait": 3}, ["wait", "Lift"]),
        ({"suite": "chess"}, ["suite: ", "chess", "particle"]),
        ({"num": 0}, ["num: ", "got 0"]),
        ({"noise": -1.0}, ["noise: ", "got -1.0"]),
        ({"shared_memory": 1, "replicas": 2}, ["shared_memory", "replicas 0, got 2"]),
    ],
)
def test_options_that_do_not_fit_are_told(kwargs: dict, names: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        run_config.from_dict(MainConfig, kwargs)
    assert all(name in str(error.value) for name in names)


def test_unknown_task_and_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(EnvError, match="SHOVE"):
        run(tmp_path, "SHOVE")
    with pytest.raises(ConfigError, match="release/data/ibc"):
        collect(MainConfig())
    kitchen = MainConfig(task="kitchen-complete-v0", suite="d4rl", out=str(tmp_path))
    with pytest.raises(EnvError, match="no expert for suite 'd4rl'"):
        collect(kitchen)


def test_command_line(tmp_path: Path) -> None:
    command = ["-m", "tools.collect_oracle", "--task", "PARTICLE_1d"]
    command += ["--num", "2", "--replicas", "0", "--out", str(tmp_path)]
    done = runs.program(*command)
    assert done.returncode == 0, done.stderr
    assert "2 demonstrations of PARTICLE_1d" in done.stdout and "1.000" in done.stdout
    command[command.index("PARTICLE_1d")] = "PARTICLE_0d"
    done = runs.program(*command)
    assert done.returncode == 2 and done.stderr.startswith("error: task 'PARTICLE_0d'")


def test_tasks_know_their_suites() -> None:
    assert MainConfig("Particle-v0").suite_name == "particle"
    assert MainConfig("BlockPush-v0").suite_name == "block_pushing"
    assert MainConfig("Lift", suite="robosuite").suite_name == "robosuite"
    assert MainConfig("BlockPushDiscontinuous-v0", wait=3).oracle_options == {"wait": 3}
    options = {"wait_at_first_goal": 1, "random_order": True}
    assert MainConfig("PARTICLE_2d", random_order=1).oracle_options == options


def test_options_for_some_suites_are_declared_by_them() -> None:
    taken = {
        name
        for suite, task in {"particle": "PARTICLE", "block_pushing": "PUSH_DISCONTINUOUS"}.items()
        for name in suite_class(suite).oracle_options(task)
    }
    assert taken == set(collect_oracle.NOT_FOR_ALL)
    assert not any(suite_class(suite).oracle_options("") for suite in ("robosuite", "gymnasium"))
