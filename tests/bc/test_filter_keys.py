"""robomimic's filter keys (``mask/...``): which demonstrations are read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

import train_bc
import train_rl
from bc.dataset import DatasetConfig, DatasetError, DemoOptions, RobomimicDataset, read_demos
from common_utils import run_config
from common_utils.errors import run_program
from common_utils.success_rule import SparseReward
from tests.bc.test_dataset import write_robomimic
from tools import inspect_dataset

LENGTHS = (7, 5, 9, 4, 6, 3, 8, 2, 10, 11, 12)  # demo_10 comes after demo_2


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with the filter keys that robomimic's split_train_val writes: unordered texts of
    fixed length."""
    path = write_robomimic(tmp_path / "d.hdf5", lengths=LENGTHS)
    with h5py.File(path, "r+") as file:
        file["mask/train"] = np.array(["demo_10", "demo_2", "demo_0"], dtype="S")
        file["mask/valid"] = ["demo_1", "demo_3"]  # texts of any length
    return path


def opened(path: Path, **options: object) -> RobomimicDataset:
    return RobomimicDataset(DatasetConfig(path=str(path), use_state=1, **options))


@pytest.mark.parametrize(
    ("key", "more", "numbers"),
    [
        ("train", {}, [0, 2, 10]),
        ("valid", {}, [1, 3]),
        ("train", {"num_data": 2}, [0, 2]),
        ("train", {"max_len": 9}, [0, 2]),
        ("", {}, list(range(11))),
    ],
)
def test_only_the_listed_demonstrations_are_read(path, key, more, numbers):
    data = opened(path, filter_key=key, **more)
    assert [len(demo) for demo in data.episodes()] == [LENGTHS[i] for i in numbers]
    with h5py.File(path) as file:
        for demo, number in zip(data.episodes(), numbers, strict=True):
            want = file[f"data/demo_{number}/actions"][()]
            np.testing.assert_array_equal(demo.actions, want.astype(np.float32))
    listed = {"train": 3, "valid": 2}.get(key)
    said = [f"filter key {key}: {listed} of its 11 demonstrations"] if key else []
    assert data.notes == said


def test_a_replay_is_filled_with_the_listed_demonstrations(path):
    options = DemoOptions(filter_key="valid")
    demos = read_demos(path, options, rule=SparseReward("robosuite"), use_state=True)
    assert [len(demo) for demo in demos] == [5, 4]
    with pytest.raises(DatasetError, match=r"'mask/valid': holds 2 demonstrations, expected at l"):
        read_demos(path, options, rule=SparseReward("robosuite"), use_state=True, num_data=3)


FAULTS = {
    "absent": (["demo_0", "demo_12", "demo_13"], r"names demo_12, demo_13, not in the file, which"),
    "twice": (["demo_0", "demo_1", "demo_0"], "names demo_0 more than once"),
    "empty": (np.zeros(0, "S6"), "found an empty list, expected names of demonstrations"),
    "numbers": (np.arange(3), r"found int64 of shape \[3\], expected a list of .* names"),
    "table": (np.array([["demo_0"]], "S"), r"found \|S6 of shape \[1, 1\], expected a list"),
    "group": (None, "found a group, expected a list of demonstrations"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_filter_keys_are_named(path, fault, capsys):
    value, message = FAULTS[fault]
    with h5py.File(path, "r+") as file:
        if value is None:
            file.create_group("mask/x")
        else:
            file["mask/x"] = np.array(value, "S") if isinstance(value, list) else value
    with pytest.raises(DatasetError, match=rf"d.hdf5', 'mask/x': {message}"):
        opened(path, filter_key="x")
    assert len(opened(path, filter_key="train").notes) == 1  # the others are read
    assert inspect_dataset.main([str(path), "--demos", "0"]) == 1
    assert "'mask/x': " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("masks", "expected"), [(True, "one of train, valid"), (False, "'': it has no filter keys")]
)
@pytest.mark.parametrize("program", [train_bc, train_rl])
def test_an_unknown_filter_key_lists_those_of_the_file(
    path, tmp_path, masks, expected, program, capsys
):
    if not masks:
        with h5py.File(path, "r+") as file:
            del file["mask"]
    options = ["--dataset.filter_key", "test", "--save_dir", str(tmp_path / "run")]
    if program is train_bc:
        options += ["--dataset.path", str(path), "--dataset.use_state", "1"]
    else:
        options += ["--preload_datapath", str(path), "--preload_num_data", "1", "--use_state", "1"]
        options += ["--task_name", "PickPlaceCan", "--q_agent.act_method", "rl"]
    cfg = run_config.parse_args(program.MainConfig, options)
    assert run_program(program.run, cfg) == 2
    said = f"error: '{path}', 'mask': dataset.filter_key: found 'test', expected {expected}\n"
    assert capsys.readouterr().err == said
    assert not (tmp_path / "run").exists()
