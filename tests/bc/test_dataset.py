"""The dataset reader on small real HDF5 files, including every fault it promises to name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bc.dataset import (
    DatasetConfig,
    DatasetError,
    DemoOptions,
    RobomimicDataset,
    read_demos,
)
from bc.loader import DemoFile
from common_utils import run_config
from common_utils.robomimic_keys import PROP_KEYS, STATE_DIMS, STATE_KEYS
from common_utils.run_config import ConfigError
from common_utils.specs import ArraySpec, EnvSpec, SpecError
from common_utils.success_rule import AsRecorded, InfoSays, SparseReward

SIZES = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 14}
SHARED = Path(os.environ.get("SHARED_DATA", "../shared/data"))


def write_robomimic(path: Path, lengths=(7, 5, 9), *, size=8, task="PickPlaceCan") -> Path:
    """A file in robomimic's layout with numbers that tell demo and step apart."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        kwargs = {"robots": ["Panda"], "controller_configs": {"control_delta": True}}
        data.attrs["env_args"] = json.dumps({"env_name": task, "type": 1, "env_kwargs": kwargs})
        for number, length in enumerate(lengths):
            demo = data.create_group(f"demo_{number}")
            demo["actions"] = rng.uniform(-1, 1, (length, 7))
            demo["rewards"] = np.eye(length)[-1]
            demo["dones"] = np.eye(length, dtype=np.int64)[-1]
            obs = demo.create_group("obs")
            for key, dim in SIZES.items():
                obs[key] = rng.normal(size=(length, dim))
            obs["agentview_image"] = rng.integers(0, 255, (length, 3, size, size), np.uint8)
            obs["robot0_eye_in_hand_image"] = rng.integers(
                0, 255, (length, 3, size, size), np.uint8
            )
    return path


def write_metaworld(path: Path, lengths=(6, 4), *, stack=1, newest_first=True, size=8) -> Path:
    """A file in the Meta-World layout, images stacked as asked."""
    rng = np.random.default_rng(1)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for number, length in enumerate(lengths):
            demo = data.create_group(f"demo_{number}")
            demo["actions"] = rng.uniform(-1, 1, (length, 4))
            demo["rewards"] = np.eye(length)[-1]
            demo["dones"] = np.eye(length, dtype=np.int64)[-1]
            frames = rng.integers(1, 255, (length, 3, size, size), np.uint8)
            order = range(stack) if newest_first else reversed(range(stack))
            shifted = [frames[np.maximum(np.arange(length) - k, 0)] for k in order]
            obs = demo.create_group("obs")
            obs["corner2_image"] = np.concatenate(shifted, axis=1)
            obs["plain_image"] = frames
            obs["prop"] = rng.normal(size=(length, 4))
            obs["state"] = rng.normal(size=(length, 39))
    kwargs = {"robots": ["Sawyer"], "action_repeat": 2, "frame_stack": stack}
    config = {"env_name": "Assembly", "env_kwargs": kwargs}
    (path.parent / "env_cfg.json").write_text(json.dumps(config))
    return path


def concat_obs(t: int, frames: np.ndarray, stack: int) -> np.ndarray:
    """The definition in docs/reference/ibrl.md#replay, written out slowly."""
    return np.concatenate(
        [frames[t - k] if t - k >= 0 else np.zeros_like(frames[0]) for k in range(stack)]
    )


def test_state_vector_has_the_specified_key_order(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5")
    data = RobomimicDataset(DatasetConfig(path=str(path), use_state=1, state_stack=3))
    assert data.task_name == "PickPlaceCan" and data.robots == ["Panda"]
    assert data.observation_specs == {"state": ArraySpec((69,), "float32", 3)}
    with h5py.File(path) as file:
        obs = file["data/demo_1/obs"]
        want = np.concatenate([obs[k][:] for k in STATE_KEYS["PickPlaceCan"]], axis=1)
    got = list(data.episodes())[1].observations["state"]
    np.testing.assert_array_equal(got, want.astype(np.float32))
    assert got.shape[1] == STATE_DIMS["PickPlaceCan"]


@pytest.mark.parametrize("max_ram_gb", [8.0, 0.0], ids=["in_ram", "lazy"])
def test_pixel_batches(tmp_path, max_ram_gb):
    path = write_robomimic(tmp_path / "d.hdf5")
    cfg = DatasetConfig(
        path=str(path),
        rl_camera="agentview+robot0_eye_in_hand",
        prop_stack=3,
        obs_stack=2,
        max_ram_gb=max_ram_gb,
    )
    data = RobomimicDataset(cfg)
    assert data.lazy == (max_ram_gb == 0)
    episodes = list(data.episodes())
    table = [(e, t) for e, ep in enumerate(episodes) for t in range(len(ep))]
    rows = np.array([0, 1, 6, 7, 8, 20, 1, 11])
    batch = data.batch_at(rows)
    assert batch.obs["agentview"].dtype == torch.uint8
    for b, row in enumerate(rows):
        episode, t = episodes[table[row][0]], table[row][1]
        for key, stack in (("agentview", 2), ("robot0_eye_in_hand", 2), ("prop", 3)):
            want = concat_obs(t, episode.observations[key], stack)
            np.testing.assert_array_equal(batch.obs[key][b].numpy(), want)
        np.testing.assert_array_equal(batch.action[b].numpy(), episode.actions[t])
    with h5py.File(path) as file:
        want = np.concatenate([file["data/demo_0/obs"][k][:] for k in PROP_KEYS], axis=1)
    np.testing.assert_array_equal(episodes[0].observations["prop"], want.astype(np.float32))
    assert data.observation_specs["agentview"].shape == (6, 8, 8)
    data.close()


def test_sampling_is_uniform_seeded_and_resumes(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(2, 3))
    cfg = DatasetConfig(path=str(path), use_state=1)
    data, twin = RobomimicDataset(cfg, seed=4), RobomimicDataset(cfg, seed=4)
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    first = data.sample_bc(20000)
    assert torch.equal(first.action, twin.sample_bc(20000).action)
    assert (np.random.get_state()[1] == before).all(), "must not draw from the global generator"
    counts = np.unique(first.action[:, 0].numpy(), return_counts=True)[1]
    assert len(counts) == 5 and abs(counts - 4000).max() < 5 * np.sqrt(20000 * 0.2 * 0.8)
    saved = data.state_dict()
    after = data.sample_bc(8).action
    other = RobomimicDataset(cfg, seed=99)
    other.load_state_dict(saved)
    assert torch.equal(other.sample_bc(8).action, after)


def test_metaworld_layout(tmp_path):
    path = write_metaworld(tmp_path / "dataset.hdf5")
    data = RobomimicDataset(
        DatasetConfig(path=str(path), rl_camera="corner2", eval_episode_len=100)
    )
    assert (data.suite, data.task_name, data.action_dim) == ("metaworld", "Assembly", 4)
    assert set(data.observation_specs) == {"corner2", "prop"} and data.image_size == 8
    state = RobomimicDataset(DatasetConfig(path=str(path), use_state=1))
    assert state.observation_specs["state"].shape == (39,)
    spec = EnvSpec("metaworld", "Assembly", state.observation_specs, 4, 100)
    state.check_frames(spec, list(state.observation_specs))
    with pytest.raises(SpecError, match="needs observation '(corner2|prop)'"):
        data.check_frames(spec, list(data.observation_specs))


@pytest.mark.parametrize("newest_first", [True, False])
def test_stacked_image_files_of_either_order_are_unstacked(tmp_path, newest_first):
    path = write_metaworld(tmp_path / "dataset.hdf5", stack=3, newest_first=newest_first)
    data = RobomimicDataset(DatasetConfig(path=str(path), rl_camera="corner2+plain", max_ram_gb=0))
    for episode in data.episodes():
        np.testing.assert_array_equal(
            episode.observations["corner2"], episode.observations["plain"]
        )


def test_natural_order_num_data_and_max_len(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(3,) * 10 + (5, 4))
    data = RobomimicDataset(DatasetConfig(path=str(path), use_state=1))
    assert [e.name for e in data.episodes()][8:] == ["demo_8", "demo_9", "demo_10", "demo_11"]
    assert RobomimicDataset(DatasetConfig(path=str(path), use_state=1, num_data=2)).num_steps == 6
    assert (
        RobomimicDataset(DatasetConfig(path=str(path), use_state=1, max_len=4)).num_episodes == 11
    )
    with pytest.raises(DatasetError, match="12 demonstrations, expected at least 13 "):
        RobomimicDataset(DatasetConfig(path=str(path), use_state=1, num_data=13))
    with pytest.raises(DatasetError, match="demo_10.*longer than dataset.eval_episode_len 4"):
        RobomimicDataset(DatasetConfig(path=str(path), use_state=1, eval_episode_len=4))


def rename(path: Path, **names: str) -> None:
    with h5py.File(path, "r+") as file:
        for old, new in names.items():
            file["data"].move(old, new)


def test_demonstrations_of_other_names_are_read_after_the_others(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(3, 4, 5, 6))
    rename(path, demo_0="episode_10", demo_1="episode_2")
    with h5py.File(path, "r+") as file:
        file["data"].create_group("statistics")["mean"] = np.zeros(7)
    data = RobomimicDataset(DatasetConfig(path=str(path), use_state=1))
    demos = {e.name: len(e) for e in data.episodes()}
    assert list(demos.items()) == [
        ("demo_2", 5), ("demo_3", 6), ("episode_2", 4), ("episode_10", 3)
    ]  # fmt: skip
    assert data.notes == [
        "2 demonstrations are not called demo_*: episode_2, episode_10; they are read after the "
        "2 that are",
        "no demonstration, since without 'actions': statistics",
    ]
    rename(path, demo_2="a", demo_3="b")
    with DemoFile(path) as file:
        assert file.names == ["a", "b", "episode_2", "episode_10"]
        assert [n for n in file.notes if "demo_*" in n] == []


def test_a_file_without_demonstrations_says_what_it_holds(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(3,))
    with h5py.File(path, "r+") as file:
        del file["data/demo_0"]
        for number in range(6):
            file["data"].create_group(f"part_{number}")
    with pytest.raises(DatasetError, match=r"'data': no demonstration.*holds part_0.*\(6 in all"):
        DemoFile(path)


SPARSE = SparseReward("robosuite")


def test_demos_for_the_replay_stop_at_the_first_success(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(6, 4))
    with h5py.File(path, "r+") as file:
        file["data/demo_0/rewards"][3] = 1
    found = read_demos(path, rule=SPARSE, cameras=["agentview"], num_data=2)
    demos = list(found)
    assert [len(d) for d in demos] == [4, 4] and found.num_success == len(found) == 2
    assert found.ends_at == "its first reward of 1 (robosuite)" and found.notes == []
    assert all(d.rewards[-1] == 1 and (d.rewards[:-1] != 1).all() for d in demos)
    assert all(d.success and d.terminated for d in demos)
    assert demos[0].observations["agentview"].shape == (4, 3, 8, 8)
    with h5py.File(path, "r+") as file:
        file["data/demo_1/rewards"][:] = 0
    with pytest.raises(DatasetError, match="d.hdf5', demo_1: no step has reward 1"):
        read_demos(path, rule=SPARSE, use_state=True)
    unfinished = list(read_demos(path, rule=AsRecorded("mine"), use_state=True))
    assert [len(d) for d in unfinished] == [6, 4]


def test_what_a_file_says_of_an_end(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(3, 4, 5))
    with h5py.File(path, "r+") as file:
        for number, ended in enumerate(("truncated", "terminated")):
            file[f"data/demo_{number}"].attrs["ended"] = ended
            file[f"data/demo_{number}"].attrs["success"] = bool(number)
        for demo in file["data"].values():
            demo["infos/reached"] = np.arange(len(demo["actions"])) > 1
    demos = list(read_demos(path, rule=AsRecorded("mine"), use_state=True))
    said = [(d.success, d.terminated) for d in demos]
    assert said == [(False, False), (True, True), (True, True)]
    rule = InfoSays("gym.success_key 'reached'", "reached", ends=True)
    assert [len(d) for d in read_demos(path, rule=rule, use_state=True)] == [3, 3, 3]
    edit(path, "data/demo_1/infos/reached", np.zeros(2))
    with pytest.raises(DatasetError, match="demo_1, 'infos/reached': has 2 steps"):
        read_demos(path, rule=rule, use_state=True)
    for key, value in (("ended", "crashed"), ("success", [1, 0])):
        with h5py.File(path, "r+") as file:
            file["data/demo_2"].attrs[key] = value
        with pytest.raises(DatasetError, match=f"demo_2, '{key}': is .*expected t"):
            read_demos(path, rule=AsRecorded("mine"), use_state=True)
        with h5py.File(path, "r+") as file:
            del file["data/demo_2"].attrs[key]


def test_one_set_of_options_scales_actions_for_both(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5")
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            demo["actions"][...] = 3 + 2 * demo["actions"][()]
    options = DemoOptions(action_low=[1.0], action_high=[5.0], max_len=7)
    data = RobomimicDataset(DatasetConfig(**vars(options), path=str(path), use_state=1))
    for bc, rl in zip(
        data.episodes(), read_demos(path, options, rule=SPARSE, use_state=True), strict=True
    ):
        assert bc.name == rl.name and np.abs(rl.actions).max() <= 1
        np.testing.assert_array_equal(bc.actions, rl.actions)
    with pytest.raises(DatasetError, match=r"demo_0, 'actions'.*must be in \[-1, 1\]"):
        read_demos(path, rule=SPARSE, use_state=True)
    for low, high in (([0.0], [np.nan]), ([0.0], [np.inf]), ([1.0], [1.0])):
        with pytest.raises(ValueError, match="expected finite values below action_high"):
            DemoOptions(action_low=low, action_high=high)


def edit(path: Path, key: str, value) -> None:
    with h5py.File(path, "r+") as file:
        del file[key]
        if value is not None:
            file[key] = value


FAULTS = {
    "nan": ("data/demo_1/obs/object", np.full((5, 14), np.nan), {}, "demo_1, 'obs/object'.*NaN"),
    "length": ("data/demo_1/rewards", np.zeros(4), {}, "demo_1, 'rewards': has 4.*has 5"),
    "range": ("data/demo_2/actions", np.full((9, 7), 1.5), {}, r"demo_2.*1.5.*\[-1, 1\]"),
    "width": ("data/demo_2/actions", np.zeros((9, 6)), {}, r"demo_2, 'actions'.*\[6\]"),
    "axes": ("data/demo_0/actions", np.zeros(7), {}, "demo_0, 'actions': expected 2 axes"),
    "missing_key": (
        "data/demo_1/obs/object",
        None,
        {},
        "demo_1, 'obs/object': missing.*agentview",
    ),
    "no_obs": ("data/demo_1/obs", None, {}, "demo_1, 'obs': missing.*dataset_states_to_obs"),
    "dones": ("data/demo_1/dones", np.zeros(4), {}, "demo_1, 'dones': has 4.*has 5"),
    "dones_range": ("data/demo_1/dones", np.full(5, 2), {}, "demo_1, 'dones': holds 2.*0 and 1"),
    "text": ("data/demo_1/rewards", [b"x"] * 5, {}, "demo_1, 'rewards': expected numbers"),
    "huge": ("data/demo_1/rewards", np.full(5, 1e300), {}, "demo_1, 'rewards'.*infinity.*step 0"),
    "no_group": ("data/demo_1", np.zeros(3), {}, "'demo_1': missing or not a group"),
    "no_frames": (
        "data/demo_0/obs/agentview_image",
        np.zeros((7, 3, 0, 8), np.uint8),
        {"use_state": 0, "rl_camera": "agentview"},
        r"demo_0, 'obs/agentview_image'.*\[7, 3, 0, 8\]",
    ),
    "empty": ("data/demo_1/actions", np.zeros((0, 7)), {}, "demo_1.*no steps"),
    "float_image": (
        "data/demo_0/obs/agentview_image",
        np.zeros((7, 3, 8, 8), np.float32),
        {"use_state": 0, "rl_camera": "agentview"},
        "demo_0, 'obs/agentview_image': expected uint8",
    ),
    "image_size": (
        "data/demo_1/obs/agentview_image",
        np.zeros((5, 3, 9, 9), np.uint8),
        {"use_state": 0, "rl_camera": "agentview"},
        "demo_1, 'obs/agentview_image': frames are",
    ),
    "camera": (
        "data/demo_1/obs/agentview_image",
        None,
        {"use_state": 0, "rl_camera": "agentview"},
        "demo_1, 'obs/agentview_image': missing",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_file_demo_and_key(tmp_path, fault):
    path = write_robomimic(tmp_path / "faulty.hdf5")
    key, value, options, message = FAULTS[fault]
    edit(path, key, value)
    with pytest.raises(DatasetError, match=message) as err:
        RobomimicDataset(DatasetConfig(**{"path": str(path), "use_state": 1, **options}))
    assert "faulty.hdf5" in str(err.value)


def test_a_damaged_name_is_no_foreign_error(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5")
    edit(path, "data/demo_1/obs", None)
    with h5py.File(path, "r+") as file:
        obs = file["data/demo_1"].create_group("obs")
        h5py.h5g.create(obs.id, b"\xff\xfe")
    with pytest.raises(DatasetError, match="demo_1, 'obs': holds a name that is not text"):
        RobomimicDataset(DatasetConfig(path=str(path), use_state=1))


def test_num_samples_must_agree(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5")
    with h5py.File(path, "r+") as file:
        file["data/demo_2"].attrs["num_samples"] = 8
    with pytest.raises(DatasetError, match="demo_2, 'num_samples': says 8, but 'actions' has 9"):
        RobomimicDataset(DatasetConfig(path=str(path), use_state=1))


@pytest.mark.parametrize("layout", [{}, {"chunks": True}, {"chunks": True, "compression": "gzip"}])
def test_single_frames_of_any_file_layout(tmp_path, layout):
    frames = np.random.default_rng(0).integers(0, 255, (9, 3, 6, 7), np.uint8)
    stacked = np.concatenate([frames, np.concatenate([frames[:1], frames[:-1]])], axis=1)
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(9,))
    with h5py.File(path, "r+") as file:
        obs = file["data/demo_0/obs"]
        obs.create_dataset("single_image", data=frames, **layout)
        obs.create_dataset("stacked_image", data=stacked, **layout)
    rows = np.array([1, 4, 8])
    with DemoFile(path) as file:
        for camera in ("single", "stacked"):
            np.testing.assert_array_equal(file.images("demo_0", camera, rows), frames[rows])


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1), size=st.integers(1, 2000), seed=st.integers(0, 2**31 - 1))
def test_damaged_bytes_never_end_in_a_foreign_error(damaged_source, place, size, seed):
    whole, folder = damaged_source
    raw = bytearray(whole)
    start = int(place * (len(raw) - 1))
    noise = np.random.default_rng(seed).integers(0, 256, size, np.uint8).tobytes()
    raw[start : start + size] = noise[: len(raw) - start]
    path = folder / "damaged.hdf5"
    path.write_bytes(raw)
    messages = []
    for options in ({"use_state": 1}, {"rl_camera": "agentview"}, {"max_ram_gb": 0.0}):
        try:
            data = RobomimicDataset(DatasetConfig(path=str(path), **options))
            data.sample_bc(8)
            data.close()
        except DatasetError as error:
            messages.append(str(error))
    assert all("damaged.hdf5" in message for message in messages)


@pytest.fixture(scope="module")
def damaged_source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    return write_robomimic(folder / "whole.hdf5", lengths=(4, 3), size=4).read_bytes(), folder


def test_file_that_shrinks_while_it_is_read(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5", size=64)
    cfg = DatasetConfig(path=str(path), rl_camera="agentview", max_ram_gb=0)
    data = RobomimicDataset(cfg)
    os.truncate(path, 20_000)
    with pytest.raises(DatasetError, match="d.hdf5', demo_2, 'obs/agentview_image'.*end of the"):
        data.batch_at(np.array([20]))
    data.close()


def test_demonstrations_of_another_task_are_refused(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5")
    state = RobomimicDataset(DatasetConfig(path=str(path), use_state=1, state_stack=2))
    specs = {"state": ArraySpec((69,), "float32", 3)}
    can = EnvSpec("robosuite", "PickPlaceCan", specs, 7, 200)
    state.check_frames(can, ["state"])  # the numbers of stacked steps may differ
    square = EnvSpec("robosuite", "NutAssemblySquare", specs, 7, 200)
    with pytest.raises(SpecError, match="robosuite/PickPlaceCan, but.*robosuite/NutAssemblySq"):
        state.check_frames(square, ["state"])
    with pytest.raises(SpecError, match="d.hdf5: holds no observation 'prop'"):
        state.check_frames(can, ["state", "prop"])
    two_arms = EnvSpec("robosuite", "PickPlaceCan", specs, 14, 200)
    with pytest.raises(SpecError, match=r"d.hdf5: action dimension 7.*takes 14"):
        read_demos(path, rule=SPARSE, use_state=True, spec=two_arms, keys=["state"])
    wide = EnvSpec("robosuite", "PickPlaceCan", {"state": ArraySpec((19,))}, 7, 200)
    with pytest.raises(SpecError, match=r"d.hdf5.*'state' must be float32\[23\].*\[19\]"):
        read_demos(path, rule=SPARSE, use_state=True, spec=wide, keys=["state"])


def test_absolute_actions_may_exceed_one(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5")
    edit(path, "data/demo_0/actions", np.full((7, 7), 1.5))
    with h5py.File(path, "r+") as file:
        args = json.loads(file["data"].attrs["env_args"])
        args["env_kwargs"]["controller_configs"]["control_delta"] = False
        file["data"].attrs["env_args"] = json.dumps(args)
    assert RobomimicDataset(DatasetConfig(path=str(path), use_state=1)).num_steps == 21


def test_missing_file_names_the_command():
    path = "release/data/metaworld/BoxClose_frame_stack_1_96x96_end_on_success/nowhere.hdf5"
    with pytest.raises(DatasetError, match="generate_metaworld_dataset.py.*BoxClose") as err:
        RobomimicDataset(DatasetConfig(path=path))
    assert path in str(err.value)
    with pytest.raises(DatasetError, match="does not exist.*generate_demos --task PickPlaceCan"):
        RobomimicDataset(DatasetConfig(path="release/data/robomimic/can/nowhere.hdf5"))
    with pytest.raises(DatasetError, match="dataset.path is empty"):
        RobomimicDataset(DatasetConfig())


def test_cut_off_and_foreign_files(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5", size=32)
    cut = tmp_path / "cut.hdf5"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DatasetError, match=r"cut.hdf5.*cut off.*truncated file"):
        RobomimicDataset(DatasetConfig(path=str(cut), use_state=1))
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["x"] = 1
    with pytest.raises(DatasetError, match="no group 'data'"):
        RobomimicDataset(DatasetConfig(path=str(tmp_path / "other.hdf5"), use_state=1))
    with h5py.File(path, "r+") as file:
        file["data"].attrs["env_args"] = "{nonsense"
    with pytest.raises(DatasetError, match="not valid JSON"):
        RobomimicDataset(DatasetConfig(path=str(path), use_state=1))


def test_unknown_task_without_state_says_which_are_known(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5", task="Mystery")
    with pytest.raises(DatasetError, match="'Mystery'.*NutAssemblySquare"):
        RobomimicDataset(DatasetConfig(path=str(path), use_state=1))


@pytest.mark.parametrize(
    ("option", "match"),
    [({"obs_stack": 0}, "obs_stack"), ({"num_data": 0}, "num_data"), ({"rl_camera": ""}, "camera")],
)
def test_impossible_configs_name_the_field(option, match):
    with pytest.raises(ConfigError, match=match):
        run_config.from_dict(DatasetConfig, option)


def test_real_raw_recording_is_refused_with_the_conversion_command():
    path = SHARED / "human_demos" / "lift_panda_robosuite140.hdf5"
    if not path.is_file():
        pytest.skip(f"{path} absent (set SHARED_DATA to the folder of real datasets)")
    with pytest.raises(DatasetError, match="demo_1.*"):
        RobomimicDataset(DatasetConfig(path=str(path), use_state=1, eval_episode_len=-1))
