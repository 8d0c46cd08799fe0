"""Minari datasets, recorded here, in this project's layout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gymnasium
import gymnasium_robotics  # noqa: F401  (registers its environments)
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from bc.dataset import DatasetConfig, DatasetError, RobomimicDataset
from common_utils import run_config
from common_utils.run_config import ConfigError
from env.factory import make_env
from tools.convert_minari import MainConfig, convert, local_datasets

# minari wants descriptions of published datasets
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")

REPO = Path(__file__).resolve().parents[2]
COMPLETE = ["microwave", "kettle", "light switch", "slide cabinet"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Minari's folder, empty."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def record(env_id: str, name: str, lengths: tuple[int, ...] = (5, 3), **kwargs: object) -> None:
    """A Minari dataset: episode i has seed i and random actions."""
    env = gymnasium.make(env_id, disable_env_checker=True, **kwargs)
    env.action_space.seed(0)
    episodes = []
    for seed, length in enumerate(lengths):
        observations, rewards, infos = [env.reset(seed=seed)[0]], [], []
        actions = np.stack([env.action_space.sample() for _ in range(length)])
        for action in actions:
            observation, reward, _, _, info = env.step(action)
            observations.append(observation)
            rewards.append(reward)
            infos.append({k: v for k, v in info.items() if np.ndim(v) == 0})
        ends = [False] * length
        truncations = [*ends[1:], True]
        episodes.append(
            EpisodeBuffer(
                seed, seed, None, stacked(observations), actions, rewards, ends, truncations,
                stacked(infos) if infos[0] else None,
            )
        )  # fmt: skip
    minari.create_dataset_from_buffers(
        name, episodes, env, algorithm_name="random", author="test", author_email="t@example.org"
    )
    env.close()


def stacked(values: list) -> object:
    """Arrays [T, ...] from T observations."""
    if isinstance(values[0], dict):
        return {key: stacked([v[key] for v in values]) for key in values[0]}
    return np.stack(values)


def read(path: Path, **kwargs: object) -> RobomimicDataset:
    return RobomimicDataset(
        DatasetConfig(path=str(path), use_state=1, eval_episode_len=-1, **kwargs)
    )


def test_adroit_becomes_the_task_of_d4rl(root: Path, tmp_path: Path) -> None:
    record("AdroitHandDoor-v1", "D4RL/door/test-v0")
    path = convert(MainConfig(dataset="D4RL/door/test-v0", out=str(tmp_path / "out")))
    data = read(path)
    assert (data.suite, data.task_name) == ("d4rl", "door-human-v0")
    env = make_env({"suite": "d4rl", "task": "door-human-v0"})
    data.check_frames(env.spec, list(data.observation_specs))
    demos = list(data.episodes())
    assert [len(d) for d in demos] == [5, 3]
    for seed, demo in enumerate(demos):  # the same episodes, played again
        obs = env.reset(seed=seed)[0]
        for state, action in zip(demo.observations["state"], demo.actions, strict=True):
            np.testing.assert_array_equal(obs["state"], state)
            obs = env.step(action)[0]
    original = minari.load_dataset("D4RL/door/test-v0")
    with h5py.File(path) as file:
        for i, episode in enumerate(original.iterate_episodes()):
            demo = file[f"data/demo_{i}"]
            np.testing.assert_array_equal(demo["actions"], episode.actions)
            np.testing.assert_array_equal(demo["rewards"], episode.rewards)
            assert demo.attrs["minari_episode"] == episode.id
            assert list(demo["dones"]) == [0] * (len(episode) - 1) + [1]


def test_kitchen_is_mapped_to_60_numbers(root: Path, tmp_path: Path) -> None:
    record("FrankaKitchen-v1", "my/kitchen-v0", (4,), tasks_to_complete=COMPLETE)
    data = read(convert(MainConfig(dataset="my/kitchen-v0", out=str(tmp_path / "out"))))
    assert data.task_name == "kitchen-complete-v0"
    env = make_env({"suite": "d4rl", "task": "kitchen-complete-v0"})
    data.check_frames(env.spec, list(data.observation_specs))
    (demo,) = data.episodes()
    obs = env.reset(seed=0)[0]
    for state, action in zip(demo.observations["state"], demo.actions, strict=True):
        np.testing.assert_allclose(obs["state"], state, atol=1e-6)
        obs = env.step(action)[0]


def test_kitchen_with_other_subtasks_is_refused(root: Path, tmp_path: Path) -> None:
    record("FrankaKitchen-v1", "my/kettle-v0", (1,), tasks_to_complete=["kettle"])
    with pytest.raises(ConfigError, match="kettle.*kitchen-mixed-v0"):
        convert(MainConfig(dataset="my/kettle-v0", out=str(tmp_path / "out")))


def test_any_other_dataset_keeps_its_environment(root: Path, tmp_path: Path) -> None:
    record("Pendulum-v1", "my/pendulum-v0")
    path = convert(MainConfig(dataset="my/pendulum-v0", out=str(tmp_path / "out"), num=1))
    data = read(path)
    assert (data.suite, data.task_name, data.num_episodes) == ("gymnasium", "Pendulum-v1", 1)
    first = next(iter(minari.load_dataset("my/pendulum-v0").iterate_episodes()))
    (demo,) = data.episodes()
    np.testing.assert_allclose(demo.actions * 2, first.actions, atol=1e-6)  # bounds are +-2
    np.testing.assert_array_equal(demo.observations["state"], first.observations[:-1])


def test_observations_by_key(root: Path, tmp_path: Path) -> None:
    gymnasium.register("test/Reach-v0", entry_point="tests.env.my_tasks:Reach")
    record("test/Reach-v0", "my/reach-v0")
    cfg = MainConfig(dataset="my/reach-v0", out=str(tmp_path / "out"))
    for key, message in (("", "goal, joints, top"), ("joint", "name one"), ("top", "images")):
        cfg.state_key = key
        with pytest.raises(ConfigError, match=message):
            convert(cfg)
    cfg.state_key = "joints+goal"
    (demo, _) = read(convert(cfg)).episodes()
    first = next(iter(minari.load_dataset("my/reach-v0").iterate_episodes()))
    expected = np.hstack([first.observations["joints"], first.observations["goal"]])[:-1]
    np.testing.assert_array_equal(demo.observations["state"], expected)
    with h5py.File(tmp_path / "out" / "dataset.hdf5") as file:
        stored = file["data/demo_0"]
        assert stored.attrs["ended"] == "truncated"
        np.testing.assert_array_equal(stored["infos/reached"], first.infos["reached"])
    with pytest.raises(ConfigError, match="overwrite"):
        convert(cfg)
    cfg.overwrite = 1
    convert(cfg)


def test_actions_outside_their_bounds(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record("Pendulum-v1", "my/pendulum-v0")
    with h5py.File(root / "my" / "pendulum-v0" / "data" / "main_data.hdf5", "a") as file:
        file["episode_0/actions"][2] = 3.0
    cfg = MainConfig(dataset="my/pendulum-v0", out=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="episode 0, actions: up to 1.5 times"):
        convert(cfg)
    cfg.clip_actions = 1
    demo = next(iter(read(convert(cfg)).episodes()))
    assert demo.actions[2] == 1
    note = "note: 1 actions of 1 episodes exceeded their bounds (up to 1.5 times) and were"
    assert note in capsys.readouterr().out


def test_a_missing_dataset_is_reported_with_the_command(root: Path, tmp_path: Path) -> None:
    record("Pendulum-v1", "my/pendulum-v0", (2,))
    assert local_datasets(root) == ["my/pendulum-v0"]
    command = [sys.executable, "-m", "tools.convert_minari", "--out", str(tmp_path / "out")]
    command += ["--dataset", "D4RL/door/human-v2"]
    done = subprocess.run(command, cwd=REPO, text=True, capture_output=True, timeout=300)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: dataset: 'D4RL/door/human-v2'")
    assert "minari download D4RL/door/human-v2" in done.stderr
    assert "my/pendulum-v0" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_reader_names_the_commands_for_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as error:
        read(tmp_path / "kitchen-mixed-v0" / "dataset.hdf5")
    message = str(error.value)
    assert "minari download D4RL/kitchen/mixed-v2;" in message
    assert f"--dataset D4RL/kitchen/mixed-v2 --out {tmp_path}/kitchen-mixed-v0" in message


def test_a_damaged_dataset_is_reported(root: Path, tmp_path: Path) -> None:
    record("Pendulum-v1", "my/pendulum-v0", (2,))
    (root / "my" / "pendulum-v0" / "data" / "metadata.json").write_text("{")
    with pytest.raises(ConfigError, match="my/pendulum-v0.*cannot be read"):
        convert(MainConfig(dataset="my/pendulum-v0", out=str(tmp_path / "out")))
    with pytest.raises(ConfigError, match="num: expected -1 or an integer of at least 1, got 0"):
        run_config.from_dict(MainConfig, {"num": 0})
