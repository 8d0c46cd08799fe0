"""LeRobot datasets: a fixture that the real lerobot wrote and read, damage, and the way back.

``tests/interop/make_lerobot_fixture.py`` made the fixture. That the real lerobot reads what is
written here is tested by ``tests/interop/test_lerobot_reads.py``.
"""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bc.dataset import DatasetConfig, RobomimicDataset, read_demos
from bc.dataset_config import KeyOptions
from bc.demos import DatasetError
from bc.formats import open_demos
from bc.loader import DemoFile
from common_utils import run_config
from common_utils.run_config import ConfigError
from common_utils.success_rule import AsRecorded
from env.config import EnvConfig
from env.core import EnvError
from env.factory import check_rate
from tests.bc.test_dataset import write_metaworld, write_robomimic
from tools.convert_dataset import MainConfig, convert

FIXTURE = Path(__file__).parent / "fixtures" / "lerobot"
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
VIDEO = "videos/observation.images.front/chunk-000/file-000.mp4"
NAMES = ["episode_0", "episode_1", "episode_2"]


@pytest.fixture
def push(tmp_path):
    """A copy of the fixture that may be damaged."""
    return Path(shutil.copytree(FIXTURE / "push", tmp_path / "push"))


def all_of(demos, get):
    """One array over all demonstrations."""
    return np.concatenate([get(name) for name in demos.names])


# ---------------------------------------------------------------- reading


def test_numbers_and_pictures_are_those_that_lerobot_reads():
    expected = np.load(FIXTURE / "expected.npz")
    with open_demos(FIXTURE / "push") as demos:
        assert demos.names == NAMES and demos.notes == [] and demos.fps == expected["fps"]
        assert [demos.length(n) for n in NAMES] == expected["lengths"].tolist()
        for key, feature in {
            "actions": "action", "rewards": "next.reward", "dones": "next.done",
            "infos/success": "next.success", "obs/state": "observation.state",
            "obs/environment_state": "observation.environment_state",
            "obs/front_image": "observation.images.front",
            "obs/wrist_image": "observation.images.wrist",
        }.items():  # fmt: skip
            array = all_of(demos, lambda name, key=key: demos.array(name, key))
            np.testing.assert_array_equal(array, expected[feature], strict=True)
        assert [demos.attribute(n, "", "tasks") for n in NAMES] == ["push the block"] * 3
        assert [demos.verdict(n) for n in NAMES] == [("", True), ("", False), ("", True)]
        for name in NAMES:
            demos.check(name)


def test_state_is_all_that_is_known_and_proprioception_the_robots_own():
    expected = np.load(FIXTURE / "expected.npz")
    own, around = expected["observation.state"], expected["observation.environment_state"]
    with open_demos(FIXTURE / "push") as demos:
        state = all_of(demos, lambda n: demos.vector(n, "state"))
        np.testing.assert_array_equal(state, np.concatenate([own, around], axis=1))
        np.testing.assert_array_equal(all_of(demos, lambda n: demos.vector(n, "prop")), own)
    keys = KeyOptions(state="observation.environment_state", reward="next.success")
    with open_demos(FIXTURE / "push", keys) as demos:
        np.testing.assert_array_equal(all_of(demos, lambda n: demos.vector(n, "state")), around)
        rewards = all_of(demos, demos.rewards)
        np.testing.assert_array_equal(rewards, expected["next.success"].astype(np.float32))


@pytest.mark.parametrize("camera", ["front", "wrist"])
@pytest.mark.parametrize("rows", [[0], [3], [1, 3], [0, 1, 2, 3]], ids=str)
def test_single_pictures_are_decoded(camera, rows):
    expected = np.load(FIXTURE / "expected.npz")[f"observation.images.{camera}"]
    with open_demos(FIXTURE / "push") as demos:
        last = demos.images("episode_2", camera, np.array([2]))  # the decoder stands behind them
        np.testing.assert_array_equal(last[0], expected[8])
        found = demos.images("episode_0", camera, np.array(rows))
        np.testing.assert_array_equal(found, expected[rows])
        assert demos.images("episode_1", camera, np.array([], int)).shape == (0, 3, 32, 32)


def test_bc_batches_are_the_same_from_ram_and_from_the_video():
    keys = KeyOptions(cameras="agentview=observation.images.front")
    batches, steps = [], np.array([8, 0, 5, 1, 4])
    for max_ram_gb in (8.0, 0.0):
        cfg = DatasetConfig(
            path=str(FIXTURE / "push"), rl_camera="agentview+wrist", obs_stack=2, keys=keys,
            max_ram_gb=max_ram_gb,
        )  # fmt: skip
        data = RobomimicDataset(cfg)
        assert data.lazy == (max_ram_gb == 0) and data.fps == 10
        batches.append(data.batch_at(steps))
        data.close()
    expected = np.load(FIXTURE / "expected.npz")
    pictures = expected["observation.images.front"]
    for batch in batches:
        front = batch.obs["agentview"].numpy()
        np.testing.assert_array_equal(front[:, :3], pictures[steps])
        np.testing.assert_array_equal(front[1, 3:], 0)  # nothing before an episode's start
        np.testing.assert_array_equal(front[4, 3:], 0)
        np.testing.assert_array_equal(front[3, 3:], pictures[0])
        np.testing.assert_array_equal(batch.obs["prop"], expected["observation.state"][steps])
        np.testing.assert_array_equal(batch.action, expected["action"][steps])
    np.testing.assert_array_equal(batches[0].obs["wrist"], batches[1].obs["wrist"])


def test_rl_reads_rewards_and_which_episodes_are_successes():
    demos = read_demos(FIXTURE / "push", rule=AsRecorded("gymnasium"), use_state=True)
    assert demos.num_success == 2 and demos.fps == 10
    found = [demo.success for demo in demos]
    assert found == [True, False, True]


def test_without_rewards_bc_reads_and_rl_refuses(push):
    edit_info(push, lambda info: info["features"].pop("next.reward"))
    cfg = DatasetConfig(path=str(push), use_state=1)
    assert "rewards are not recorded; BC does not need" in RobomimicDataset(cfg).notes[0]
    with pytest.raises(DatasetError, match="'rewards': missing; .*; dataset.keys.reward"):
        read_demos(push, rule=AsRecorded("gymnasium"), use_state=True)


def test_actions_beyond_the_range_come_with_the_options_that_map_it(push):
    edit_table(push / DATA, "action", lambda t: t * 30)
    edit_json(push / "meta/stats.json", lambda s: s["action"].update(min=[-30, -20.5], max=[30, 9]))
    cfg = DatasetConfig(path=str(push), use_state=1)
    with pytest.raises(DatasetError, match=r"must be in \[-1, 1\]; the dataset's range") as error:
        RobomimicDataset(cfg)
    options = '--dataset.action_low "[-30.0, -20.5]" --dataset.action_high "[30.0, 9.0]"'
    assert options in str(error.value)
    cfg = DatasetConfig(path=str(push), use_state=1, action_low=[-30.0], action_high=[30.0])
    want = np.load(FIXTURE / "expected.npz")["action"]
    got = np.concatenate([demo.actions for demo in RobomimicDataset(cfg).episodes()])
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_env_cfg_json_in_the_folder_names_the_environment(push):
    kwargs = {"robots": "Sawyer", "action_repeat": 2}
    (push / "env_cfg.json").write_text(json.dumps({"env_name": "Push", "env_kwargs": kwargs}))
    with open_demos(push) as demos:
        assert (demos.suite, demos.env_name) == ("metaworld", "Push")


def test_missing_packages_are_named(monkeypatch):
    for package in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DatasetError, match=r"need the package 'pyarrow'; .*\[data\]"):
        open_demos(FIXTURE / "push")


@pytest.mark.parametrize("suite, rate", [("robosuite", 20), ("metaworld", 40)])
def test_recordings_at_another_rate_are_refused(suite, rate):
    cfg = EnvConfig(suite=suite, task="Reach", action_repeat=2)
    assert check_rate(cfg, rate, "d") == check_rate(cfg, None, "d") == ""
    with pytest.raises(EnvError, match=f"'d': recorded at 30 steps per second, but .*at {rate},"):
        check_rate(cfg, 30.0, "d")
    note = check_rate(EnvConfig(suite="gymnasium", task="x"), 30.0, "d")
    assert "recorded at 30 steps per second; the suite gymnasium has no fixed rate" in note


# ---------------------------------------------------------------- damage


def edit_json(path, change):
    """Change a JSON file in place."""
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def edit_info(folder, change):
    """Change meta/info.json in place."""
    edit_json(folder / "meta/info.json", change)


def edit_table(path, name, change):
    """Change a column of a parquet file; ``change`` takes and returns a numpy array."""
    table = pq.read_table(path)
    before = table.column(name)
    values = np.array(before.to_pylist())
    after = pa.array(change(values).tolist())
    pq.write_table(table.set_column(table.column_names.index(name), name, after), path)


def drop_column(path, name):
    """Remove a column of a parquet file."""
    pq.write_table(pq.read_table(path).drop_columns([name]), path)


def cut(path, share=0.5):
    """Keep the first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def set_feature(name, **values):
    """An edit of ``features`` in info.json."""
    return lambda folder: edit_info(folder, lambda info: info["features"][name].update(values))


def first_is(value):
    """An edit of an array: its first entry."""

    def change(array):
        array[0] = value
        return array

    return change


DAMAGE = {
    "version": (
        lambda f: edit_info(f, lambda i: i.update(codebase_version="v2.1")),
        r"info.json': codebase_version is 'v2.1' \(str\), expected v3.x; lerobot converts older",
    ),
    "no version": (lambda f: edit_info(f, lambda i: i.pop("codebase_version")), "is None"),
    "not json": (lambda f: (f / "meta/info.json").write_text("{"), "info.json': .*not valid JSON"),
    "a list": (lambda f: (f / "meta/info.json").write_text("[]"), "info.json': expected a JSON"),
    "fps": (lambda f: edit_info(f, lambda i: i.update(fps=0)), "fps is 0 .*, expected a number"),
    "fps text": (lambda f: edit_info(f, lambda i: i.update(fps="10")), "fps is '10'"),
    "no features": (lambda f: edit_info(f, lambda i: i.pop("features")), "features is None"),
    "shape": (set_feature("action", shape=[-2]), r"features.action.shape is \[-2\]"),
    "picture shape": (
        set_feature("observation.images.front", shape=[32, 32]),
        r"features.observation.images.front.shape is \[32, 32\] .*expected \[height, width, chan",
    ),
    "four channels": (
        set_feature("observation.images.front", shape=[32, 32, 4]), "expected 3 channels",
    ),
    "total_frames": (
        lambda f: edit_info(f, lambda i: i.update(total_frames=10)),
        "meta/episodes': has 9 steps in all, but total_frames of meta/info.json is 10",
    ),
    "total_episodes": (
        lambda f: edit_info(f, lambda i: i.update(total_episodes=4)),
        "meta/episodes': has 3 episodes, but total_episodes of meta/info.json is 4",
    ),
    "path outside": (
        lambda f: edit_info(f, lambda i: i.update(data_path="../push/" + DATA)),
        "data of an episode is '../push/data/.*', expected a path inside",
    ),
    "absolute path": (
        lambda f: edit_info(f, lambda i: i.update(data_path=str(f / DATA))), "expected a path in",
    ),
    "path that computes": (
        lambda f: edit_info(f, lambda i: i.update(data_path="{chunk_index.__class__}")),
        r"data_path is .*expected a path with the places \{chunk_index\}, \{file_index\}",
    ),
    "endless path": (
        lambda f: edit_info(f, lambda i: i.update(data_path="{chunk_index:0999999999d}")),
        "data_path is .*expected a path with the places",
    ),
    "no episodes": (lambda f: shutil.rmtree(f / "meta/episodes"), "meta/episodes': missing"),
    "no data": (lambda f: (f / DATA).unlink(), f"'{DATA}': missing, but an episode lies in it"),
    "no video": (lambda f: (f / VIDEO).unlink(), f"'{VIDEO}': missing, but an episode lies"),
    "data cut": (lambda f: cut(f / DATA), f"'{DATA}': cannot be read as parquet"),
    "episodes cut": (lambda f: cut(f / EPISODES), f"'{EPISODES}': cannot be read as parquet"),
    "data is text": (lambda f: (f / DATA).write_text("step"), f"'{DATA}': cannot be read as parq"),
    "video cut": (lambda f: cut(f / VIDEO, 0.3), f"'{VIDEO}': "),
    "video is text": (lambda f: (f / VIDEO).write_text("x"), f"'{VIDEO}': cannot be read as video"),
    "no length": (lambda f: drop_column(f / EPISODES, "length"), "no column 'length'"),
    "length": (
        lambda f: [
            edit_table(f / EPISODES, "length", first_is(5)),
            edit_info(f, lambda i: i.update(total_frames=10)),
        ],
        f"'{DATA}': has 4 rows of episode 0, but meta/episodes says 5 steps",
    ),
    "length is text": (
        lambda f: edit_table(f / EPISODES, "length", lambda a: a.astype(str)), "length is '4'",
    ),
    "negative time": (
        lambda f: edit_table(
            f / EPISODES, "videos/observation.images.front/from_timestamp", first_is(-1.0)
        ),
        "from_timestamp is -1.0",
    ),
    "time beyond the end": (
        lambda f: edit_table(
            f / EPISODES, "videos/observation.images.front/from_timestamp", first_is(50.0)
        ),
        f"'{VIDEO}': ends before 50.000 s",
    ),
    "order": (
        lambda f: edit_table(f / EPISODES, "episode_index", lambda a: a[::-1]),
        "row 0': episode_index 2 of 4 steps, expected episode 0",
    ),
    "other episodes": (
        lambda f: edit_table(f / DATA, "episode_index", lambda a: a + 1), "has 0 rows of episode 0",
    ),
    "no action column": (lambda f: drop_column(f / DATA, "action"), "no column 'action'; it has"),
    "no action": (
        lambda f: edit_info(f, lambda i: i["features"].pop("action")), "'actions': missing; its f",
    ),
    "width": (
        set_feature("action", shape=[3]), "column 'action' has steps of 2 to 2 numbers, expected 3",
    ),
    "texts": (
        lambda f: edit_table(f / DATA, "next.reward", lambda a: a.astype(str)),
        "column 'next.reward' is string, expected numbers",
    ),
    "NaN": (
        lambda f: edit_table(f / DATA, "action", first_is(np.nan)),
        "episode_0, 'actions': holds NaN or infinity, first at step 0",
    ),
    "gap": (
        lambda f: edit_table(f / DATA, "next.reward", lambda a: np.array([None, *a[1:]])),
        "column 'next.reward' lacks 1 values",
    ),
    "dtype": (set_feature("action", dtype="vector"), "dtype of action is 'vector'"),
    "video size": (
        set_feature("observation.images.front", shape=[16, 32, 3]),
        f"'{VIDEO}': has frames of 32 x 32 pixels, expected 16 x 32",
    ),
    "picture size": (
        set_feature("observation.images.wrist", shape=[16, 32, 3]),
        "'obs/wrist_image': step 0 has 32 x 32 pixels, expected 16 x 32",
    ),
    "picture bytes": (
        lambda f: edit_table(
            f / DATA, "observation.images.wrist",
            lambda a: np.array([{"bytes": d["bytes"][:60], "path": None} for d in a]),
        ),
        "'obs/wrist_image': step 0 cannot be decoded",
    ),
    "pictures elsewhere": (
        lambda f: edit_table(
            f / DATA, "observation.images.wrist",
            lambda a: np.array([{"bytes": None, "path": "/etc/passwd"} for _ in a]),
        ),
        "has pictures that are not in the file itself",
    ),
    "what was added": (lambda f: (f / "meta/ibrl.json").write_text('{"keys": 3}'), "expected keys"),
    "environment": (lambda f: (f / "env_cfg.json").write_text("{"), "env_cfg.json': not valid"),
}  # fmt: skip


def read_everything(folder):
    """What training reads of a dataset, and all its pictures."""
    with open_demos(folder) as demos:
        for name in demos.names:
            demos.check(name)
            demos.actions(name), demos.rewards(name), demos.vector(name, "state")
            for camera in ("front", "wrist"):
                demos.images(name, camera)


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused_in_a_line_that_names_it(push, kind):
    change, message = DAMAGE[kind]
    read_everything(push)
    change(push)
    with pytest.raises(DatasetError, match=message) as error:
        read_everything(push)
    assert str(error.value).startswith(f"'{push}'") and len(str(error.value)) < 700


@pytest.mark.parametrize("relative", [DATA, EPISODES, VIDEO, "meta/info.json"])
def test_a_cut_at_any_place_is_refused_or_changes_nothing(push, relative):
    whole = (push / relative).read_bytes()
    for share in np.linspace(0, 0.99, 12):
        (push / relative).write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DatasetError):
            read_everything(push)


@pytest.mark.parametrize("relative", [DATA, EPISODES, VIDEO])
def test_changed_bytes_raise_nothing_else(push, relative):
    whole, rng = (push / relative).read_bytes(), np.random.default_rng(0)
    for _ in range(25):
        data = bytearray(whole)
        for place in rng.integers(len(data), size=3):
            data[place] = rng.integers(256)
        (push / relative).write_bytes(data)
        with suppress(DatasetError):
            read_everything(push)


def test_a_table_made_to_fill_memory_is_refused(push):
    """Equal numbers pack a thousand to one; nothing is unpacked before sizes are compared."""
    table = pa.table({"episode_index": pa.array(np.zeros(10**7, np.int64))})
    pq.write_table(table, push / DATA, compression="zstd")
    with pytest.raises(DatasetError, match="column 'episode_index' would take 76.3 MiB, of which"):
        open_demos(push)


def test_keys_that_are_not_there_are_named(push):
    with open_demos(push) as demos, pytest.raises(DatasetError) as error:
        demos.images("episode_0", "agentview")
    assert "dataset.keys.cameras agentview=observation.images.front" in str(error.value)
    with pytest.raises(DatasetError, match="'observation.pose': no such feature; it has obs"):
        open_demos(push, KeyOptions(state="observation.pose")).vector("episode_0", "state")


# ---------------------------------------------------------------- there and back


def converted(source, out, *options):
    """Convert by the command's own options."""
    args = ["--dataset", str(source), "--out", str(out), *options]
    return convert(run_config.parse(MainConfig, args))


@pytest.mark.parametrize("options", [["--lossless"], [], ["--codec", "av1"]], ids=str)
def test_robomimic_files_come_back_unchanged(tmp_path, options):
    source = write_robomimic(tmp_path / "d.hdf5", (7, 5), size=32)
    with h5py.File(source, "a") as file:
        for number, demo in enumerate(file["data"].values()):
            demo["states"] = np.random.default_rng(number).normal(size=(len(demo["actions"]), 4))
            demo["infos/grasped"] = np.arange(len(demo["actions"])) % 2
            demo.attrs.update(ended="terminated", success=True, seed=number + 5)
            for camera in ("agentview", "robot0_eye_in_hand"):  # noise would be no test of a codec
                smooth = demo[f"obs/{camera}_image"]
                smooth[...] = np.linspace(40, 200, 32, dtype=np.uint8)
        file["mask/train"] = np.array(["demo_1"], "S")
    folder = converted(source, tmp_path / "lerobot", *options)
    back = converted(folder, tmp_path / "back.hdf5", "--format", "hdf5")
    with DemoFile(source) as a, open_demos(folder) as b, DemoFile(back) as c:
        assert b.fps == 20 and a.env_args == b.env_args == c.env_args
        assert [d.filtered("train") for d in (a, b, c)] == [["demo_1"], ["episode_1"], ["demo_1"]]
        for x, y, z in zip(a.names, b.names, c.names, strict=True):
            for demos, name in ((b, y), (c, z)):
                np.testing.assert_array_equal(demos.actions(name), a.actions(x))
                np.testing.assert_array_equal(demos.rewards(name), a.rewards(x))
                np.testing.assert_array_equal(demos.array(name, "states"), a.array(x, "states"))
                np.testing.assert_array_equal(demos.info(name, "grasped"), a.info(x, "grasped"))
                for kind in ("state", "prop"):
                    np.testing.assert_array_equal(demos.vector(name, kind), a.vector(x, kind))
                assert demos.verdict(name) == a.verdict(x)
                assert demos.attribute(name, "", "seed") == a.attribute(x, "", "seed")
                apart = np.abs(
                    demos.images(name, "agentview").astype(int) - a.images(x, "agentview")
                )
                assert apart.max() <= (0 if options == ["--lossless"] else 6)


def test_metaworlds_privileged_state_is_not_observation_state(tmp_path):
    """lerobot's policies on pictures read observation.state."""
    source = write_metaworld(tmp_path / "d.hdf5", size=32)
    folder = converted(source, tmp_path / "lerobot", "--lossless")
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    assert features["observation.state"]["shape"] == [4]
    assert features["observation.environment_state"]["shape"] == [39]
    with DemoFile(source) as a, open_demos(folder) as b:
        assert b.fps == 40  # 80 Hz, two simulator steps per control step
        for kind in ("state", "prop"):
            np.testing.assert_array_equal(b.vector("episode_1", kind), a.vector("demo_1", kind))


def test_large_datasets_are_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr("bc.lerobot.writer.DATA_MB", 1e-9)
    monkeypatch.setattr("bc.lerobot.writer.VIDEO_MB", 1e-9)
    monkeypatch.setattr("bc.lerobot.writer.CHUNK", 2)
    source = write_metaworld(tmp_path / "d.hdf5", (6, 4, 5), size=32)
    folder = converted(source, tmp_path / "several")
    files = [f"chunk-{c:03d}/file-{f:03d}" for c, f in ((0, 0), (0, 1), (1, 0))]
    found = sorted(str(p.relative_to(folder)) for p in folder.glob("[dv]*/**/*.*4"))
    cameras = [f"videos/observation.images.{c}" for c in ("corner2", "plain")]
    assert found == [f"{camera}/{file}.mp4" for camera in cameras for file in files]
    tables = sorted(folder.glob("data/*/*"))
    assert [str(p.relative_to(folder)) for p in tables] == [f"data/{f}.parquet" for f in files]
    monkeypatch.undo()
    together = converted(source, tmp_path / "together")
    with open_demos(folder) as a, open_demos(together) as b:
        for name in a.names:
            np.testing.assert_array_equal(a.actions(name), b.actions(name))
            apart = a.images(name, "plain").astype(int) - b.images(name, "plain")
            assert np.abs(apart).mean() < 8  # encoded from different beginnings


def test_the_fixture_becomes_hdf5_with_reward_done_and_success(tmp_path):
    back = converted(FIXTURE / "push", tmp_path / "back.hdf5", "--format", "hdf5", "--num", "2")
    expected = np.load(FIXTURE / "expected.npz")
    with h5py.File(back) as file:
        assert list(file["data"]) == ["demo_0", "demo_1"]
        demo = file["data/demo_0"]
        for key, feature in {
            "actions": "action", "rewards": "next.reward", "dones": "next.done",
            "infos/success": "next.success", "obs/front_image": "observation.images.front",
            "obs/state": "observation.state",
        }.items():  # fmt: skip
            np.testing.assert_array_equal(demo[key], expected[feature][:4])
        assert demo.attrs["success"] and not file["data/demo_1"].attrs["success"]


def test_statistics_are_those_of_the_numbers(tmp_path):
    source = write_robomimic(tmp_path / "d.hdf5", (7, 5), size=32)
    folder = converted(source, tmp_path / "lerobot", "--lossless")
    stats = json.loads((folder / "meta/stats.json").read_text())
    with open_demos(folder) as demos:
        actions = all_of(demos, demos.actions).astype(np.float64)
        frames = all_of(demos, lambda n: demos.images(n, "agentview")) / 255
    for name in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(stats["action"][name], getattr(np, name)(actions, axis=0))
        found = np.array(stats["observation.images.agentview"][name])
        assert found.shape == (3, 1, 1)
        want = getattr(np, name)(frames, axis=(0, 2, 3))
        np.testing.assert_allclose(found[:, 0, 0], want, atol=1e-12)
    parts = [actions[:7], actions[7:]]
    want = (7 * np.quantile(parts[0], 0.1, 0) + 5 * np.quantile(parts[1], 0.1, 0)) / 12
    np.testing.assert_allclose(stats["action"]["q10"], want)
    assert stats["action"]["count"] == [12]


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path):
    source = write_robomimic(tmp_path / "d.hdf5", size=9)
    with pytest.raises(DatasetError, match="agentview: 9 x 9 pixels, expected even sizes"):
        converted(source, tmp_path / "out")
    with pytest.raises(ConfigError, match="num: 9, but .* has 3 demonstrations"):
        converted(source, tmp_path / "out", "--num", "9")
    with pytest.raises(ConfigError, match="out: '.*d.hdf5' exists already, expected a new name"):
        converted(source, source)
    with h5py.File(source, "a") as file:
        del file["data/demo_1/obs/object"], file["data"].attrs["env_args"]
        file["data/demo_1/obs/object"] = np.zeros((5, 3))
    with pytest.raises(ConfigError, match="fps: 0, but neither '.*d.hdf5' nor its suite"):
        converted(source, tmp_path / "out")
    with pytest.raises(DatasetError, match=r"demo_1, 'obs/object': has shape \[5, 3\], exp"):
        converted(source, tmp_path / "out", "--fps", "10", "--lossless")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.hdf5"]
