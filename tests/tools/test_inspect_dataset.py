"""The dataset inspector: what it says of good, faulty, raw and damaged files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import imageio.v2 as imageio
import numpy as np
import pytest

from common_utils.errors import run_program
from tests.bc.test_dataset import edit, write_metaworld, write_robomimic
from tests.runs import program
from tools import inspect_dataset

SHARED = Path(os.environ.get("SHARED_DATA", "../shared/data"))


def problems(path: Path) -> dict[str, list[str]]:
    return inspect_dataset.inspect(path).problems


def test_summary_of_a_good_file(tmp_path, capsys):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7, 5, 9), size=16)
    report = inspect_dataset.inspect(path)
    assert report.problems == {} and not report.raw
    assert report.lengths == [7, 5, 9] and report.returns == [1, 1, 1]
    assert report.first_success == [7, 5, 9]
    assert report.facts["environment"] == "robosuite/PickPlaceCan"
    assert report.facts["actions"] == "relative (delta)"
    assert report.actions.shape == (21, 7)
    stats = report.keys["obs/object"]
    with h5py.File(path) as file:
        values = np.concatenate([file[f"data/demo_{i}/obs/object"][:] for i in range(3)])
    assert (stats.shape, stats.dtype, stats.demos) == ((14,), "float64", 3)
    np.testing.assert_allclose(
        (stats.low, stats.high, stats.total / stats.count),
        (values.min(), values.max(), values.mean()),
    )
    assert run_program(inspect_dataset.main, [str(path)]) == 0
    out = capsys.readouterr().out
    for text in ("d.hdf5", "3 of 3", "obs/agentview_image", "uint8 3x16x16", "no problems found"):
        assert text in out


@pytest.mark.parametrize("layout", ["robomimic", "metaworld"])
def test_contact_sheet_shows_the_frames_in_order(tmp_path, layout):
    if layout == "robomimic":
        path = write_robomimic(tmp_path / "d.hdf5", lengths=(7, 5, 9), size=16)
        cameras, length = ["agentview", "robot0_eye_in_hand"], 9
    else:
        path = write_metaworld(tmp_path / "d.hdf5", lengths=(6, 4, 9), size=16, stack=2)
        cameras, length = ["corner2", "plain"], 9
    out = tmp_path / "sheet.png"
    assert (
        run_program(
            inspect_dataset.main, [str(path), "--out", str(out), "--demos", "2", "--frames", "3"]
        )
        == 0
    )
    sheet = imageio.imread(out)
    assert sheet.shape == (2 * len(cameras) * (16 + 12 + 2), 3 * 16, 3)
    with h5py.File(path) as file:  # the last demonstration's first camera, its middle frame
        frames = file[f"data/demo_2/obs/{cameras[0]}_image"][(length - 1) // 2]
    top = 2 * 30 + 12
    np.testing.assert_array_equal(sheet[top : top + 16, 16:32], frames[:3].transpose(1, 2, 0))


FAULTS = {
    "unsuccessful": ("data/demo_1/rewards", np.zeros(5), "no step has reward 1"),
    "nan": ("data/demo_1/obs/object", np.full((5, 14), np.nan), "obs/object holds NaN"),
    "steps": ("data/demo_1/obs/object", np.zeros((4, 14)), "obs/object has 4 steps, actions 5"),
    "range": ("data/demo_1/actions", np.full((5, 7), 2.0), "|action| up to 2"),
    "missing": ("data/demo_1/obs/object", None, "obs/object is in 2 of 3 demonstrations only"),
    "width": ("data/demo_1/obs/object", np.zeros((5, 10)), "elsewhere float64[14]"),
    "black": ("data/demo_1/obs/agentview_image", np.zeros((5, 3, 8, 8), np.uint8), "nothing was"),
    "frozen": (
        "data/demo_1/obs/agentview_image",
        np.tile(np.arange(192, dtype=np.uint8).reshape(1, 3, 8, 8), (5, 1, 1, 1)),
        "obs/agentview_image never changes",
    ),
    "channels_last": (
        "data/demo_1/obs/agentview_image",
        np.random.default_rng(0).integers(0, 255, (5, 8, 8, 3), np.uint8),
        "uint8[8, 8, 3] per step, elsewhere uint8[3, 8, 8]",
    ),
    "no_actions": ("data/demo_1/actions", None, "'actions': missing"),
    "dones": ("data/demo_1/dones", np.full(5, 3), "'dones': holds 3"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_problems_name_the_demonstration(tmp_path, fault, capsys):
    path = write_robomimic(tmp_path / "d.hdf5")
    key, value, message = FAULTS[fault]
    edit(path, key, value)
    found = [(text, names) for text, names in problems(path).items() if message in text]
    assert found, problems(path)
    assert fault == "missing" or found[0][1] == ["demo_1"]
    assert run_program(inspect_dataset.main, [str(path), "--demos", "0"]) == 1
    assert "problem" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["agentview_image", "object"])
@pytest.mark.parametrize("value", [np.full((7, 3), b"x"), np.float32(1)], ids=["bytes", "scalar"])
def test_observations_that_are_no_numbers(tmp_path, key, value):
    path = write_robomimic(tmp_path / "d.hdf5")
    edit(path, f"data/demo_0/obs/{key}", value)
    found = [text for text in problems(path) if f"obs/{key}: expected numbers [T, ...]" in text]
    assert found and problems(path)[found[0]] == ["demo_0"]


def test_problems_of_the_whole_file(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5")
    with h5py.File(path, "r+") as file:
        file["data/demo_2/actions"][:5] = file["data/demo_1/actions"][:]
        del file["data/demo_0/actions"]
        file["data/demo_0/actions"] = file["data/demo_2/actions"][:7]
        file["mask/train"] = np.array([b"demo_0", b"demo_9"])
    (tmp_path / "env_cfg.json").write_text(json.dumps({"env_name": "Lift"}))
    found = problems(path)
    names = "demo_0, demo_1, demo_2"
    assert found[f"'mask/train': names demo_9, not in the file, which has {names}"] == []
    assert "env_cfg.json next to the file differs from its env_args" in found
    edit(path, "data/demo_2", None)
    with h5py.File(path, "r+") as file:
        file.copy("data/demo_1", "data/demo_2")
    assert problems(path)["the same actions as demo_1"] == ["demo_2"]


def test_rewards_are_judged_by_the_suites_rule(tmp_path, capsys):
    path = write_robomimic(tmp_path / "d.hdf5")
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            demo["rewards"][...] = -0.5
    assert "no step has reward 1: not a successful demonstration" in problems(path)
    with h5py.File(path, "r+") as file:
        file["data"].attrs["env_args"] = json.dumps({"suite": "d4rl", "env_name": "door-human-v0"})
    assert problems(path) == {}
    assert inspect_dataset.main([str(path), "--demos", "0"]) == 0
    out = capsys.readouterr().out
    assert "returns" in out and "successful" not in out


def test_demonstrations_of_other_names_are_inspected(tmp_path, capsys):
    path = write_robomimic(tmp_path / "d.hdf5")
    with h5py.File(path, "r+") as file:
        file["data"].move("demo_1", "episode_1")
    edit(path, "data/episode_1/obs/object", np.full((5, 14), np.nan))
    assert problems(path)["obs/object holds NaN or infinity"] == ["episode_1"]
    assert run_program(inspect_dataset.main, [str(path), "--demos", "0"]) == 1
    assert "not called demo_*: episode_1" in " ".join(capsys.readouterr().out.split())


def test_a_folder_that_takes_no_sheet(tmp_path, capsys):
    path = write_robomimic(tmp_path / "d.hdf5", size=16)
    with open(path, "rb") as handle:  # nobody, not even root, writes beside this name
        assert run_program(inspect_dataset.main, [f"/proc/self/fd/{handle.fileno()}"]) == 0
    out, err = capsys.readouterr()
    assert "no problems found" in out and err == ""
    (line,) = [x for x in out.splitlines() if "contact sheet" in x]
    assert line.startswith("no contact sheet: out: '/proc/self/fd/")
    assert "cannot be written (No such file or directory); --out FILE.png" in line
    wanted = str(tmp_path / "d.hdf5" / "sheet.png")  # its folder is a file
    assert run_program(inspect_dataset.main, [str(path), "--out", wanted]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: out: '{wanted}' cannot be written") and err.count("\n") == 1


@pytest.mark.parametrize("place", ["beside the file", "where --out says"])
def test_a_data_folder_that_may_not_be_written_to(tmp_path, place):
    folder = tmp_path / "data"
    folder.mkdir()
    path = write_robomimic(folder / "d.hdf5", size=16)
    path.chmod(0o444)
    folder.chmod(0o555)
    out = ["--out", str(folder / "x.png")] if place == "where --out says" else []
    done = program("-m", "tools.inspect_dataset", path, *out, without_override=True)
    assert "no problems found" in done.stdout
    if out:
        assert done.returncode == 2
        assert done.stderr == f"error: out: '{out[1]}' cannot be written (Permission denied)\n"
    else:
        assert done.returncode == 0 and done.stderr == ""
        line = done.stdout.splitlines()[-1]
        assert line.startswith("no contact sheet: ") and "(Permission denied); --out FILE" in line
    assert [p.name for p in folder.iterdir()] == ["d.hdf5"]


def test_a_file_that_may_not_be_read(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5", size=16)
    path.chmod(0o000)
    done = program("-m", "tools.inspect_dataset", path, without_override=True)
    assert done.returncode == 2
    assert done.stderr == f"error: '{path}' may not be read: Permission denied\n"


def test_damaged_and_missing_files(tmp_path, capsys):
    path = write_robomimic(tmp_path / "d.hdf5")
    cut = tmp_path / "cut.hdf5"
    cut.write_bytes(path.read_bytes()[:5000])
    assert run_program(inspect_dataset.main, [str(cut)]) == 2
    assert "cut.hdf5" in capsys.readouterr().err
    assert run_program(inspect_dataset.main, [str(tmp_path / "nowhere.hdf5")]) == 2
    assert "nowhere.hdf5' does not exist" in capsys.readouterr().err
    rng = np.random.default_rng(0)
    whole = path.read_bytes()
    for turn in range(60):
        raw = bytearray(whole)
        start = int(rng.integers(len(raw)))
        raw[start : start + 64] = rng.integers(0, 256, 64, np.uint8).tobytes()[: len(raw) - start]
        cut.write_bytes(raw)
        drawn = ["--demos", "1" if turn % 10 == 0 else "0"]  # pictures take a second
        command = [str(cut), "--out", str(tmp_path / "s.png"), *drawn]
        assert run_program(inspect_dataset.main, command) in (0, 1, 2)


def test_real_raw_recordings(capsys):
    path = SHARED / "human_demos" / "lift_panda_robosuite140.hdf5"
    if not path.is_file():
        pytest.skip(f"{path} absent (set SHARED_DATA to the folder of real datasets)")
    report = inspect_dataset.inspect(path)
    assert report.raw and report.lengths == [482, 510, 392]
    assert report.keys["states"].shape == (32,)
    assert run_program(inspect_dataset.main, [str(path)]) == 1  # teleoperation exceeds [-1, 1]
    out = capsys.readouterr().out
    assert "up to 3.75" in out and "tools.dataset_states_to_obs" in out
    assert "contact sheet" not in out


def test_actions_are_plotted_beside_the_sheet(tmp_path, capsys):
    path = write_robomimic(tmp_path / "d.hdf5", size=16)
    assert run_program(inspect_dataset.main, [str(path)]) == 0
    out = "".join(capsys.readouterr().out.split("\n"))
    assert f"plots of actions: {tmp_path / 'd_actions.png'}" in out
    few = imageio.imread(tmp_path / "d_actions.png")
    edit(path, "data/demo_1/actions", np.full((5, 7), 2.0))
    args = ["--out", str(tmp_path / "x.png"), "--demos", "1"]
    assert run_program(inspect_dataset.main, [str(path), *args]) == 1
    marked = imageio.imread(tmp_path / "x_actions.png")
    assert few.shape == marked.shape and few.std() > 10
    edit(path, "data/demo_0/actions", np.full((7, 7), 2.0))
    assert run_program(inspect_dataset.main, [str(path), *args]) == 1
    red = (imageio.imread(tmp_path / "x_actions.png")[..., :3] == [0xD5, 0x5E, 0]).all(-1)
    before = (marked[..., :3] == [0xD5, 0x5E, 0]).all(-1)
    assert red.sum() > 100 and not before.any()  # of the first demonstration alone


@pytest.mark.parametrize("kind", ["zarr", "minari"])
def test_other_formats_are_inspected(tmp_path, monkeypatch, kind, capsys):
    from tests.bc.test_other_formats import numbers, write_minari, write_zarr

    if kind == "zarr":
        action = np.linspace([0, 10], [512, 20], 15).astype(np.float32)
        path = write_zarr(tmp_path / "d.zarr", numbers(action=action))
    else:
        path = write_minari(tmp_path, monkeypatch, several=True)
    status = run_program(inspect_dataset.main, [str(path), "--out", str(tmp_path / "s.png")])
    out = " ".join(capsys.readouterr().out.split())
    assert "│ demonstrations │ 3" in out and "│ steps │ 15" in out
    if kind == "zarr":  # the reader's own message
        assert status == 1 and "--dataset.action_low '[0, 10]' --dataset.action_high" in out
        assert "state of 5 numbers, camera img of 8 pixels" in out
    else:
        assert status == 0 and "camera cam of 40 pixels" in out and "mine/test-v0" in out
    assert imageio.imread(tmp_path / "s.png").shape[1] in (7 * 8, 7 * 40)
    assert imageio.imread(tmp_path / "s_actions.png").ndim == 3
