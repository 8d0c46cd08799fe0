"""Raw recordings through dataset_states_to_obs and robomimic_dataset_conversion.

Own recordings must come back to the last bit; real teleoperation of robosuite 1.0 and 1.4 must
replay to its successes, with the differences printed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

import train_bc
from bc.dataset import DatasetConfig, DatasetError, RobomimicDataset
from bc.loader import DemoFile
from common_utils.env_args import arm_controller, read_env_args
from common_utils.errors import run_program
from common_utils.gl import best_backend
from env.robosuite.replay import poses_asked_for, to_base_frame
from env.robosuite.robomimic_args import OSC_POSE, robomimic_env_args
from env.robosuite.sim import make_sim, reset_sim
from tests.fuzz.xml import bench
from tools import (
    dataset_states_to_obs,
    generate_demos,
    raw_demos,
    robomimic_dataset_conversion,
)
from workspace import build_policy

HUMAN = Path(os.environ.get("SHARED_DATA", "../shared/data")) / "human_demos"
SIZE = 32
needs_gl = pytest.mark.skipif(best_backend() == "disabled", reason="no OpenGL back end here")


def generate(folder: Path, cameras: list[str], num: int) -> Path:
    """Lift demonstrations of the scripted expert."""
    cfg = generate_demos.MainConfig(
        task="Lift",
        num=num,
        noise=0.3,
        cameras=cameras,
        image_size=2 * SIZE,
        obs_size=SIZE,
        workers=0,
        out=str(folder),
    )
    return generate_demos.generate(cfg)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """Two demonstrations without images."""
    return generate(tmp_path_factory.mktemp("recorded"), [], 2)


@pytest.fixture
def raw(recorded, tmp_path) -> Path:
    """The same as a raw recording: no observations."""
    path = tmp_path / "raw.hdf5"
    shutil.copy(recorded, path)
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            del demo["obs"]
    return path


def replay(path: Path, out: Path, *more: str, cameras: tuple[str, ...] = ()) -> int:
    args = ["--dataset", str(path), "--output_folder", str(out), "--workers", "0"]
    sizes = ["--image_size", str(2 * SIZE), "--obs_size", str(SIZE)]
    return run_program(
        dataset_states_to_obs.main, [*args, *sizes, *more, "--camera_names", *cameras]
    )


def written(out: Path) -> Path:
    return out / f"processed_data{SIZE}.hdf5"


def set_args(path: Path, **changes: object) -> None:
    with h5py.File(path, "r+") as file:
        args = json.loads(file["data"].attrs["env_args"])
        controller = changes.pop("controller", None)
        if controller is not None:
            args["env_kwargs"]["controller_configs"] = controller
        file["data"].attrs["env_args"] = json.dumps(args | changes)


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Everything numeric in the file, by its path."""
    out: dict[str, np.ndarray] = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda k, v: out.update({k: v[()]}) if isinstance(v, h5py.Dataset) else None
        )
    return out


def test_own_recordings_come_back_exactly(recorded, raw, tmp_path, capsys):
    assert replay(raw, tmp_path / "out", "--done_mode", "1") == 0
    want, got = arrays(recorded), arrays(written(tmp_path / "out"))
    assert want.keys() == got.keys()
    for key, value in want.items():
        # the last reward comes from playing the last action in the restored state
        np.testing.assert_allclose(got[key], value, rtol=0, atol=1e-12, err_msg=key)
    out = capsys.readouterr().out
    assert "note" not in out and "miss the next ones by" in out
    with h5py.File(written(tmp_path / "out")) as file:
        # up to the first step, whose torques robosuite computes from before the reset
        assert file["data/demo_0"].attrs["single_step_error"] < 1e-6
        assert list(file["data/demo_0"].attrs["notes"]) == []
        args = json.loads(file["data"].attrs["env_args"])
    assert args["replayed"] == {"file": "raw.hdf5", "env_version": "1.5.2"}
    assert json.loads((tmp_path / "out" / "env_cfg.json").read_text()) == args
    cfg = DatasetConfig(path=str(written(tmp_path / "out")), use_state=1)
    assert RobomimicDataset(cfg).observation_specs["state"].shape == (19,)


@needs_gl
def test_pictures_come_back_exactly(tmp_path, capsys):
    cameras = ("agentview", "robot0_eye_in_hand")
    source = generate(tmp_path / "source", list(cameras), 1)
    assert replay(source, tmp_path / "out", "--video", "--tensor", cameras=cameras) == 0
    want, got = arrays(source), arrays(written(tmp_path / "out"))
    for camera in cameras:
        key = f"data/demo_0/obs/{camera}_image"
        assert got[key].dtype == np.uint8 and got[key].std() > 10
        # poses agree to rounding, which may tip a pixel at an edge
        differs = (got[key] != want[key]).mean()
        assert differs < 1e-4, f"{camera}: {differs:.2%} of the values differ"
        assert (tmp_path / "out" / f"demo_0_{camera}.mp4").stat().st_size > 1000
    assert (tmp_path / "out" / "demo_0.pt").is_file()
    assert "differs" not in capsys.readouterr().out


def test_dones_and_shaped_rewards(raw, tmp_path):
    for mode, last in ((0, 1), (2, 1)):
        assert replay(raw, tmp_path / f"mode{mode}", "--done_mode", str(mode)) == 0
        dones = arrays(written(tmp_path / f"mode{mode}"))["data/demo_0/dones"]
        assert dones[-1] == last and dones[:-1].sum() == 0
    with h5py.File(raw, "r+") as file:
        for demo in file["data"].values():
            demo["dones"][:] = np.arange(len(demo["dones"])) == 2
            del demo["rewards"]
    assert replay(raw, tmp_path / "shaped", "--copy_dones", "--shaped", "--n", "1") == 0
    got = arrays(written(tmp_path / "shaped"))
    assert "data/demo_1/actions" not in got
    assert np.flatnonzero(got["data/demo_0/dones"]).tolist() == [2]
    rewards = got["data/demo_0/rewards"]
    assert (rewards > 0).all() and rewards[0] < 0.3 and rewards[-1] == 1


def test_filter_keys_are_copied_with_the_new_names(raw, tmp_path, capsys):
    with h5py.File(raw, "r+") as file:
        file["data"].move("demo_1", "demo_7")
        file["mask/train"] = np.array([b"demo_7", b"demo_0"])
        file["mask/valid"] = np.array([b"demo_7"])
    assert replay(raw, tmp_path / "out") == 0
    with h5py.File(written(tmp_path / "out")) as file:
        assert file["mask/train"][()].tolist() == [b"demo_0", b"demo_1"]
        assert file["mask/valid"][()].tolist() == [b"demo_1"]
        assert file["data/demo_1"].attrs["source_demo"] == "demo_7"
    assert "filter key" not in capsys.readouterr().out
    assert replay(raw, tmp_path / "first", "--n", "1") == 0
    out = capsys.readouterr().out
    assert "note: filter key train: 1 of its 2 demonstrations are written\n" in out
    assert "filter key valid: 0 of its 1 demonstrations are written; it is left out\n" in out
    with h5py.File(written(tmp_path / "first")) as file:
        assert list(file["mask"]) == ["train"]
    with h5py.File(raw, "r+") as file:
        file["mask/valid"][0] = b"demo_1"
    assert replay(raw, tmp_path / "faulty") == 2
    assert "'mask/valid': names demo_1, not in the file" in capsys.readouterr().err


def test_wrong_rewards_are_refused_or_reported(raw, tmp_path, capsys):
    with h5py.File(raw, "r+") as file:
        file["data/demo_1/rewards"][4] = 1
    assert replay(raw, tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert "raw.hdf5', demo_1, 'rewards': 1 of" in err and "first at step 4: 1 in the file" in err
    assert not written(tmp_path / "out").exists()
    assert replay(raw, tmp_path / "other", "--on_mismatch", "report") == 0
    assert "first at step 4: 1 in the file, 0 recomputed [demo_1]" in capsys.readouterr().out
    assert arrays(written(tmp_path / "other"))["data/demo_1/rewards"][4] == 0


def test_what_differs_from_the_recording_is_reported(raw, tmp_path, capsys):
    set_args(raw, env_version="1.4.1", controller=OSC_POSE | {"kp": 300})
    with h5py.File(raw, "r+") as file:
        demo = file["data/demo_0"]
        root = ElementTree.fromstring(str(demo.attrs["model_file"]))
        for geom in root.iter("geom"):
            if geom.get("name", "").startswith("cube_g0"):
                geom.set("size", "0.03 0.02 0.02")
        demo.attrs["model_file"] = ElementTree.tostring(root, encoding="unicode")
        demo["actions"][3] = 2.0
        obs = np.zeros((len(demo["actions"]), 3))
        demo["obs/robot0_eef_pos"] = obs
        file["data/demo_1"].attrs["model_file"] = "model_1.xml"
    assert replay(raw, tmp_path / "out") == 0
    out = capsys.readouterr().out
    for text in (
        "recorded with robosuite 1.4.1, replayed in 1.5.2",
        "controller kp was 300, here it is 150",
        "1 actions reach beyond [-1, 1] (up to 2) and are clipped",
        "shape or place of 'cube_main' taken from 1 recorded models",
        "obs/robot0_eef_pos differs from the file's by up to",
        "the model is not in the file",
    ):
        assert text in out, text
    assert np.abs(arrays(written(tmp_path / "out"))["data/demo_0/actions"]).max() == 1


def test_shifted_actions_are_reported(raw, tmp_path, capsys):
    with h5py.File(raw, "r+") as file:
        for demo in file["data"].values():
            demo["actions"][:] = np.roll(demo["actions"][:], 12, axis=0)
    assert replay(raw, tmp_path / "out", "--on_mismatch", "report") == 0
    assert "the actions do not lead from state to state" in capsys.readouterr().out


FAULTS = {
    "states": (lambda d: d.pop("states"), [], "demo_0, 'states': missing"),
    "task": (
        lambda d: replace_dset(d, "states", np.zeros((len(d["actions"]), 45))),
        [],
        "demo_0, 'states': a state has 45 numbers, expected 32 for Lift",
    ),
    "length": (lambda d: replace_dset(d, "states", d["states"][:5]), [], "demo_0, 'states': has 5"),
    "xml": (
        lambda d: d.attrs.modify("model_file", "<x"),
        [],
        "'model_file': the recorded model is",
    ),
    "dones": (lambda d: d.pop("dones"), ["--copy_dones"], "demo_0, 'dones': missing"),
    "copy_rewards": (lambda d: None, ["--copy_rewards"], "copy_rewards: 1, expected 0"),
    "n": (lambda d: None, ["--n", "3"], "n: 3, but .* holds 2 demonstrations"),
    "nothing": (lambda d: None, ["--save_hdf5", "0"], "nothing would be written"),
    "video": (lambda d: None, ["--video"], "video: 1 needs a camera"),
}


def replace_dset(group: h5py.Group, key: str, value: np.ndarray) -> None:
    del group[key]
    group[key] = value


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_demo_and_key(raw, tmp_path, fault, capsys):
    change, options, message = FAULTS[fault]
    with h5py.File(raw, "r+") as file:
        change(file["data/demo_0"])
    assert replay(raw, tmp_path / "out", *options) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not written(tmp_path / "out").exists()


def test_files_of_other_kinds_are_refused(raw, tmp_path, capsys):
    set_args(raw, suite="metaworld")
    assert replay(raw, tmp_path / "out") == 2
    assert "expected a robosuite recording, got metaworld" in capsys.readouterr().err
    set_args(raw, suite="robosuite", env_name="Door")
    assert replay(raw, tmp_path / "out") == 2
    assert "task 'Door' is unknown" in capsys.readouterr().err


COMPOSITE = {
    "type": "BASIC",
    "body_parts": {
        "right": {
            **{k: v for k, v in OSC_POSE.items() if k != "control_delta"},
            "kp": [150] * 6,
            "input_type": "delta",
            "input_ref_frame": "world",
            "gripper": {"type": "GRIP"},
        }
    },
}


def test_robosuite_15_controllers_are_understood(raw, tmp_path, capsys):
    set_args(raw, env_version="1.5.1", controller=COMPOSITE)
    assert replay(raw, tmp_path / "out") == 0
    assert "note" not in capsys.readouterr().out  # only patch versions apart, world = base here


def test_env_args_of_every_era(tmp_path):
    side = tmp_path / "env_cfg.json"
    ours = robomimic_env_args("Lift")
    assert arm_controller(ours)["input_ref_frame"] == "base"
    old = ours | {"env_version": "1.4.1"}
    assert arm_controller(old)["input_ref_frame"] == "world"
    flat = arm_controller({"env_kwargs": {"controller_configs": COMPOSITE}})
    assert flat["control_delta"] is True and flat["input_ref_frame"] == "world"
    info = {"env_name": "Lift", "robots": "Panda", "controller_configs": OSC_POSE}
    attrs = {"env": "Lift", "env_info": json.dumps(info), "repository_version": "1.0.0"}
    args = read_env_args(attrs, side)
    assert (args["env_name"], args["env_version"]) == ("Lift", "1.0.0")
    assert args["env_kwargs"] == {"robots": "Panda", "controller_configs": OSC_POSE}
    assert read_env_args({}, side) == {}
    with pytest.raises(ValueError, match="env_args.*expected a JSON object, got list"):
        read_env_args({"env_args": "[]"}, side)
    with pytest.raises(ValueError, match="env_kwargs: expected an object, got 1 .int"):
        read_env_args({"env_args": '{"env_kwargs": 1}'}, side)


def test_bc_refuses_actions_that_mean_something_else(recorded, tmp_path):
    path = tmp_path / "d.hdf5"
    shutil.copy(recorded, path)
    cfg = train_bc.MainConfig(dataset=DatasetConfig(path=str(path), use_state=1))
    build_policy.fill_in(cfg, RobomimicDataset(cfg.dataset))
    assert (cfg.env.suite, cfg.env.task, cfg.env.ctrl_delta) == ("robosuite", "Lift", 1)
    set_args(path, controller=OSC_POSE | {"kp": 90})
    with pytest.raises(DatasetError, match="d.hdf5.*controller kp was 90, here it is 150"):
        build_policy.fill_in(cfg, RobomimicDataset(cfg.dataset))


# ---------------------------------------------------------------- absolute actions


def to_absolute(path: Path, out: Path, *more: str) -> int:
    args = ["--dataset", str(path), "--output_path", str(out), *more]
    return run_program(robomimic_dataset_conversion.main, args)


@pytest.mark.parametrize("controller", [None, COMPOSITE], ids=["flat", "composite"])
def test_absolute_actions_play_like_relative_ones(recorded, tmp_path, controller, capsys):
    path, out = tmp_path / "d.hdf5", tmp_path / "abs" / "d.hdf5"
    shutil.copy(recorded, path)
    if controller:
        set_args(path, env_version="1.5.1", controller=controller)
    with h5py.File(path, "r+") as file:
        file["mask/train"] = np.array([b"demo_1"])
    assert to_absolute(path, out, "--error_report", str(tmp_path / "report.json")) == 0
    assert "absolute actions: 2 of 2 succeed" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["summary"]["relative"]["position_error_max"] < 1e-5
    assert report["summary"]["absolute"]["position_error_max"] < 2e-3
    want, got = arrays(path), arrays(out)
    np.testing.assert_array_equal(got["data/demo_0/actions_delta"], want["data/demo_0/actions"])
    np.testing.assert_array_equal(got["data/demo_1/obs/object"], want["data/demo_1/obs/object"])
    assert got["mask/train"].tolist() == [b"demo_1"]
    poses = got["data/demo_0/actions"]
    hand = want["data/demo_0/obs/robot0_eef_pos"]
    assert np.abs(poses[:, :3] - hand).max() < 0.05 * 1.05 + 1e-3  # a step reaches 5 cm
    np.testing.assert_array_equal(poses[:, 6], want["data/demo_0/actions"][:, 6])
    data = RobomimicDataset(DatasetConfig(path=str(out), use_state=1))
    assert arm_controller(data.env_args)["control_delta"] is False
    assert to_absolute(out, tmp_path / "again.hdf5") == 2
    assert "the actions are already absolute" in capsys.readouterr().err


def test_output_beside_its_source_keeps_the_shared_description(recorded, tmp_path, capsys):
    path, side = tmp_path / "d.hdf5", tmp_path / "env_cfg.json"
    shutil.copy(recorded, path)
    with h5py.File(path, "r+") as file:  # described by env_cfg.json alone, as older files are
        env_args = json.loads(file["data"].attrs.pop("env_args"))
    side.write_text(json.dumps(env_args))
    assert to_absolute(path, tmp_path / "abs.hdf5") == 0
    out = capsys.readouterr().out
    assert f"note: '{side}' is kept as it is, because it would also be read for d.hdf5" in out
    assert json.loads(side.read_text()) == env_args
    for name, delta in (("d.hdf5", True), ("abs.hdf5", False)):
        cfg = train_bc.MainConfig(
            dataset=DatasetConfig(path=str(tmp_path / name), use_state=1, eval_episode_len=-1)
        )
        build_policy.fill_in(cfg, RobomimicDataset(cfg.dataset))
        assert cfg.env.ctrl_delta == int(delta), name
    # alone in its folder, it gets its own
    assert to_absolute(path, tmp_path / "abs" / "abs.hdf5") == 0
    beside = json.loads((tmp_path / "abs" / "env_cfg.json").read_text())
    assert arm_controller(beside)["control_delta"] is False
    assert "note: 'env_cfg" not in capsys.readouterr().out


def test_actions_of_another_width_are_refused(raw, tmp_path, capsys):
    with h5py.File(raw, "r+") as file:
        for demo in file["data"].values():
            replace_dset(demo, "actions", demo["actions"][:, :6])
    message = "raw.hdf5', demo_0, 'actions': have 6 dimensions; Lift takes 7"
    assert to_absolute(raw, tmp_path / "abs.hdf5") == 2
    assert capsys.readouterr().err.startswith(f"error: '{raw.parent}/{message}")
    assert replay(raw, tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "abs.hdf5").exists() and not written(tmp_path / "out").exists()


def test_both_tools_report_clipped_actions(raw, tmp_path, capsys):
    with h5py.File(raw, "r+") as file:
        file["data/demo_1/actions"][3] = 2.0
    note = "note: 1 actions reach beyond [-1, 1] (up to 2) and are clipped, as the controller does"
    assert to_absolute(raw, tmp_path / "abs.hdf5") == 0
    assert f"{note} [demo_1]" in capsys.readouterr().out
    assert replay(raw, tmp_path / "out", "--on_mismatch", "report") == 0
    assert f"{note} [demo_1]" in capsys.readouterr().out


NO_MODELS = {
    "XML": (b"<x", "the recorded model is not XML"),
    "UTF-16": (np.bytes_("<mujoco/>".encode("utf-16-le")), "the recorded model is not XML"),
    "bytes": (np.bytes_(b"\xff\xfe\x00\x01"), "expected a model in MuJoCo's XML"),
    "a device": (b"/dev/zero", "is '/dev/zero', expected a model in MuJoCo's XML"),
    "UTF-8": (b"<mujoco\xff/>", "the recorded model is not UTF-8 text"),
    "a bomb": (b'<!DOCTYPE m [<!ENTITY a "b">]><mujoco>&a;</mujoco>', "holds '<!DOCTYPE'"),
    "a number": (5, "expected an attribute that is text"),
}


def put_model(path: Path, model: object) -> None:
    with h5py.File(path, "r+") as file:
        attrs = file["data/demo_1"].attrs
        del attrs["model_file"]
        dtype = h5py.string_dtype() if type(model) is bytes else None
        attrs.create("model_file", model, dtype=dtype)


@pytest.mark.parametrize("name", NO_MODELS)
def test_a_bad_model_is_named(raw, name):
    model, message = NO_MODELS[name]
    put_model(raw, model)
    with DemoFile(raw) as file, pytest.raises(DatasetError) as refusal:
        demo = raw_demos.read_demo(file, "demo_1", raw_demos.read_source(file))
        raw_demos.adopt(file, bench().scene, demo)
    assert "raw.hdf5', demo_1, 'model_file': " in str(refusal.value)
    assert message in str(refusal.value)


def test_both_tools_refuse_a_bad_model(raw, tmp_path, capsys):
    put_model(raw, b"<mujoco/>")
    said = "raw.hdf5', demo_1, 'model_file': the recorded model has no worldbody"
    assert to_absolute(raw, tmp_path / "abs.hdf5") == 2
    assert said in capsys.readouterr().err
    assert replay(raw, tmp_path / "out") == 2
    assert said in capsys.readouterr().err


def test_absolute_actions_say_what_of_the_model_is_not_taken_over(raw, tmp_path, capsys):
    with h5py.File(raw, "r+") as file:
        attrs = file["data/demo_1"].attrs
        attrs["model_file"] = str(attrs["model_file"]).replace('name="cube_main"', 'name="die"')
    assert to_absolute(raw, tmp_path / "abs.hdf5") == 0
    assert "note: the recording has no body 'cube_main'" in capsys.readouterr().out


def test_a_dataset_is_not_replayed_onto_itself(raw, tmp_path, capsys):
    path = tmp_path / f"processed_data{SIZE}.hdf5"
    raw.rename(path)
    before = path.read_bytes()
    assert replay(path, tmp_path, "--overwrite", "1") == 2
    assert "is the dataset itself" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_conversion_faults(recorded, raw, tmp_path, capsys):
    assert to_absolute(recorded, recorded) == 2
    assert "is the dataset itself" in capsys.readouterr().err
    with h5py.File(raw, "r+") as file:
        replace_dset(file["data/demo_1"], "states", np.zeros((len(file["data/demo_1/actions"]), 9)))
    out = tmp_path / "abs.hdf5"
    assert to_absolute(raw, out) == 2
    assert "raw.hdf5', demo_1, 'states': a state has 9 numbers" in capsys.readouterr().err
    assert not out.exists()
    assert to_absolute(raw, out, "--n", "5") == 2
    assert "n: 5, but" in capsys.readouterr().err


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), arms=st.integers(1, 2))
def test_rotations_become_continuous_and_stay_the_same(seed, arms):
    rng = np.random.default_rng(seed)
    actions = rng.normal(size=(60, 7 * arms))
    for arm in range(arms):  # a hand that turns steadily, past half a turn and on
        axis = rng.normal(size=3)
        angles = np.linspace(0, 9, 60)[:, None] * axis / np.linalg.norm(axis)
        part = Rotation.from_rotvec(angles).as_rotvec()
        actions[:, 7 * arm + 3 : 7 * arm + 6] = part
    out = robomimic_dataset_conversion.continuous_rotations(actions, arms)
    for arm in range(arms):
        columns = slice(7 * arm + 3, 7 * arm + 6)
        assert np.abs(np.diff(out[:, columns], axis=0)).max() < 0.2
        error = (
            Rotation.from_rotvec(out[:, columns]) * Rotation.from_rotvec(actions[:, columns]).inv()
        )
        assert error.magnitude().max() < 1e-9


def test_two_arms_turn_relative_actions_into_their_bases_axes():
    env = make_sim("TwoArmTransport")
    reset_sim(env, 0)
    action = np.random.default_rng(0).uniform(-1, 1, 14)
    turned = to_base_frame(env, action[None])[0]
    assert not np.allclose(turned, action) and np.abs(turned).max() <= 1 + 1e-9
    in_world, goals = poses_asked_for(env, action, None, world_frame=True)
    in_bases, same = poses_asked_for(env, turned, None, world_frame=False)
    np.testing.assert_allclose(in_bases, in_world, atol=1e-9)
    still = action * np.repeat([1, 0, 1], [3, 3, 1])[None].repeat(2, 0).ravel()
    _, kept = poses_asked_for(env, still, goals, world_frame=True)
    np.testing.assert_array_equal(kept, goals)  # robosuite 1.4: no rotation keeps the goal
    np.testing.assert_allclose(same, goals, atol=1e-9)


# ------------------------------------------------------------- real teleoperation


# version, demonstrations, lengths, bound on the mean miss of single actions (measured, rad: 1.0e-3,
# 3.5e-3; the two long ones move faster, and 1.0 recorded states one action late)
REAL = {
    "lift_panda_robosuite140": ("1.4.0", 3, (482, 510, 392), 2e-3),
    "lift_panda_robosuite101": ("1.0.0", 1, (412,), 1e-2),
    "nut-assembly_panda_robosuite101": ("1.0.0", 1, (1036,), 2e-2),
    "pick-place_panda_robosuite101": ("1.0.0", 1, (1482,), 5e-2),
}


def real_file(name: str) -> Path:
    path = HUMAN / f"{name}.hdf5"
    if not path.is_file():
        pytest.skip(f"{path} absent (set SHARED_DATA to the folder of real datasets)")
    return path


@pytest.mark.parametrize("name", REAL)
def test_real_teleoperation_replays_to_its_success(name, tmp_path, capsys):
    version, demos, lengths, error = REAL[name]
    assert replay(real_file(name), tmp_path) == 0
    out = capsys.readouterr().out
    assert f"recorded with robosuite {version}, replayed in 1.5.2" in out
    with h5py.File(written(tmp_path)) as file:
        assert tuple(len(d["actions"]) for d in file["data"].values()) == lengths
        for demo in file["data"].values():
            rewards = demo["rewards"][:]
            assert rewards[-2] == 1 and (np.diff(rewards[:-1]) >= 0).all()
            assert demo.attrs["single_step_error"] < error
            # the hand is where the arm's joints put it, the fingers between open and closed
            assert 0.8 < demo["obs/robot0_eef_pos"][:, 2].min() < 1.2
            assert np.abs(demo["obs/robot0_gripper_qpos"][:]).max() < 0.045
    if version == "1.4.0":
        assert (
            "actions reach beyond [-1, 1] (up to 3.75)" in out
            and "of 'cube_main' taken from 3" in out
        )
    else:
        assert "the model is not in the file" in out


def test_real_teleoperation_plays_with_absolute_actions(tmp_path, capsys):
    out, report = tmp_path / "abs.hdf5", tmp_path / "report.json"
    path = real_file("lift_panda_robosuite140")
    assert to_absolute(path, out, "--n", "1", "--error_report", str(report)) == 0
    total = json.loads(report.read_text())["summary"]
    # recorded in 1.4: relative actions drift in 1.5, absolute ones are pulled back
    assert total["absolute"]["successes"] == 1
    assert total["absolute"]["position_error_mean"] < 1e-3
    assert total["relative"]["position_error_mean"] > total["absolute"]["position_error_mean"]
