"""rl.replay.ReplayBuffer: what the trainer sees."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from bc.dataset import read_demos
from bc.demos import DatasetError
from bc.loader import DemoFile
from common_utils.specs import ArraySpec, Batch
from common_utils.success_rule import SparseReward
from rl.replay import ReplayBuffer, ReplayError, split_flat
from rl.replay_io import write_hdf5

SPECS = {"state": ArraySpec((6,), "float32", 3), "cam": ArraySpec((3, 8, 8), "uint8")}
K, A = 2, 3


def make(**changes: Any) -> ReplayBuffer:
    options: dict[str, Any] = {
        "nstep": 3,
        "gamma": 0.9,
        "max_episode_length": 30,
        "replay_size": 6,
        "seed": 1,
        "use_bc": True,
        "num_bc_action": K,
        **changes,
    }
    return ReplayBuffer(SPECS, A, **options)


class FakeTask:
    """Observations that tell episode and time; stacks made as environments make them."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.number = -1

    def reset(self) -> dict[str, Any]:
        self.number += 1
        self.t = 0
        self.frames = [np.array([self.number, 0], np.float32)]
        return self.obs()

    def step(self) -> dict[str, Any]:
        self.t += 1
        self.frames.append(np.array([self.number, self.t], np.float32))
        return self.obs()

    def obs(self) -> dict[str, Any]:
        zeros = [np.zeros(2, np.float32)] * 2
        newest = [*zeros, *self.frames][-3:][::-1]
        return {
            "state": np.concatenate(newest),
            "cam": torch.full((3, 8, 8), (self.number * 20 + self.t) % 256, dtype=torch.uint8),
            "bc_action": np.full((K, A), self.number + self.t / 100, np.float32),
            "not stored": 1,
        }


def drive(
    buffer: ReplayBuffer, task: FakeTask, steps: int, draw: bool = True
) -> list[torch.Tensor]:
    """Random steps with random ends, sampling in between; everything sampled."""
    seen: list[torch.Tensor] = []
    for _ in range(steps):
        if not buffer._running:
            buffer.new_episode(task.reset())
        u = task.rng.random()
        obs = task.step()
        terminated, truncated = u < 0.1, bool(0.1 < u < 0.2 or task.t == 30)
        action = np.full(A, task.t - 1, np.float32)
        buffer.add(obs, action, u, terminated, truncated, success=terminated)
        if draw and buffer.size(bc=True):
            for b in (buffer.sample_rl_bc(5, 3), buffer.sample(4), buffer.sample_bc(2)):
                seen += [b.obs["state"], b.next_obs["cam"], b.action, b.reward, b.bootstrap]
                assert b.bc_action is not None
                assert b.next_bc_action is not None
                seen += [b.bc_action, b.next_bc_action]
    return seen


def assert_equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("bootstrap_truncated", [False, True])
def test_batches_hold_what_the_episodes_held(bootstrap_truncated: bool) -> None:
    buffer = make(bootstrap_truncated=bootstrap_truncated, gamma=0.5)
    task = FakeTask(0)
    buffer.new_episode(task.reset())
    for t in range(5):
        buffer.add(task.step(), np.full(A, t), 1.0, False, t == 4, False)
    batch = buffer.sample(200)
    assert isinstance(batch, Batch)
    assert {k: (tuple(v.shape), v.dtype) for k, v in batch.obs.items()} == {
        "state": ((200, 6), torch.float32),
        "cam": ((200, 3, 8, 8), torch.uint8),
    }
    assert batch.bc_action.shape == batch.next_bc_action.shape == (200, K, A)
    seen = set()
    for i in range(200):
        t = int(batch.action[i, 0])
        seen.add(t)
        times = batch.obs["state"][i].view(3, 2)[:, 1].tolist()
        assert times == [max(0, t - j) for j in range(3)]
        last = 5 if bootstrap_truncated else 4
        ahead = min(t + 3, last)
        assert batch.next_obs["state"][i].view(3, 2)[:, 1].tolist() == [
            ahead,
            ahead - 1,
            ahead - 2,
        ]
        assert (batch.next_obs["cam"][i] == ahead).all()
        assert batch.next_bc_action[i, 0, 0] == pytest.approx(ahead / 100)
        k = min(3, 5 - t)
        assert batch.reward[i] == sum(0.5**j for j in range(k))
        inside = t + 3 < 5
        assert batch.bootstrap[i] == (0.5**k if inside or bootstrap_truncated else 0)
    assert seen == set(range(5))


def test_terminated_never_bootstraps_even_when_also_truncated() -> None:
    buffer = make(bootstrap_truncated=True, num_bc_action=0, nstep=1)
    task = FakeTask(0)
    buffer.new_episode(task.reset())
    buffer.add(task.step(), np.zeros(A), 1.0, True, True, True)
    assert buffer.sample(3).bootstrap.tolist() == [0, 0, 0]
    assert buffer.sample(1).bc_action is None


def test_same_seed_same_batches_whatever_prefetch_threads_and_storage(tmp_path: Path) -> None:
    options: list[dict[str, Any]] = [
        {},
        {"prefetch": 3},
        {"num_threads": 4, "prefetch": 1},
        {"storage": str(tmp_path)},
    ]
    runs = [drive(make(**o), FakeTask(3), 150) for o in options]
    for other in runs[1:]:
        assert_equal(runs[0], other)
    different = drive(make(seed=2), FakeTask(3), 150)
    assert any(not torch.equal(x, y) for x, y in zip(runs[0], different, strict=True))


@pytest.mark.parametrize("way", ["state_dict", "folder"])
@pytest.mark.parametrize("bootstrap_truncated", [False, True])
def test_resume_in_the_middle_of_an_episode_is_exact(
    way: str, bootstrap_truncated: bool, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"bootstrap_truncated": bootstrap_truncated, "save_per_success": 3}
    for steps in (1, 17, 120):
        folder = tmp_path / str(steps)
        a = make(**options, prefetch=2, save_dir=str(folder / "a"))
        b = make(**options, save_dir=str(folder / "b"))
        task, other = FakeTask(5), FakeTask(5)
        drive(a, task, steps)
        drive(b, FakeTask(9), 20)  # what b held and wrote before must not matter
        for old in folder.glob("b/*"):
            old.unlink()
        if way == "state_dict":
            file = io.BytesIO()
            torch.save(a.state_dict(), file)
            file.seek(0)
            b.load_state_dict(torch.load(file, weights_only=True))
        else:
            a.save(folder / "state")
            b.load(folder / "state")
        drive(make(), other, steps, draw=False)  # bring the second task to the same state
        assert_equal(drive(a, task, 100), drive(b, other, 100))
        assert (a.num_success, a.num_episode) == (b.num_success, b.num_episode)
        written = sorted(folder.glob("b/*.h5"))  # the first mixes successes of before and after
        assert written
        for path in written:
            with h5py.File(folder / "a" / path.name) as x, h5py.File(path) as y:
                for demo in ("demo_0", "demo_1", "demo_2"):
                    for part in ("rewards", "actions", "obs/state", "obs/cam_image"):
                        np.testing.assert_array_equal(
                            x[f"data/{demo}/{part}"][:], y[f"data/{demo}/{part}"][:]
                        )


def test_damaged_or_foreign_folders_are_refused(tmp_path: Path) -> None:
    buffer = make()
    drive(buffer, FakeTask(0), 50)
    with pytest.raises(FileNotFoundError, match="no complete replay"):
        buffer.load(tmp_path)
    buffer.save(tmp_path / "a")
    with pytest.raises(FileExistsError, match="empty folder"):
        buffer.save(tmp_path / "a")
    with pytest.raises(ValueError, match="holds replays"):
        make(use_bc=False).load(tmp_path / "a")
    with pytest.raises(ValueError, match="n_step"):
        make(nstep=2).load(tmp_path / "a")
    make().load(tmp_path / "a")


def test_successes_go_to_the_bc_replay_unless_frozen_or_long() -> None:
    buffer = make(bc_max_len=4)
    obs = {
        "state": np.zeros((6, 2), np.float32),
        "cam": np.zeros((6, 3, 8, 8), np.uint8),
        "bc_action": np.zeros((6, K, A), np.float32),
    }

    def add(length: int, **kwargs: Any) -> None:
        frames = {k: v[:length] for k, v in obs.items()}
        buffer.add_episode(frames, np.zeros((length, A)), np.zeros(length), **kwargs)

    with pytest.raises(ReplayError, match="no successful episode"):
        buffer.sample_bc(3)
    with pytest.raises(ReplayError, match="no successful episode"):
        buffer.sample_rl_bc(3, 3)
    add(3)
    add(3, success=False)
    add(5)
    add(3, bc=False)
    buffer.freeze_bc_replay = True
    add(4)
    assert (buffer.size(), buffer.size(bc=True)) == (5, 1)
    assert (buffer.num_transitions(), buffer.num_transitions(bc=True)) == (18, 3)
    assert (buffer.num_episode, buffer.num_success) == (5, 4)
    assert buffer.sample_rl_bc(0, 4).reward.shape == buffer.sample_rl_bc(4, 0).reward.shape == (4,)
    plain = make(use_bc=False)
    with pytest.raises(ReplayError, match="use_bc"):
        plain.sample_bc(3)
    assert plain.size(bc=True) == 0


def test_a_demonstration_is_the_same_stepwise_and_at_once() -> None:
    one, two = make(), make()
    task = FakeTask(0)
    seen = [task.reset()]
    one.new_episode(seen[0])
    rewards = np.arange(7, dtype=np.float32)
    for t in range(7):
        seen.append(task.step())
        one.add(seen[-1], np.full(A, t), rewards[t], t == 6, False, t == 6)
    frames = {
        "state": np.stack([o["state"][:2] for o in seen[:7]]),
        "cam": torch.stack([o["cam"] for o in seen[:7]]).numpy(),
        "bc_action": np.stack([o["bc_action"] for o in seen[:7]]),
    }
    actions = np.repeat(np.arange(7, dtype=np.float64)[:, None], A, axis=1)
    two.add_episode(frames, actions, rewards)
    for bc in (False, True):
        a, b = (x.sample_bc(40) if bc else x.sample(40) for x in (one, two))
        for x, y in ((a.obs, b.obs), (a.next_obs, b.next_obs)):
            assert_equal(list(x.values()), list(y.values()))
        assert_equal([a.reward, a.bootstrap, a.action], [b.reward, b.bootstrap, b.action])


def test_saved_successes_have_raw_rewards_and_what_was_recorded(tmp_path: Path) -> None:
    def fresh() -> ReplayBuffer:
        return make(
            save_per_success=2,
            save_dir=str(tmp_path),
            reward_scale=0.1,
            env_args={"env_name": "fake"},
        )

    buffer = fresh()
    demo = {k: np.zeros((1, *s.frame_shape), s.dtype) for k, s in SPECS.items()}
    demo["bc_action"] = np.zeros((1, K, A), np.float32)
    buffer.add_episode(demo, np.zeros((1, A)), np.full(1, 0.1))  # in a file already
    task = FakeTask(0)
    for length in (2, 3, 4, 5, 6):
        buffer.new_episode(task.reset(), {"sim_state": np.zeros(9)})
        for t in range(length):
            over = t == length - 1
            record = {"sim_state": np.full(9, t + 1.0), **({"model_file": f"m{t}"} if over else {})}
            won = over and length != 4
            buffer.add(task.step(), np.zeros(A), 0.1 * over, over, False, won, record)
            if length == 6 and t == 2:  # goes on after a resume
                state, buffer = buffer.state_dict(), fresh()
                buffer.load_state_dict(state)
    assert "sim_state" not in buffer.sample(3).obs
    assert (buffer.num_success, buffer.successes.num_success) == (5, 4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data1.h5", "data2.h5"]
    with h5py.File(tmp_path / "data2.h5") as f:
        assert [len(f[f"data/demo_{i}/rewards"]) for i in range(2)] == [5, 6]
        demo = f["data/demo_0"]
        assert demo["rewards"][:].tolist() == [0, 0, 0, 0, 1]
        assert set(demo["obs"]) == {"cam_image", "state", "sim_state"}
        for key in ("obs/sim_state", "states"):
            assert demo[key][:, 0].tolist() == [0, 1, 2, 3, 4]
        assert [f[f"data/demo_{i}"].attrs["model_file"] for i in range(2)] == ["m4", "m5"]
        assert [f[f"data/demo_{i}"].attrs["ended"] for i in range(2)] == ["terminated"] * 2
        assert demo["obs/state"][2].reshape(3, 2)[:, 1].tolist() == [2, 1, 0]
    buffer.save_replay(tmp_path / "all.h5")
    with h5py.File(tmp_path / "all.h5") as f:
        assert [f[f"data/demo_{i}"].attrs["num_samples"] for i in range(6)] == [1, 2, 3, 4, 5, 6]
        assert f["data"].attrs["total"] == 21
    with DemoFile(tmp_path / "data2.h5") as file:
        assert file.env_name == "fake"
        newest = file.vector("demo_1", "state")
    assert newest[:, 1].tolist() == [0, 1, 2, 3, 4, 5]


def test_saved_stacks_are_read_back_as_frames(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    episodes = [
        {
            "obs": {
                "state": rng.normal(size=(n + 1, 4)).astype(np.float32),
                "prop": rng.normal(size=(n + 1, 2)).astype(np.float32),
                "cam": rng.integers(0, 256, (n + 1, 3, 8, 8), np.uint8),
            },
            "action": rng.uniform(-1, 1, (n, A)).astype(np.float32),
            "reward": np.eye(n, dtype=np.float32)[-1],
        }
        for n in (5, 2)
    ]
    env_args = {"env_name": "Assembly", "env_kwargs": {"action_repeat": 2}}
    path, rule = tmp_path / "saved.h5", SparseReward("metaworld")
    write_hdf5(path, episodes, {"state": 3, "prop": 1, "cam": 3}, env_args)
    with h5py.File(path) as f:
        assert f["data/demo_0/obs/state"].shape == (5, 12)
    for use_state, keys in ((True, ("state",)), (False, ("prop", "cam"))):
        back = list(
            read_demos(path, rule=SparseReward("fake"), cameras=["cam"], use_state=use_state)
        )
        assert len(back) == 2
        for e, demo in zip(episodes, back, strict=True):
            n = len(demo)
            np.testing.assert_array_equal(demo.actions, e["action"])
            np.testing.assert_array_equal(demo.rewards, e["reward"])
            for key in keys:
                np.testing.assert_array_equal(demo.observations[key], e["obs"][key][:n])
    with DemoFile(path) as file:
        assert (file.env_args, file.suite) == (env_args, "metaworld")
    with h5py.File(path, "r+") as f:
        f["data/demo_1/obs/state"].attrs["stack"] = 5
    with pytest.raises(DatasetError, match="demo_1, 'obs/state'.*'stack' is 5.*divisor of 12"):
        list(read_demos(path, rule=rule, use_state=True))


def test_misuse_is_refused_and_changes_nothing() -> None:
    buffer = make()
    task = FakeTask(0)
    first = task.reset()
    zero = np.zeros(A)
    with pytest.raises(ReplayError, match="call new_episode first"):
        buffer.add(first, zero, 0, False, False, False)
    buffer.new_episode(first)
    with pytest.raises(ReplayError, match="has not ended"):
        buffer.new_episode(first)
    obs = task.step()
    for changed, message in (
        ({"state": np.zeros(5, np.float32)}, r"'state' must be float32\[6\], got float32\[5\]"),
        ({"state": np.zeros(6)}, "got float64"),
        ({"cam": np.zeros((3, 8, 9), np.uint8)}, "'cam' must be"),
        ({"bc_action": np.zeros((1, A), np.float32)}, "'bc_action' must be"),
    ):
        with pytest.raises(ValueError, match=message):
            buffer.add({**obs, **changed}, zero, 0, False, False, False)
    with pytest.raises(ValueError, match="'cam' is missing"):
        buffer.add({"state": obs["state"]}, zero, 0, False, False, False)
    with pytest.raises(ValueError, match="action must be"):
        buffer.add(obs, np.zeros(A + 1), 0, False, False, False)
    with pytest.raises(ValueError, match="finite"):
        buffer.add(obs, zero, float("nan"), False, False, False)
    with pytest.raises(RuntimeError, match="empty"):
        buffer.sample(4)
    buffer.add(obs, zero, 0, False, False, False)  # none of that left a half step
    for _ in range(28):
        buffer.add(obs, zero, 0, False, False, False)
    with pytest.raises(RuntimeError, match="max_len = 30"):
        buffer.add(obs, zero, 0, False, False, False)
    assert buffer.size() == 0
    for bad, message in (
        ({"bc_action": ArraySpec((2, 2))}, "num_bc_action"),
        ({}, "obs_specs is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            ReplayBuffer(bad, 3, nstep=1, gamma=0.9, max_episode_length=3, replay_size=3, seed=1)
    with pytest.raises(ValueError, match="save_dir"):
        make(save_per_success=2)


def test_memory_estimate_is_what_is_used() -> None:
    buffer = make(replay_size=1000, use_bc=False)
    frames = {
        "state": np.zeros((25, 2), np.float32),
        "cam": np.zeros((25, 3, 8, 8), np.uint8),
        "bc_action": np.zeros((25, K, A), np.float32),
    }
    for _ in range(400):
        buffer.add_episode(frames, np.zeros((25, A)), np.zeros(25))
    estimate = buffer.memory_estimate(SPECS, A, buffer.num_transitions(), K)
    assert estimate <= buffer.nbytes <= 1.05 * estimate + 200 * 400


def test_one_flat_copy_splits_into_the_same_arrays() -> None:
    """The CUDA path copies the whole block once and takes views of the copy."""
    buffer = make()
    drive(buffer, FakeTask(0), 60, draw=False)
    raw = buffer._core.sample(7, None)
    parts = split_flat(torch.from_numpy(raw.flat).clone(), raw.layout)
    for group in ("obs", "next_obs", "action"):
        for key, value in getattr(raw, group).items():
            np.testing.assert_array_equal(parts[group][key].numpy(), value)
    np.testing.assert_array_equal(parts["reward"]["reward"].numpy(), raw.reward)
    np.testing.assert_array_equal(parts["bootstrap"]["bootstrap"].numpy(), raw.bootstrap)


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_a_dropped_episode_leaves_no_trace(steps: int) -> None:
    plain, other, task, again = make(), make(), FakeTask(3), FakeTask(3)
    drive(plain, task, 40, draw=False), drive(other, again, 40, draw=False)
    for buffer in (plain, other):
        if buffer.is_running():
            buffer.drop_episode()
    other.new_episode(FakeTask(8).reset())
    lost = FakeTask(8)
    lost.reset()
    for _ in range(steps):
        other.add(lost.step(), np.full(A, 99), 99.0, False, False, success=True)
    other.drop_episode()
    assert not other.is_running()
    with pytest.raises(ReplayError, match="drop_episode: no episode is running"):
        other.drop_episode()
    assert_equal(drive(plain, task, 60), drive(other, again, 60))
    assert other.size() == plain.size() and other.num_episode == plain.num_episode


def test_episodes_of_several_lanes_are_stored_as_one_after_another(tmp_path: Path) -> None:
    """Episodes that run at the same time, saved in the middle, against the same ones in turn."""
    options = {"save_per_success": 2, "env_args": {}}
    turns, lanes = (make(**options, save_dir=str(tmp_path / name)) for name in ("turns", "lanes"))
    for name in ("turns", "lanes"):
        (tmp_path / name).mkdir()
    lengths = {0: 3, 5: 2, 1: 4}  # by lane

    def play(buffer: ReplayBuffer, task: FakeTask, lane: int, last: bool) -> None:
        record = {"sim_state": np.full(9, task.number + task.t / 100)}
        action = np.full(A, task.t, np.float32)
        buffer.add(task.step(), action, 0.5, last, False, last, record, lane)

    tasks = {lane: FakeTask(0) for lane in lengths}
    for lane, task in tasks.items():
        task.number = lane
        lanes.new_episode(task.reset(), {"sim_state": np.zeros(9)}, lane)
    for t in range(4):
        for lane, length in lengths.items():
            if t < length:
                play(lanes, tasks[lane], lane, t == length - 1)
        if t == 0:
            state, lanes = lanes.state_dict(), make(**options, save_dir=str(tmp_path / "lanes"))
            lanes.load_state_dict(state)
    assert [lanes.is_running(lane) for lane in lengths] == [False] * 3
    for lane in sorted(lengths, key=lambda lane: lengths[lane]):
        task = FakeTask(0)
        task.number = lane
        turns.new_episode(task.reset(), {"sim_state": np.zeros(9)})
        for t in range(lengths[lane]):
            play(turns, task, 0, t == lengths[lane] - 1)
    pairs = zip(drive(turns, FakeTask(3), 20), drive(lanes, FakeTask(3), 20), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with h5py.File(tmp_path / "turns/data1.h5") as a, h5py.File(tmp_path / "lanes/data1.h5") as b:
        for demo in ("demo_0", "demo_1"):
            np.testing.assert_array_equal(a[f"data/{demo}/states"], b[f"data/{demo}/states"])


def test_one_lane_is_dropped_alone() -> None:
    buffer, task = make(), FakeTask(0)
    for lane in (0, 1):
        buffer.new_episode(task.reset(), lane=lane)
    buffer.drop_episode(0)
    assert [buffer.is_running(lane) for lane in (0, 1)] == [False, True]
    with pytest.raises(ReplayError, match="no episode is running"):
        buffer.add(task.step(), np.zeros(A), 0.0, False, False, False, lane=0)
    buffer.add(task.step(), np.zeros(A), 0.0, True, False, False, lane=1)
    assert buffer.size() == 1
