"""Zarr replay buffers and Minari datasets, written by zarr and minari themselves."""

from __future__ import annotations

import json
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numcodecs
import numpy as np
import pytest

import train_bc
from bc.dataset import DatasetConfig, DatasetError, RobomimicDataset, read_demos
from bc.formats import format_of, open_demos
from common_utils import run_config
from common_utils.errors import run_program
from common_utils.success_rule import AsRecorded, SparseReward
from tests.bc.test_dataset import write_robomimic
from tools import inspect_dataset

zarr = pytest.importorskip("zarr")
minari = pytest.importorskip("minari")

LENGTHS = (5, 3, 7)
ENDS = np.cumsum(LENGTHS)


def opened(path: Path, **options: Any) -> RobomimicDataset:
    return RobomimicDataset(DatasetConfig(path=str(path), **{"rl_camera": "img", **options}))


# ---------------------------------------------------------------- Zarr


def numbers(**more: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of a replay buffer of three episodes."""
    rng, total = np.random.default_rng(0), int(ENDS[-1])
    return {
        "action": rng.uniform(-1, 1, (total, 2)).astype(np.float32),
        "state": rng.normal(size=(total, 5)).astype(np.float32),
        "img": rng.integers(0, 256, (total, 8, 8, 3)).astype(np.float32),
        "reward": np.isin(np.arange(total), ENDS - 1).astype(np.float32),
        **more,
    }


def write_zarr(path: Path, arrays: dict[str, np.ndarray] | None = None, *, ends: Any = ENDS,
               zarr_format: int = 2, chunk: int = 4, packed: Any = None) -> Path:  # fmt: skip
    """A replay buffer as Diffusion Policy lays it out, by zarr."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = zarr.open_group(str(path), mode="w", zarr_format=zarr_format)
        data, meta = group.create_group("data"), group.create_group("meta")
        for name, array in (numbers() if arrays is None else arrays).items():
            more = {"compressors": packed} if packed else {}
            chunks = (chunk, *array.shape[1:])
            data.create_array(name, shape=array.shape, dtype=array.dtype, chunks=chunks, **more)
            data[name][:] = array
        meta.create_array("episode_ends", data=np.asarray(ends))
    return path


@pytest.mark.parametrize("kind", ["format 2", "format 3", "zip"])
def test_a_replay_buffer_is_read_episode_by_episode(tmp_path, kind):
    path = write_zarr(tmp_path / "replay.zarr", zarr_format=3 if kind == "format 3" else 2)
    if kind == "zip":
        path = Path(shutil.make_archive(str(tmp_path / "packed.zarr"), "zip", path))
    assert format_of(path).name == "Zarr replay"
    want = numbers()
    for options in ({"use_state": 1}, {"max_ram_gb": 8.0}, {"max_ram_gb": 0.0}):
        data = opened(path, **options)
        assert data.lazy == (options.get("max_ram_gb") == 0)
        key = "state" if "use_state" in options else "img"
        for demo, end, length in zip(data.episodes(), ENDS, LENGTHS, strict=True):
            rows = slice(end - length, end)
            np.testing.assert_array_equal(demo.actions, want["action"][rows])
            np.testing.assert_array_equal(demo.rewards, want["reward"][rows])
            seen = want[key][rows]
            seen = seen.transpose(0, 3, 1, 2).astype(np.uint8) if key == "img" else seen
            np.testing.assert_array_equal(demo.observations[key], seen)
        rows = np.array([14, 0, 6, 5])
        got = data.batch_at(rows).obs[key].numpy()
        seen = want[key][rows]
        np.testing.assert_array_equal(got, seen.transpose(0, 3, 1, 2) if key == "img" else seen)
        data.close()
    demos = read_demos(path, rule=SparseReward("robosuite"), use_state=True)
    assert [len(demo) for demo in demos] == list(LENGTHS)


def test_the_range_of_actions_is_named(tmp_path):
    """Those of Push-T are pixels."""
    action = np.linspace([0, 10], [512, 20], 15).astype(np.float32)
    path = write_zarr(tmp_path / "replay.zarr", numbers(action=action))
    said = r"must be in \[-1, 1\]; recorded range: --dataset.action_low '\[0, 10\]' --data"
    with pytest.raises(DatasetError, match=said):
        opened(path, use_state=1)
    data = opened(path, use_state=1, action_low=[0.0, 10.0], action_high=[512.0, 20.0])
    np.testing.assert_allclose(next(iter(data.episodes())).actions[0], [-1, -1])


def test_keys_may_be_chosen(tmp_path):
    path = write_zarr(tmp_path / "replay.zarr", numbers(pos=np.ones((15, 2), np.float32)))
    options = ["--dataset.path", str(path), "--dataset.keys.state", "pos+state"]
    cfg = run_config.parse_args(train_bc.MainConfig, [*options, "--dataset.use_state", "1"])
    assert RobomimicDataset(cfg.dataset).observation_specs["state"].shape == (7,)
    renamed = opened(path, rl_camera="top", keys=cfg.dataset.keys.__class__(cameras="top=img"))
    assert renamed.observation_specs["top"].shape == (3, 8, 8)


class Backwards(numcodecs.abc.Codec):
    """A codec of another program's."""

    codec_id = "imagecodecs_jpegxl"

    def encode(self, buf: Any) -> bytes:
        return bytes(buf)[::-1]

    def decode(self, buf: Any, out: Any = None) -> Any:
        return numcodecs.compat.ndarray_copy(np.frombuffer(bytes(buf)[::-1], np.uint8), out)


def edited(path: Path, place: str, **changes: Any) -> None:
    file = path / place
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


FAULTS = {
    "ends_before": (lambda p: ends(p, [5, 3, 15]), "'meta/episode_ends': episode 1 ends at step 3"),
    "ends_long": (lambda p: ends(p, [5, 8, 20]), r"'data/action': has shape \[15, 2\], exp"),
    "ends_text": (lambda p: ends(p, [0.5, 3, 15]), "found float64 of shape"),
    "no_ends": (lambda p: shutil.rmtree(p / "meta" / "episode_ends"), "episode_ends': missing"),
    "no_data": (
        lambda p: shutil.rmtree(p / "data"),
        "'data/action': missing; 'data' holds noth",
    ),
    "no_action": (lambda p: shutil.rmtree(p / "data/action"), "'data/action': missing; 'data' hol"),
    "cut": (lambda p: (p / "data/action/1.0").write_bytes(b"\x02\x01"), "cannot be read .damaged"),
    "json": (lambda p: (p / "data/img/.zarray").write_text("{"), "'data/img': cannot be read"),
    "pipe": (lambda p: pipe(p / "data/img/1.0.0.0"), "'data/img': '1.0.0.0' is not a regular file"),
    "pickle": (
        lambda p: edited(p, "data/state/.zarray", filters=[{"id": "pickle", "protocol": 5}]),
        "'data/state': is packed by the codec 'pickle', which is not read",
    ),
    "bomb": (
        lambda p: edited(p, "data/img/.zarray", shape=[2**40, 8, 8, 3]),
        "'data/img': shape .* would take 768.0 TiB",
    ),
    "env_args": (lambda p: (p / "env_cfg.json").write_text("[]"), "env_cfg.json': expected a JSON"),
}


def ends(path: Path, values: list[float]) -> None:
    shutil.rmtree(path / "meta" / "episode_ends")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.open_group(str(path), mode="a")["meta"].create_array(
            "episode_ends", data=np.array(values)
        )


def pipe(path: Path) -> None:
    import os

    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_replay_buffers_are_refused(tmp_path, fault, capsys):
    path = write_zarr(tmp_path / "replay.zarr")
    change, message = FAULTS[fault]
    change(path)
    with pytest.raises(DatasetError, match=message) as error:
        opened(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert run_program(inspect_dataset.main, [str(path), "--demos", "0"]) in (1, 2)
    assert "Traceback" not in "".join(capsys.readouterr())


def test_faulty_filter_keys_are_named(tmp_path):
    path = write_zarr(tmp_path / "replay.zarr")
    (path / ".zattrs").write_text(json.dumps({"episodes": {"filter_keys": {"demo_1": "[1]"}}}))
    assert len(list(opened(path).episodes())) == 3
    with pytest.raises(DatasetError, match="demo_1, 'filter_keys': found .*expected names"):
        opened(path, filter_key="train")


def test_a_codec_of_another_program_is_named(tmp_path):
    numcodecs.register_codec(Backwards)
    path = write_zarr(tmp_path / "replay.zarr", packed=Backwards())
    with pytest.raises(DatasetError, match="is packed by the codec 'imagecodecs_jpegxl', which is"):
        opened(path)


def test_chunks_that_are_not_stored_are_told(tmp_path):
    path = write_zarr(tmp_path / "replay.zarr")
    (path / "data" / "state" / "1.0").unlink()
    data = opened(path, use_state=1)
    assert "data/state: 1 of its 4 chunks are not stored, and are read as 0.0" in data.notes
    assert (list(data.episodes())[1].observations["state"] == 0).all()


def test_a_folder_or_zip_of_something_else(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DatasetError, match="is in no known format.*Zarr replay.*Minari.*HDF5"):
        open_demos(tmp_path / "folder")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("a", "b")
    with pytest.raises(DatasetError, match="cannot be read as HDF5"):
        open_demos(tmp_path / "x.zip")


# ---------------------------------------------------------------- Minari


def write_minari(root: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Path:
    """A dataset by minari: actions from 0 to 10, one vector or several things observed."""
    from gymnasium.spaces import Box, Dict
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    rng, buffers = np.random.default_rng(0), []
    several = more.pop("several", False)
    vector = Box(-np.inf, np.inf, (4,), np.float32)
    space: Any = vector
    if several:
        camera = Box(0, 255, (32, 40, 3), np.uint8)
        space = Dict({"inner": Dict({"pos": vector}), "vel": vector, "cam": camera})
    for number, length in enumerate(LENGTHS):
        state = rng.normal(size=(length + 1, 4)).astype(np.float32)
        seen: Any = state
        if several:
            ramp = np.linspace(0, 180, 32 * 40 * 3).reshape(32, 40, 3)
            frames = np.stack([ramp + 9 * t for t in range(length + 1)]).astype(np.uint8)
            seen = {"inner": {"pos": state}, "vel": 2 * state, "cam": frames}
        last = np.arange(length) == length - 1
        buffers.append(
            EpisodeBuffer(
                observations=seen,
                actions=rng.uniform(0, 10, (length, 2)).astype(np.float32),
                rewards=last.astype(np.float64),
                terminations=last & (number == 0),
                truncations=last & (number > 0),
                infos={"success": np.arange(length + 1) == length},
            )
        )
    spaces = {"action_space": Box(0, 10, (2,), np.float32), "observation_space": space}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers("mine/test-v0", buffers, **spaces | more)
    return root / "mine" / "test-v0"


def test_a_minari_dataset_is_read(tmp_path, monkeypatch):
    path = write_minari(tmp_path, monkeypatch, env="InvertedPendulum-v5")
    assert format_of(path).name == format_of(path / "data").name == "Minari"
    data = opened(path, use_state=1)
    theirs = list(minari.load_dataset("mine/test-v0").iterate_episodes())
    for demo, episode in zip(data.episodes(), theirs, strict=True):
        np.testing.assert_array_equal(demo.observations["state"], episode.observations[:-1])
        np.testing.assert_allclose(demo.actions, episode.actions / 5 - 1, atol=1e-6)
        np.testing.assert_array_equal(demo.rewards, episode.rewards)
    assert (data.suite, data.task_name) == ("gymnasium", "InvertedPendulum-v5")
    ended = [record.ended for record in data.recorded("success")]
    assert ended == ["terminated", "truncated", "truncated"]
    assert data.recorded("success")[1].infos["success"].tolist() == [0, 0, 1]
    demos = read_demos(path, rule=AsRecorded("gymnasium"), use_state=True)
    assert [demo.terminated for demo in demos] == [True, False, False]


def test_several_observations_and_pictures_of_minari(tmp_path, monkeypatch):
    path = write_minari(tmp_path, monkeypatch, several=True)
    with open_demos(path) as demos:
        assert demos.obs_keys("episode_0") == ["cam_image", "inner.pos", "vel"]
    with pytest.raises(DatasetError, match=r"'obs/state': missing.*dataset.keys.state names them"):
        opened(path, use_state=1)
    keys = DatasetConfig(use_state=1).keys.__class__(state="inner.pos+vel")
    data = opened(path, use_state=1, keys=keys)
    theirs = list(minari.load_dataset("mine/test-v0").iterate_episodes())
    for demo, episode in zip(data.episodes(), theirs, strict=True):
        seen = episode.observations
        want = np.concatenate([seen["inner"]["pos"], seen["vel"]], axis=1)[:-1]
        np.testing.assert_array_equal(demo.observations["state"], want)
    for max_ram_gb in (8.0, 0.0):
        pictures = opened(path, rl_camera="cam", max_ram_gb=max_ram_gb)
        for demo, episode in zip(pictures.episodes(), theirs, strict=True):
            want = episode.observations["cam"][:-1].transpose(0, 3, 1, 2)
            np.testing.assert_array_equal(demo.observations["cam"], want)
        pictures.close()


def changed_meta(path: Path, **changes: Any) -> None:
    edited(path, "data/metadata.json", **changes)


def hdf5(path: Path, change: Any) -> None:
    with h5py.File(path / "data" / "main_data.hdf5", "r+") as file:
        change(file)


def replaced(file: h5py.File, place: str, value: Any) -> None:
    del file[place]
    file[place] = value


MINARI_FAULTS = {
    "cut": (
        lambda p: (p / "data/main_data.hdf5").write_bytes(b"\x89HDF"), "main_data.hdf5' cannot be r"
    ),
    "no_file": (lambda p: (p / "data/main_data.hdf5").unlink(), "main_data.hdf5' cannot be read"),
    "json": (lambda p: (p / "data/metadata.json").write_text("{"), "metadata.json' cannot be read"),
    "arrow": (lambda p: changed_meta(p, data_format="arrow"), "found 'arrow' .str., expect"),
    "total": (lambda p: changed_meta(p, total_episodes=9), r"total_episodes is 9 .int., but"),
    "discrete": (
        lambda p: changed_meta(p, action_space='{"type": "Discrete"}'),
        "action_space: found 'Discrete'",
    ),
    "steps": (
        lambda p: hdf5(p, lambda f: replaced(f, "episode_1/observations", np.zeros((3, 4)))),
        "episode_1, 'obs/state': has 2 steps, but 'actions' has 3",
    ),
    "nan": (
        lambda p: hdf5(p, lambda f: replaced(f, "episode_0/rewards", np.full(5, np.nan))),
        "episode_0, 'rewards': holds NaN",
    ),
    "bounds": (
        lambda p: hdf5(p, lambda f: replaced(f, "episode_0/actions", np.full((5, 2), 11.0))),
        r"must be in \[-1, 1\] after mapping them from the action space",
    ),
    "no_group": (
        lambda p: hdf5(p, lambda f: replaced(f, "episode_2", np.zeros(3))), "episode_2, .*not a gr"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", MINARI_FAULTS)
def test_damaged_minari_datasets_are_refused(tmp_path, monkeypatch, fault, capsys):
    path = write_minari(tmp_path, monkeypatch)
    change, message = MINARI_FAULTS[fault]
    change(path)
    with pytest.raises(DatasetError, match=message) as error:
        opened(path, use_state=1)
    assert "\n" not in str(error.value)
    assert run_program(inspect_dataset.main, [str(path), "--demos", "0"]) in (1, 2)
    assert "Traceback" not in "".join(capsys.readouterr())


def test_a_damaged_picture_of_minari_is_named(tmp_path, monkeypatch):
    path = write_minari(tmp_path, monkeypatch, several=True)
    packed = np.frombuffer(b"\xff\xd8\xff nothing", np.uint8)
    hdf5(path, lambda f: replaced(f, "episode_1/observations/cam", np.tile(packed, (4, 1))))
    with pytest.raises(DatasetError, match="episode_1, 'obs/cam_image': cannot be read"):
        opened(path, rl_camera="cam")


def test_hdf5_files_are_still_hdf5(tmp_path):
    assert format_of(write_robomimic(tmp_path / "d.hdf5")).name == "HDF5"


# ---------------------------------------------------------------- written by this program


@pytest.mark.parametrize("kind", ["zarr", "minari"])
def test_what_is_written_is_read_by_the_real_package_and_here(tmp_path, monkeypatch, kind, capsys):
    from tools import convert_dataset

    path = write_robomimic(tmp_path / "d.hdf5", LENGTHS, size=32)
    with h5py.File(path, "r+") as file:
        file["data/demo_1"].attrs["ended"] = "terminated"
        file["data/demo_2"].attrs["success"] = False
        file["mask/train"] = np.array(["demo_2", "demo_0"], "S")
        file["mask/valid"] = np.array(["demo_1"], "S")
        for demo in file["data"].values():  # a chunk of zeros is stored like any other
            demo["rewards"][...] = 0
    out = tmp_path / ("can-v0" if kind == "minari" else "can.zarr")
    args = ["--dataset", str(path), "--out", str(out), "--format", kind, "--lossless", "1"]
    written = convert_dataset.convert(run_config.parse_args(convert_dataset.MainConfig, args))
    assert "pictures are equal" in capsys.readouterr().out
    for options in ({"use_state": 1}, {"rl_camera": "agentview"}):
        for demo, again in zip(
            opened(path, **options).episodes(), opened(written, **options).episodes(), strict=True
        ):
            np.testing.assert_array_equal(again.actions, demo.actions)
            np.testing.assert_array_equal(again.rewards, demo.rewards)
            assert again.observations.keys() == demo.observations.keys()
            for key, value in demo.observations.items():
                np.testing.assert_array_equal(again.observations[key], value)
    with open_demos(written) as demos:
        assert demos.env_args == open_demos(path).env_args and demos.notes == []
        assert [demos.verdict(n)[0] for n in demos.names] == ["", "terminated", ""]
        assert demos.attribute(demos.names[2], "", "success") == False  # noqa: E712 (numpy's)
        assert demos.filter_keys() == ["train", "valid"]
    assert len(list(opened(written, use_state=1, filter_key="train").episodes())) == 2
    if kind == "zarr":
        group = zarr.open_group(str(written), mode="r")
        assert group["meta/episode_ends"][:].tolist() == ENDS.tolist()
        assert group["data/agentview_image"].shape == (15, 32, 32, 3)
        assert group.metadata.zarr_format == 2
    else:
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
        data = minari.load_dataset("can-v0")
        assert (data.total_episodes, data.total_steps) == (3, 15)
        assert [len(e) for e in data.iterate_episodes()] == list(LENGTHS)
    with pytest.raises(run_config.ConfigError, match="exists already, expected a new name"):
        convert_dataset.convert(run_config.parse_args(convert_dataset.MainConfig, args))
