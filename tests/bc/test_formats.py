"""The table of formats, and the choice of keys, which is the same for all of them."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from bc.dataset import DatasetConfig, RobomimicDataset
from bc.dataset_config import KeyOptions
from bc.demos import DatasetError
from bc.formats import FORMATS, open_demos
from tests.bc.test_dataset import write_robomimic


def test_a_folder_in_no_known_format_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="in no known format of demonstrations") as error:
        open_demos(tmp_path)
    assert all(row.name in str(error.value) and row.looks in str(error.value) for row in FORMATS)


def test_chosen_keys_make_up_state_proprioception_and_actions(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5")
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            demo["actions_delta"] = demo["actions"][:, :3] / 2
            demo["bonus"] = demo["rewards"][:] * 5
    keys = KeyOptions(
        state="object+robot0_eef_pos", prop="robot0_eef_pos", action="actions_delta+actions",
        reward="bonus",
    )  # fmt: skip
    with open_demos(path, keys) as demos, h5py.File(path) as file:
        demo = file["data/demo_1"]
        parts = [demo["obs/object"][:], demo["obs/robot0_eef_pos"][:]]
        want = np.concatenate(parts, axis=1).astype(np.float32)
        np.testing.assert_array_equal(demos.vector("demo_1", "state"), want)
        np.testing.assert_array_equal(demos.vector("demo_1", "prop"), want[:, 14:])
        actions = np.concatenate([demo["actions_delta"][:], demo["actions"][:]], axis=1)
        np.testing.assert_array_equal(demos.actions("demo_1"), actions.astype(np.float32))
        np.testing.assert_array_equal(demos.rewards("demo_1"), demo["bonus"][:])


def test_a_camera_may_have_another_name_in_the_file(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5")
    keys = KeyOptions(cameras="front=agentview_image")
    cfg = DatasetConfig(path=str(path), rl_camera="front", keys=keys)
    front = next(iter(RobomimicDataset(cfg).episodes())).observations["front"]
    cfg = DatasetConfig(path=str(path), rl_camera="agentview")
    agentview = next(iter(RobomimicDataset(cfg).episodes())).observations["agentview"]
    np.testing.assert_array_equal(front, agentview)


@pytest.mark.parametrize("keys, where", [
    (KeyOptions(state="object+nothing"), "demo_0, 'obs/nothing': missing; the demo"),
    (KeyOptions(action="nothing"), "demo_0, 'nothing': missing"),
    (KeyOptions(reward="nothing"), "demo_0, 'nothing': missing"),
])  # fmt: skip
def test_keys_that_are_not_there_are_named(tmp_path, keys, where):
    path = write_robomimic(tmp_path / "d.hdf5")
    with pytest.raises(DatasetError, match=where):
        RobomimicDataset(DatasetConfig(path=str(path), use_state=1, keys=keys))


def test_cameras_that_are_no_pairs_are_refused():
    with pytest.raises(ValueError, match="cameras: 'agentview', expected camera=key"):
        KeyOptions(cameras="a=b+agentview")
