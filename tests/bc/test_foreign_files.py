"""Demonstration files of other people: links, storage outside the file, layouts, sizes, types."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import h5py
import imageio.v2 as imageio
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "env"))  # my_tasks, a gymnasium environment

from test_dataset import edit, write_robomimic

import train_bc
import train_rl
from bc.dataset import DatasetConfig, DatasetError, RobomimicDataset, read_demos
from bc.loader import DemoFile
from bc.pictures import layout_of
from common_utils import run_config
from common_utils.errors import run_program
from common_utils.success_rule import SparseReward
from tools import inspect_dataset
from workspace.prepare_rl import add_demos_to_replay

ROOT = Path(__file__).resolve().parents[2]
CAMERA = "agentview"
KEY = f"data/demo_0/obs/{CAMERA}_image"


def opened(path: Path, **options) -> RobomimicDataset:
    return RobomimicDataset(DatasetConfig(path=str(path), **{"rl_camera": CAMERA, **options}))


def stored(path: Path, key: str = KEY) -> np.ndarray:
    with h5py.File(path) as file:
        return file[key][()]


def all_frames(data: RobomimicDataset) -> np.ndarray:
    frames = data.batch_at(np.arange(data.num_steps)).obs[CAMERA].numpy()
    data.close()
    return frames


def replace_images(path: Path, make) -> None:
    """``make(obs, name)`` creates the first demonstration's images again."""
    with h5py.File(path, "r+") as file:
        obs = file["data/demo_0/obs"]
        del obs[f"{CAMERA}_image"]
        make(obs, f"{CAMERA}_image")


# ---------------------------------------------------------------- links


@pytest.fixture
def linked(tmp_path) -> tuple[Path, np.ndarray]:
    """A file whose one demonstration lies in another file, and the right images."""
    other = write_robomimic(tmp_path / "other.hdf5", lengths=(9,))
    path = write_robomimic(tmp_path / "linking.hdf5", lengths=(20,))
    edit(path, "data/demo_0", h5py.ExternalLink("other.hdf5", "/data/demo_0"))
    with h5py.File(path, "r+") as file:  # other bytes at the place that the images have there
        file["padding"] = np.arange(100_000)
    return path, stored(other)


@pytest.mark.parametrize("max_ram_gb", [8.0, 0.0], ids=["in_ram", "lazy"])
def test_pictures_of_a_linked_demonstration(linked, max_ram_gb, monkeypatch, tmp_path):
    path, frames = linked
    monkeypatch.chdir("/")  # links are relative to their own file
    np.testing.assert_array_equal(all_frames(opened(path, max_ram_gb=max_ram_gb)), frames)
    (demo,) = read_demos(path, rule=SparseReward("robosuite"), cameras=[CAMERA])
    np.testing.assert_array_equal(demo.observations[CAMERA], frames)


def test_contact_sheet_of_a_linked_demonstration(linked, tmp_path):
    path, frames = linked
    assert inspect_dataset.inspect(path).problems == {}
    assert inspect_dataset.contact_sheet(path, tmp_path / "sheet.png", frames=3)
    sheet = imageio.imread(tmp_path / "sheet.png")
    np.testing.assert_array_equal(sheet[12:20, 8:16], frames[4].transpose(1, 2, 0))


def test_a_linked_dataset_is_read_and_inspected(tmp_path):
    other = write_robomimic(tmp_path / "other.hdf5", lengths=(7,))
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    edit(other, KEY, np.full((7, 3, 8, 8), 9, np.uint8))
    edit(path, KEY, h5py.ExternalLink("other.hdf5", KEY))
    assert (all_frames(opened(path, max_ram_gb=0)) == 9).all()
    report = inspect_dataset.inspect(path)
    assert list(report.problems) == [f"obs/{CAMERA}_image is one colour (9): nothing was rendered"]


def test_many_linked_files_do_not_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr("bc.loader.MOST_OPEN", 16)
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(2,))
    whole = path.read_bytes()
    with h5py.File(path, "r+") as file:
        for number in range(1, 60):
            (tmp_path / f"part{number}.hdf5").write_bytes(whole)
            file[f"data/demo_{number}"] = h5py.ExternalLink(f"part{number}.hdf5", "data/demo_0")
    before = len(os.listdir("/proc/self/fd"))
    data = opened(path, max_ram_gb=0)
    assert data.num_episodes == 60
    assert len(os.listdir("/proc/self/fd")) < before + 24
    frames = data.batch_at(np.arange(120)).obs[CAMERA]
    assert len(os.listdir("/proc/self/fd")) < before + 24
    np.testing.assert_array_equal(frames, np.tile(stored(path), (60, 1, 1, 1)))
    data.close()


LINKS = {
    "missing": (h5py.ExternalLink("gone.hdf5", "data/demo_0"), "'demo_1' is a link into 'gone"),
    "folder": (h5py.ExternalLink(".", "data/demo_0"), "is a link into '.', which is not a file"),
    "device": (h5py.ExternalLink("/dev/zero", "x"), "link into '/dev/zero', which is not a file"),
    "text": (h5py.ExternalLink("text.txt", "x"), "text.txt', which cannot be read as HDF5"),
    "circle": (h5py.SoftLink("/data/demo_1"), "more than 32 links in a row"),
    "nothing": (h5py.SoftLink("/data/nowhere"), "'demo_1': missing or not a group"),
}


@pytest.mark.parametrize("kind", LINKS)
def test_links_to_nothing_are_refused_by_name(tmp_path, kind):
    path = write_robomimic(tmp_path / "d.hdf5")
    (tmp_path / "text.txt").write_text("no HDF5")
    link, message = LINKS[kind]
    edit(path, "data/demo_1", link)
    with pytest.raises(DatasetError, match=message) as error:
        opened(path)
    assert "d.hdf5" in str(error.value) and "demo_1" in str(error.value)
    assert any(names == ["demo_1"] for names in inspect_dataset.inspect(path).problems.values())


def test_links_that_branch_end(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    with h5py.File(path, "r+") as file:  # 3 ** 20 links on the way to one object
        demo = file["data/demo_0"]
        for number in range(20):
            demo[f"l{number}"] = h5py.SoftLink("/".join([f"l{number + 1}"] * 3))
        demo["l20"] = h5py.SoftLink(".")
        demo["again"] = demo  # a group in itself
    problems = inspect_dataset.inspect(path).problems
    assert len(problems) == 18 and all("more than 32 links in a row" in x for x in problems)


def test_names_that_steer_a_terminal_are_refused(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7, 5))
    with h5py.File(path, "r+") as file:
        file["data"].move("demo_1", "demo_1\x1b[2J")
    with pytest.raises(DatasetError, match=r"'data': holds a name that .* 'demo_1\\x1b\[2J', exp"):
        opened(path)


@pytest.mark.parametrize("place", ["data", "data/demo_0", "data/demo_0/obs", "mask"])
def test_names_that_are_no_text_are_refused(tmp_path, place):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    with h5py.File(path, "r+") as file:
        file["mask/train"] = np.array([b"demo_0"])
        file[place][b"\xff\xfe"] = np.zeros(7)
        del file[KEY]  # the message says what there is instead
    with pytest.raises(DatasetError, match="not text|missing"):
        opened(path)
    if place == "data":
        with pytest.raises(DatasetError, match="holds a name that is not text"):
            inspect_dataset.inspect(path)
    else:
        assert any("name that is not text" in x for x in inspect_dataset.inspect(path).problems)


# ---------------------------------------------------------------- bytes that lie elsewhere


def four_bits(obs: h5py.Group, name: str) -> None:
    """Numbers that take the upper half of each byte."""
    kind = h5py.h5t.STD_U8LE.copy()
    kind.set_precision(4)
    kind.set_offset(4)
    space = h5py.h5s.create_simple((7, 3, 8, 8))
    h5py.h5d.create(obs.id, name.encode(), kind, space)
    obs[name][...] = np.random.default_rng(5).integers(0, 16, (7, 3, 8, 8), np.uint8)


def compact(obs: h5py.Group, name: str) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((7, 3, 8, 8))
    h5py.h5d.create(obs.id, name.encode(), h5py.h5t.STD_U8LE, space, dcpl=plan)
    obs[name][...] = np.random.default_rng(6).integers(0, 255, (7, 3, 8, 8), np.uint8)


@pytest.mark.parametrize("make", [four_bits, compact])
def test_images_that_are_no_plain_bytes_go_through_hdf5(tmp_path, make):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    replace_images(path, make)
    np.testing.assert_array_equal(all_frames(opened(path, max_ram_gb=0)), stored(path))


def test_files_with_a_user_block(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    with h5py.File(tmp_path / "u.hdf5", "w", userblock_size=1024) as to, h5py.File(path) as file:
        file.copy("data", to)
    np.testing.assert_array_equal(
        all_frames(opened(tmp_path / "u.hdf5", max_ram_gb=0)), stored(path)
    )


def test_a_file_that_is_replaced_while_it_is_open(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    frames, data = stored(path), opened(path, max_ram_gb=0)
    new = write_robomimic(tmp_path / "new.hdf5", lengths=(7,))
    with h5py.File(new, "r+") as file:
        file[KEY][...] = 0
    os.replace(new, path)
    np.testing.assert_array_equal(all_frames(data), frames)


def source_of(path: Path) -> np.ndarray:
    frames = np.random.default_rng(3).integers(0, 255, (7, 3, 8, 8), np.uint8)
    with h5py.File(path, "w") as file:
        file["frames"] = frames
    return frames


@pytest.mark.parametrize("max_ram_gb", [8.0, 0.0], ids=["in_ram", "lazy"])
def test_virtual_datasets_with_all_their_sources(tmp_path, max_ram_gb, monkeypatch):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    frames = source_of(tmp_path / "source.h5")

    def make(obs: h5py.Group, name: str) -> None:
        layout = h5py.VirtualLayout((7, 3, 8, 8), np.uint8)
        source = h5py.VirtualSource("source.h5", "frames", (7, 3, 8, 8))
        layout[:3], layout[3:] = source[4:], source[:4]
        obs.create_virtual_dataset(name, layout)

    replace_images(path, make)
    monkeypatch.chdir("/")
    want = np.concatenate([frames[4:], frames[:4]])
    np.testing.assert_array_equal(all_frames(opened(path, max_ram_gb=max_ram_gb)), want)
    assert inspect_dataset.inspect(path).problems == {}


WHOLE, FULL = slice(0, 7), (7, 3, 8, 8)
VIRTUAL = {
    "absent_file": ([(WHOLE, "gone.h5", FULL)], "frames", "'gone.h5', which is not a file"),
    "absent_dataset": ([(WHOLE, "source.h5", FULL)], "other", "'other' in 'source.h5', which is"),
    "one_of_two": (
        [(slice(0, 4), "source.h5", (4, 3, 8, 8)), (slice(4, 7), "gone.h5", (3, 3, 8, 8))],
        "frames",
        "which is not a file",
    ),
    "a_part": ([(slice(0, 4), "source.h5", FULL)], "frames", "do not fill it"),
    "twice": (
        [(slice(0, 4), "source.h5", FULL), (slice(1, 4), "source.h5", FULL)],
        "frames",
        "do not fill it",
    ),
    "nothing": ([], "frames", "do not fill it"),
    "itself": ([(WHOLE, ".", FULL)], KEY, "more than 4 deep"),
    "percent": ([(WHOLE, "s%%.h5", FULL)], "frames", "named by a pattern"),
    "device": ([(WHOLE, "/dev/zero", FULL)], "frames", "'/dev/zero', which is not a file"),
}


@pytest.mark.parametrize("max_ram_gb", [8.0, 0.0], ids=["in_ram", "lazy"])
@pytest.mark.parametrize("kind", VIRTUAL)
def test_virtual_datasets_that_would_give_zeros_are_refused(tmp_path, kind, max_ram_gb):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    source_of(tmp_path / "source.h5")
    parts, key, message = VIRTUAL[kind]

    def make(obs: h5py.Group, name: str) -> None:
        layout = h5py.VirtualLayout((7, 3, 8, 8), np.uint8)
        for rows, source, shape in parts:
            layout[rows] = h5py.VirtualSource(source, key, shape)[: rows.stop - rows.start]
        obs.create_virtual_dataset(name, layout)

    replace_images(path, make)
    where = f"d.hdf5', demo_0, 'obs/{CAMERA}_image': is a virtual dataset"
    with pytest.raises(DatasetError, match=f"{where}.*{message}"):
        opened(path, max_ram_gb=max_ram_gb)
    assert any(message in text for text in inspect_dataset.inspect(path).problems)
    assert inspect_dataset.main([str(path), "--out", str(tmp_path / "sheet.png")]) == 1


@pytest.mark.parametrize("kind", ["unlimited", "pattern", "every_second"])
def test_virtual_datasets_that_cannot_be_checked_are_refused(tmp_path, kind):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    source_of(tmp_path / "s0.h5")
    free = h5py.h5s.UNLIMITED

    def make(obs: h5py.Group, name: str) -> None:
        limits = (None, 3, 8, 8)
        layout = h5py.VirtualLayout(FULL, np.uint8, maxshape=limits)
        source = h5py.VirtualSource("s0.h5", "frames", FULL, maxshape=limits)
        if kind == "every_second":
            layout[::2] = source[:4]
        elif kind == "unlimited":
            layout[:free] = source[:free]
        else:
            source = h5py.VirtualSource("s%b.h5", "frames", (1, 3, 8, 8))
            layout[:free:1] = source
        obs.create_virtual_dataset(name, layout)

    replace_images(path, make)
    with pytest.raises(DatasetError, match="not solid blocks of a fixed size"):
        opened(path)


def test_a_virtual_dataset_whose_source_shrank(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    source_of(tmp_path / "source.h5")

    def make(obs: h5py.Group, name: str) -> None:
        layout = h5py.VirtualLayout((7, 3, 8, 8), np.uint8)
        layout[:] = h5py.VirtualSource("source.h5", "frames", (7, 3, 8, 8))[:]
        obs.create_virtual_dataset(name, layout)

    replace_images(path, make)
    assert opened(path).num_steps == 7
    edit(tmp_path / "source.h5", "frames", np.ones((5, 3, 8, 8), np.uint8))
    with pytest.raises(DatasetError, match=r"has shape \[5, 3, 8, 8\], which does not fit"):
        opened(path)


@pytest.mark.parametrize("name", ["HDF5_VDS_PREFIX", "HDF5_EXT_PREFIX"])
def test_no_virtual_dataset_while_sources_are_looked_for_elsewhere(tmp_path, name, monkeypatch):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    source_of(tmp_path / "source.h5")

    def make(obs: h5py.Group, key: str) -> None:
        layout = h5py.VirtualLayout((7, 3, 8, 8), np.uint8)
        layout[:] = h5py.VirtualSource("source.h5", "frames", (7, 3, 8, 8))
        obs.create_virtual_dataset(key, layout)

    replace_images(path, make)
    monkeypatch.setenv(name, "/tmp")
    with pytest.raises(DatasetError, match=f"not read while {name} is set"):
        opened(path)


def inspected(path: Path) -> str:
    """What inspect_dataset says, in a separate process: who reads from a pipe waits forever."""
    if not any(item.is_fifo() for item in path.parent.iterdir()):
        return " ".join(inspect_dataset.inspect(path).problems)
    command = [sys.executable, "-m", "tools.inspect_dataset", str(path)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return " ".join(done.stdout.split())


def test_links_into_pipes_are_refused(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7, 7, 7))
    os.mkfifo(tmp_path / "pipe")
    edit(path, "data/demo_1", h5py.ExternalLink("pipe", "data/demo_0"))
    edit(path, "data/demo_2/obs/object", h5py.ExternalLink("pipe", "x"))
    with h5py.File(path, "r+") as file:
        file["mask"] = h5py.ExternalLink("pipe", "mask")
        file["data/other"] = h5py.ExternalLink("pipe", "other")

    def make(obs: h5py.Group, name: str) -> None:
        layout = h5py.VirtualLayout((7, 3, 8, 8), np.uint8)
        layout[:] = h5py.VirtualSource("pipe", "frames", (7, 3, 8, 8))
        obs.create_virtual_dataset(name, layout)

    replace_images(path, make)
    said = inspected(path)
    assert said.count("into 'pipe', which is not a file") == 5  # 4 problems, and no contact sheet
    assert "no demonstration, since without 'actions': other" in said


@pytest.mark.parametrize("place", ["file", "device", "pipe"])
@pytest.mark.parametrize("key", [f"obs/{CAMERA}_image", "actions", "states"])
def test_external_storage_is_refused(tmp_path, place, key):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    with h5py.File(path, "r+") as file:
        file["data/demo_0/states"] = np.zeros((7, 4))
        dset = file[f"data/demo_0/{key}"]
        shape, kind = dset.shape, dset.dtype
    outside = Path("/dev/zero") if place == "device" else tmp_path / "raw.bin"
    if place == "file":
        outside.write_bytes(bytes(1_000_000))
    elif place == "pipe":
        os.mkfifo(outside)
    with h5py.File(path, "r+") as file:
        del file[f"data/demo_0/{key}"]
        size = h5py.h5f.UNLIMITED
        file["data/demo_0"].create_dataset(key, shape, kind, external=[(str(outside), 0, size)])
    said = inspected(path)
    assert f"'{key}': keeps its data outside HDF5 files, in '{outside}'" in said
    if key != "states":
        with pytest.raises(DatasetError, match=f"demo_0, '{key}': keeps its data outside"):
            opened(path, max_ram_gb=0)


# ---------------------------------------------------------------- channels last


def pictures(length: int, height: int, width: int, *, margin: int = 0) -> np.ndarray:
    """uint8 [T, H, W, 3], channels last, whose edges are of one colour."""
    frames = np.random.default_rng(7).integers(0, 255, (length, height, width, 3), np.uint8)
    frames[:, :margin], frames[:, height - margin :] = 40, 40
    return frames


def stack_last(frames: np.ndarray, stack: int, newest_first: bool = True) -> np.ndarray:
    steps = range(stack) if newest_first else reversed(range(stack))
    index = [np.maximum(np.arange(len(frames)) - k, 0) for k in steps]
    return np.concatenate([frames[i] for i in index], axis=3)


@pytest.mark.parametrize("storage", [{}, {"chunks": True}, {"compression": "gzip"}])
@pytest.mark.parametrize("max_ram_gb", [8.0, 0.0], ids=["in_ram", "lazy"])
@pytest.mark.parametrize(
    ("height", "width", "stack", "newest_first"),
    [
        (84, 84, 1, True),
        (96, 96, 1, True),
        (48, 60, 1, True),
        (60, 48, 1, True),
        (32, 32, 1, True),
        (84, 84, 3, True),
        (96, 96, 3, False),
    ],
)
def test_channels_last_is_read_transposed(
    tmp_path, storage, max_ram_gb, height, width, stack, newest_first
):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    frames = pictures(7, height, width, margin=12)
    saved = stack_last(frames, stack, newest_first)
    replace_images(path, lambda obs, name: obs.create_dataset(name, data=saved, **storage))
    data = opened(path, max_ram_gb=max_ram_gb)
    assert data.observation_specs[CAMERA].shape == (3, height, width)
    channels = "3*3" if stack == 3 else "3"
    assert data.notes == [
        f"obs/{CAMERA}_image is stored with its channels last [T, {height}, {width}, {channels}]; "
        "it is read transposed"
    ]
    (episode,) = data.episodes()
    np.testing.assert_array_equal(episode.observations[CAMERA], frames.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(all_frames(data), frames.transpose(0, 3, 1, 2))
    report = inspect_dataset.inspect(path)
    assert report.problems == {}
    assert report.facts[f"layout of obs/{CAMERA}_image"] == (
        f"channels last [T, {height}, {width}, {channels}], read transposed"
    )
    assert inspect_dataset.contact_sheet(path, tmp_path / "sheet.png", frames=3)
    sheet = imageio.imread(tmp_path / "sheet.png")
    np.testing.assert_array_equal(sheet[12 : 12 + height, width : 2 * width], frames[3])


def test_the_layout_of_our_own_files_is_stated(tmp_path, capsys):
    path = write_robomimic(tmp_path / "d.hdf5", size=16)
    assert inspect_dataset.main([str(path), "--demos", "0"]) == 0
    assert "channels first [T, 3, 16, 16]" in capsys.readouterr().out
    assert opened(path).notes == []


@pytest.mark.parametrize(
    ("shape", "declared", "found"),
    [
        # (shape of a step, (height, width) and stack as declared, (last, stack, height, width))
        ((3, 84, 84), {}, (False, 1, 84, 84)),
        ((9, 96, 96), {}, (False, 3, 96, 96)),
        ((84, 84, 3), {}, (True, 1, 84, 84)),
        ((96, 96, 9), {}, (True, 3, 96, 96)),
        ((3, 48, 96), {}, (False, 1, 48, 96)),
        ((96, 48, 3), {}, (True, 1, 96, 48)),
        ((3, 5, 4), {}, (False, 1, 5, 4)),
        ((6, 6, 7), {}, (False, 2, 6, 7)),
        ((9, 9, 9), {}, None),
        ((3, 84, 3), {}, None),
        ((9, 6, 6), {}, None),
        ((9, 6, 6), {"size": (6, 6)}, (False, 3, 6, 6)),
        ((9, 6, 6), {"stack": 3}, (False, 3, 6, 6)),
        ((6, 9, 6), {"size": (6, 9)}, (True, 2, 6, 9)),
        ((84, 84, 3), {"size": (96, 96)}, (True, 1, 84, 84)),  # drawn at another size
        ((84, 84, 1), {}, None),
        ((84, 84, 4), {}, None),
        ((84, 84, 84), {}, None),
        ((4, 84, 84), {}, None),
    ],
)
def test_layouts_are_decided_by_shape_and_declaration(shape, declared, found):
    layout = layout_of((5, *shape), **declared)
    if layout is not None:
        layout = (layout.channels_last, layout.stack, layout.height, layout.width)
    assert layout == found


@pytest.mark.parametrize("shape", [(84, 84, 4), (84, 84, 1), (9, 9, 9)])
def test_pictures_that_cannot_be_told_are_refused_by_name(tmp_path, shape, capsys):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    edit(path, KEY, np.random.default_rng(0).integers(0, 255, (7, *shape), np.uint8))
    layout = rf"\[7, {shape[0]}, {shape[1]}, {shape[2]}\], which is not clearly one of them"
    with pytest.raises(DatasetError, match=f"obs/{CAMERA}_image': expected images.*{layout}"):
        opened(path)
    assert inspect_dataset.main([str(path), "--demos", "0"]) == 1
    assert "not clearly one of them" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "kwargs",
    [
        {"camera_heights": 6, "camera_widths": 9},
        {"camera_names": ["x", CAMERA], "camera_heights": [4, 6], "camera_widths": [4, 9]},
    ],
)
def test_the_declared_camera_decides(tmp_path, kwargs):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    frames = stack_last(pictures(7, 6, 9), 2)
    edit(path, KEY, frames)
    with pytest.raises(DatasetError, match="env_args declare no size"):
        opened(path)
    with h5py.File(path, "r+") as file:
        args = {"env_name": "PickPlaceCan", "env_kwargs": kwargs | {"controller_configs": {}}}
        file["data"].attrs["env_args"] = json.dumps(args)
    np.testing.assert_array_equal(all_frames(opened(path)), frames[..., :3].transpose(0, 3, 1, 2))


def twins(folder: Path, size: int, stack: int) -> tuple[Path, Path]:
    """The same demonstrations, channels first and channels last, frames stacked or not."""
    first = write_robomimic(folder / "first.hdf5", size=size)
    last = folder / "last.hdf5"
    last.write_bytes(first.read_bytes())
    with h5py.File(last, "r+") as file:
        for demo in file["data"].values():
            for key in [k for k in demo["obs"] if k.endswith("_image")]:
                frames = demo["obs"][key][()].transpose(0, 2, 3, 1)
                del demo["obs"][key]
                demo["obs"][key] = stack_last(frames, stack) if CAMERA in key else frames
    return first, last


def bc_run(folder: Path, data: Path) -> tuple[dict[str, torch.Tensor], str]:
    args = ["--dataset.path", str(data), "--save_dir", str(folder), "--device", "cpu"]
    args += ["--num_epoch", "1", "--epoch_len", "3", "--batch_size", "4"]
    args += ["--num_eval_episode", "0", "--dataset.rl_camera", CAMERA]
    args += ["--policy.hidden_dim", "16", "--policy.encoder.resnet.shallow", "1"]
    train_bc.run(run_config.parse_args(train_bc.MainConfig, args))
    return torch.load(folder / "latest.pt", weights_only=True), (folder / "train.log").read_text()


@pytest.mark.parametrize(("size", "stack", "channels"), [(40, 1, "3"), (48, 2, "3*2")])
def test_bc_trains_on_channels_last_as_on_channels_first(tmp_path, size, stack, channels):
    first, last = twins(tmp_path, size, stack)
    weights, log = bc_run(tmp_path / "a", last)
    expected, quiet = bc_run(tmp_path / "b", first)
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    note = f"obs/{CAMERA}_image is stored with its channels last [T, {size}, {size}, {channels}]"
    assert log.count(note) == 1 and "channels" not in quiet


def reach_demos(path: Path, size: int, stack: int, *, channels_last: bool) -> Path:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number in range(2):
            demo = file.create_group(f"data/demo_{number}")
            demo["actions"] = rng.uniform(-1, 1, (6, 2))
            demo["rewards"] = np.eye(6)[-1]
            frames = stack_last(rng.integers(0, 255, (6, size, size, 3), np.uint8), stack)
            demo["obs/top_image"] = frames if channels_last else frames.transpose(0, 3, 1, 2)
    return path


@pytest.mark.parametrize(("size", "stack", "channels"), [(84, 1, "3"), (84, 3, "3*3")])
def test_rl_preloads_channels_last_as_channels_first(tmp_path, size, stack, channels):
    batches = []
    for kind in (True, False):
        data = reach_demos(tmp_path / f"{kind}.hdf5", size, stack, channels_last=kind)
        options = {
            "suite": "gymnasium", "task_name": "my/Reach-v0", "gym.module": "my_tasks",
            "gym.success_key": "reached", "rl_camera": "top", "rl_image_size": size,
            "episode_length": 20, "q_agent.act_method": "rl", "q_agent.enc_type": "drq",
            "q_agent.actor.hidden_dim": 16, "q_agent.critic.hidden_dim": 16,
            "stddev_max": 0.5, "num_train_step": 1, "preload_num_data": 2,
            "preload_datapath": data, "save_dir": tmp_path / f"run{kind}",
        }  # fmt: skip
        args = [f"--{key}={value}" for key, value in options.items()]
        work = train_rl.Workspace(run_config.parse_args(train_rl.MainConfig, args))
        text = "\n".join(add_demos_to_replay(work))
        batches.append(work.replay.sample(8, "cpu"))
        note = f"obs/top_image is stored with its channels last [T, {size}, {size}, {channels}]"
        assert text.count(note) == kind and text.count("transposed") == kind
        work.close()
    for a, b in zip(batches[0].obs.values(), batches[1].obs.values(), strict=True):
        assert torch.equal(a, b)


# ---------------------------------------------------------------- attributes of wrong types


EMPTY = h5py.Empty("f")
WRONG_NUMBERS = {
    "null": EMPTY,
    "text": "7",
    "fraction": 7.5,
    "list": np.array([7, 7]),
    "switch": True,
    "texts": np.array([b"a", b"b"]),
    "complex": 7j,
    "nan": np.nan,
}


@pytest.mark.parametrize("kind", WRONG_NUMBERS)
@pytest.mark.parametrize("attr", ["num_samples", "stack"])
def test_number_attributes_of_wrong_types(tmp_path, attr, kind, capsys):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    with h5py.File(path, "r+") as file:
        owner = file["data/demo_0"] if attr == "num_samples" else file[KEY]
        owner.attrs[attr] = WRONG_NUMBERS[kind]
    with pytest.raises(DatasetError, match=f"d.hdf5', demo_0, .*{attr}.*expected a? ?whole number"):
        opened(path)
    assert inspect_dataset.main([str(path), "--demos", "0"]) == 1
    assert "whole number" in " ".join(capsys.readouterr().out.split())


WRONG_ARGS = {
    "action_repeat": ["two", 2.5, 0, -1, None, [2], {}, True],
    "robots": [5, [5], {}, None, True],
    "controller_configs": ["OSC", 5, ["OSC"], [[]]],
    "camera_heights": ["84", 0, [84, None], {}],
    "camera_widths": [84.0],
    "camera_names": [5, [5]],
    "rl_image_size": ["96", [96]],
    "render_quality": [5, []],
    "hide_velocity": ["false", 2, []],
}
WRONG_CONTROLLERS = {
    "control_delta": ["no", None, 5],
    "kp": ["150", {}, [[150, 150], 150], None],
    "output_max": ["x", [None]],
    "type": [5],
    "body_parts": ["arm", [], {"right": "OSC"}, {"right": {"kp": "x"}}, {"arms": 5},
                   {"arms": {"right": []}}, {"right": {"input_type": None}}],
    "input_ref_frame": [None, 1],
}  # fmt: skip
CASES = [({key: value}, key) for key, values in WRONG_ARGS.items() for value in values]
CASES += [
    ({"controller_configs": {key: value}}, key)
    for key, values in WRONG_CONTROLLERS.items()
    for value in values
]


@pytest.mark.parametrize(("kwargs", "key"), CASES, ids=lambda x: json.dumps(x))
@pytest.mark.parametrize("place", ["attribute", "side"])
def test_env_kwargs_of_wrong_types(tmp_path, kwargs, key, place, capsys):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    args = json.dumps({"env_name": "Lift", "suite": "metaworld", "env_kwargs": kwargs})
    with h5py.File(path, "r+") as file:
        del file["data"].attrs["env_args"]
        if place == "attribute":
            file["data"].attrs["env_args"] = args
        else:
            (tmp_path / "env_cfg.json").write_text(args)
    with pytest.raises(DatasetError, match=rf"env_kwargs\..*{key}.*: expected .*, got ") as error:
        opened(path)
    assert str(error.value).startswith(f"'{path}', ") and "\n" not in str(error.value)
    assert run_program(inspect_dataset.main, [str(path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({"env_args": EMPTY}, "env_args.*expected a JSON object as text"),
        ({"env_args": 5}, "env_args.*expected a JSON object as text"),
        ({"env_args": np.array([b"{}", b"{}"])}, "env_args.*expected a JSON object as text"),
        ({"env_args": "[" * 100_000}, "env_args.*not valid JSON"),
        ({"env_args": b"\xff\xfe{}"}, "env_args.*not valid JSON"),
        ({"env_args": '{"env_name": 5}'}, "env_name: expected text, got 5"),
        ({"env_args": '{"suite": []}'}, "suite: expected text"),
        ({"env_args": '{"env_kwargs": []}'}, "env_kwargs: expected an object"),
        ({"env_info": EMPTY}, "env_info.*expected a JSON object as text"),
        ({"env_info": '{"robots": 5}'}, "env_info.*env_kwargs.robots: expected text or"),
        ({"env_info": "{}", "env": EMPTY}, "attrs.'env'.*expected text"),
        ({"env_info": "{}", "env": "Lift", "repository_version": 5}, "repository_version"),
    ],
)
def test_env_args_of_wrong_types(tmp_path, attrs, message, capsys):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    with h5py.File(path, "r+") as file:
        del file["data"].attrs["env_args"]
        for key, value in attrs.items():
            if len(str(value)) > 60_000:  # attributes in the header are small
                value = np.bytes_(value[:60_000])
            file["data"].attrs[key] = value
    with pytest.raises(DatasetError, match=message):
        opened(path)
    options = ["--dataset.path", str(path), "--save_dir", str(tmp_path / "run")]
    cfg = run_config.parse_args(train_bc.MainConfig, options)
    assert run_program(train_bc.main, lambda: cfg) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_an_unreadable_side_file_is_named(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    with h5py.File(path, "r+") as file:
        del file["data"].attrs["env_args"]
    (tmp_path / "env_cfg.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DatasetError, match="d.hdf5', .*env_cfg.json': cannot be read"):
        opened(path)


@pytest.mark.parametrize("key", ["actions", "rewards", "dones", f"obs/{CAMERA}_image", "states"])
def test_null_dataspaces_are_refused_by_name(tmp_path, key):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    with h5py.File(path, "r+") as file:
        file["data/demo_0/states"] = np.zeros((7, 4))
        del file[f"data/demo_0/{key}"]
        file[f"data/demo_0/{key}"] = EMPTY
        file["mask/train"] = EMPTY
    problems = inspect_dataset.inspect(path).problems
    assert any("null dataspace" in text and key in text for text in problems)
    assert any("'mask/train': holds nothing" in text for text in problems)
    if key != "states":
        with pytest.raises(DatasetError, match=f"demo_0, '{key}': holds nothing .a null dataspace"):
            opened(path)


@pytest.mark.parametrize("mask", [np.zeros(3), np.array([b"demo_0"]), EMPTY])
def test_a_mask_that_is_no_group(tmp_path, mask):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    with h5py.File(path, "r+") as file:
        file["mask"] = mask
    assert list(inspect_dataset.inspect(path).problems) == [
        "'mask': found a dataset, expected a group of filter keys"
    ]


# ---------------------------------------------------------------- sizes


def unwritten(path: Path, key: str, shape: tuple[int, ...], kind: str, **more) -> None:
    """A dataset of which nothing is in the file; HDF5 fills in what is asked for."""
    with h5py.File(path, "r+") as file:
        if key in file:
            del file[key]
        file.create_dataset(key, shape, kind, chunks=more.pop("chunks", True), **more)


BOMBS = {
    "actions": ("data/demo_0/actions", (2**25, 7), "f8", {}),
    "actions_gzip": ("data/demo_0/actions", (2**25, 7), "f8", {"compression": "gzip"}),
    "overflow": ("data/demo_0/actions", (2**33, 2**31), "f8", {"chunks": (64, 64)}),
    "rewards": ("data/demo_0/rewards", (2**28,), "f8", {"compression": "gzip"}),
    "images": (KEY, (7, 3, 8192, 8192), "u1", {"compression": "gzip"}),
    "channels_last": (KEY, (7, 8192, 8192, 3), "u1", {}),
    "chunk": (KEY, (7, 3, 8, 8), "u1", {"chunks": (4096, 3, 256, 256), "maxshape": (None,) * 4}),
    "object": ("data/demo_0/obs/object", (7, 2**25), "f4", {}),
    "vector": ("data/demo_0/obs/robot0_eef_pos", (7, 2**25), "f4", {}),
    "dones": ("data/demo_0/dones", (2**30,), "i1", {}),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_small_files_that_unpack_to_much_are_refused(tmp_path, bomb, capsys):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    key, shape, kind, more = BOMBS[bomb]
    unwritten(path, key, shape, kind, **more)
    assert path.stat().st_size < 50_000
    layout = f"{key.removeprefix('data/demo_0/')}': .* would take .*B, of which .* in the file"
    options = {"use_state": 1} if bomb == "object" else {}
    for max_ram_gb in (8.0, 0.0):
        with pytest.raises(DatasetError, match=layout):
            opened(path, max_ram_gb=max_ram_gb, **options)
    assert inspect_dataset.main([str(path), "--out", str(tmp_path / "sheet.png")]) == 1
    assert "would take" in capsys.readouterr().out


def test_zeros_packed_as_small_as_deflate_can_are_refused(tmp_path):
    """Each megabyte of such a file becomes a gigabyte, and several while it is converted."""
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    shape, packed = (7, 2**24), zlib.compress(bytes(7 * 2**18 * 4), 9)
    unwritten(path, "data/demo_0/actions", shape, "f4", chunks=(7, 2**18), compression="gzip")
    with h5py.File(path, "r+") as file:
        for column in range(0, shape[1], 2**18):
            file["data/demo_0/actions"].id.write_direct_chunk((0, column), packed)
    assert path.stat().st_size < 2**20
    with pytest.raises(DatasetError, match="would take 448.0 MiB, .* expected at least a 400th"):
        opened(path, use_state=1)


@pytest.mark.parametrize("chunks", [None, (1, 1)], ids=["contiguous", "chunked"])
@pytest.mark.parametrize("rows", [0, 3])
def test_numbers_that_were_never_written_are_refused(tmp_path, chunks, rows):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    unwritten(path, "data/demo_0/actions", (7, 7), "f8", chunks=chunks)
    with h5py.File(path, "r+") as file:
        file["data/demo_0/actions"][:rows] = 0.5
    if rows and chunks is None:  # in one piece it is written as a whole
        opened(path, use_state=1).close()
        return
    message = r"'actions': has \d+ of \d+ parts written; the rest would be read as .*0.0"
    with pytest.raises(DatasetError, match=message):
        opened(path, use_state=1)
    assert any("parts written" in text for text in inspect_dataset.inspect(path).problems)


def test_a_type_of_many_fields_is_described_in_one_line(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    edit(path, "data/demo_0/actions", np.zeros(7, [(f"field_{i}", "f8") for i in range(500)]))
    with pytest.raises(DatasetError) as error:
        opened(path, use_state=1)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("place", ["attribute", "side"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": [' + "0," * 2**20 + "0]}", "(more than|larger than) 1,048,576 "),
        ('{"a": %s}' % ("9" * 5000), "an integer of 5000 digits, expected at most 100$"),
        ("[" * 30_000, "nested too deeply$"),
    ],
)
def test_descriptions_of_no_environment(tmp_path, place, text, message):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    (tmp_path / "env_cfg.json").write_text(text)
    with h5py.File(path, "r+") as file:
        del file["data"].attrs["env_args"]
        if place == "attribute":  # a text of variable length has its place outside the header
            file["data"].attrs["env_args"] = text
    with pytest.raises(DatasetError, match=message) as error:
        opened(path)
    assert "set_int_max_str_digits" not in str(error.value)


def test_names_of_numbers_that_python_does_not_read(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7, 5, 9))
    names = ["demo_" + "9" * 5000, "demo_\u00b2", "demo_007"]
    with h5py.File(path, "r+") as file:
        for number, name in enumerate(names):
            file["data"].move(f"demo_{number}", name)
    with DemoFile(path) as demos:
        assert demos.names == [names[2], names[0], names[1]]


@pytest.mark.parametrize("damage", ["one more", "beyond the end", "around"])
def test_a_damaged_heap_of_texts_is_refused(tmp_path, damage):
    """HDF5 itself would go round and round in it."""
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    with h5py.File(path, "r+") as file:
        file["data"].attrs["env"] = "x" * 3
    data = bytearray(path.read_bytes())
    size = data.index(b"GCOL") + 16 + 8  # of the first text
    assert 0 < int.from_bytes(data[size : size + 8], "little") < 1000
    if damage == "one more":
        data[size + 1] += 1
    else:
        width = 4 if damage == "beyond the end" else 8
        data[size : size + width] = b"\xff" * width
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="d.hdf5' cannot be read as HDF5 .*heap of strings"):
        opened(path)


@pytest.mark.parametrize(("times", "message"), [(1, "chunks hold at most"), (2, "more than once")])
def test_packed_bytes_that_give_more_than_is_declared_are_refused(tmp_path, times, message):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    data = bytes(2**27)
    for _ in range(times):
        data = zlib.compress(data, 9)
    with h5py.File(path, "r+") as file:
        shape, kind = file[KEY].shape, h5py.h5t.STD_U8LE
        del file[KEY]
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk(shape)
        for _ in range(times):
            plan.set_deflate(9)
        space = h5py.h5s.create_simple(shape)
        made = h5py.h5d.create(file.id, KEY.encode(), kind, space, dcpl=plan)
        made.write_direct_chunk((0, 0, 0, 0), data)
    assert len(data) < 2**18
    for max_ram_gb in (8.0, 0.0):
        with pytest.raises(DatasetError, match=f"{CAMERA}_image': .*{message}"):
            opened(path, max_ram_gb=max_ram_gb)
    assert any(message in text for text in inspect_dataset.inspect(path).problems)


def test_numbers_that_cannot_be_packed_smaller_are_read(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    frames = stored(path)
    replace_images(path, lambda obs, name: obs.create_dataset(
        name, data=frames, chunks=(1, 1, 2, 2), compression="gzip", fletcher32=True))  # fmt: skip
    np.testing.assert_array_equal(all_frames(opened(path)), frames)


def test_one_small_dataset_under_many_names(tmp_path):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,))
    with h5py.File(path, "r+") as file:
        for key, shape in (("actions", (2**17, 8)), ("rewards", (2**17,))):
            del file[f"data/demo_0/{key}"]
            file["data/demo_0"].create_dataset(key, data=np.zeros(shape), compression="gzip")
        for number in range(1, 200):
            file[f"data/demo_{number}"] = file["data/demo_0"]
    with pytest.raises(DatasetError, match="together with the datasets before it this one would"):
        opened(path, use_state=1, eval_episode_len=-1)


def test_what_fits_the_file_but_not_memory_is_refused(tmp_path, monkeypatch):
    path = write_robomimic(tmp_path / "d.hdf5", lengths=(7,), size=8)
    frames = np.random.default_rng(0).integers(0, 256, (7, 3, 512, 512), np.uint8)
    frames = np.repeat(np.repeat(frames, 4, axis=-1), 4, axis=-2)  # packs 15 to 1
    replace_images(path, lambda obs, name: obs.create_dataset(
        name, data=frames, chunks=(1, 3, 2048, 2048), compression="gzip"))  # fmt: skip
    monkeypatch.setattr("bc.dataset.available_memory", lambda: 50 * 2**20)
    data = opened(path)  # images are read one by one
    assert data.lazy
    with pytest.raises(DatasetError, match="a batch of 14 agentviews would take 168.0 MiB"):
        data.batch_at(np.arange(14) % 7)
    data.close()
    with pytest.raises(DatasetError, match="images of 1 demonstrations would take 84.0 MiB of mem"):
        read_demos(path, rule=SparseReward("robosuite"), cameras=[CAMERA])
    monkeypatch.setattr("bc.demo_arrays.available_memory", lambda: 50 * 2**20)
    with DemoFile(path) as file, pytest.raises(DatasetError, match="takes 84.0 MiB of memory, 50"):
        file.images("demo_0", CAMERA)
