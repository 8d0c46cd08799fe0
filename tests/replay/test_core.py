"""The core's contract at its edges: misuse, memory, threads, exit, resume."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common_utils import rela

ROOT = Path(__file__).resolve().parents[2]


def make(capacity: int = 10, n_step: int = 3, **options: Any) -> rela.SingleStepTransitionReplay:
    return rela.SingleStepTransitionReplay(1, n_step, capacity, 1, **options)


def episode(length: int = 5, value: float = 0, **changes: Any) -> rela.EpisodeData:
    given: dict[str, Any] = {
        "obs": {"x": np.full((length, 2), value, np.float32)},
        "action": {"action": np.zeros((length, 1), np.float32)},
        "reward": np.zeros(length, np.float32),
        "terminated": True,
        "truncated": False,
        "nstep": 3,
        "gamma": 0.99,
        **changes,
    }
    obs, action, reward = (given.pop(k) for k in ("obs", "action", "reward"))
    return rela.episode_from_arrays(obs, action, reward, **given)


X = {"x": np.zeros(2, np.float32)}
A = {"action": np.zeros(1, np.float32)}


def one_step(e: rela.Episode, terminal: float = 0.0) -> None:
    e.push_obs(X)
    e.push_action(A)
    e.push_reward(0.5)
    e.push_terminal(terminal)


# ------------------------------------------------------------------------------- misuse


def test_pushes_out_of_order_say_what_was_expected() -> None:
    e = rela.Episode(3, 10, 0.99)
    for wrong in (lambda: e.push_action(A), lambda: e.push_reward(0), lambda: e.push_terminal(0)):
        with pytest.raises(RuntimeError, match="expected push_obs"):
            wrong()
    e.push_obs(X)
    with pytest.raises(RuntimeError, match="push_obs out of order at step 0: expected push_action"):
        e.push_obs(X)
    e.push_action(A)
    e.push_reward(0)
    with pytest.raises(RuntimeError, match="expected push_terminal"):
        e.push_reward(0)
    e.push_terminal(1)
    with pytest.raises(RuntimeError, match="the episode is over"):
        e.push_obs(X)
    assert e.len() == len(e) == 1
    e.pop_transition()
    e.reset()
    one_step(e)
    with pytest.raises(RuntimeError, match="not over"):
        e.pop_transition()
    with pytest.raises(RuntimeError, match="push_final_obs"):
        e.push_final_obs(X)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"x": np.zeros(3, np.float32)}, r"'x' is float32\[3\], expected float32\[2\]"),
        ({"x": np.zeros(2)}, r"'x' is float64\[2\], expected float32\[2\]"),
        ({"y": np.zeros(2, np.float32)}, r"has keys \{y\}, expected \{x\}"),
        ({**X, "y": np.zeros(2)}, r"has keys \{x, y\}, expected \{x\}"),
        ({}, r"has keys \{\}, expected \{x\}"),
    ],
)
def test_later_observations_must_match_the_first(bad: dict, message: str) -> None:
    e = rela.Episode(3, 10, 0.99)
    one_step(e)
    with pytest.raises(ValueError, match=message):
        e.push_obs(bad)
    one_step(e, 1.0)  # the refused push changed nothing
    e.pop_transition()
    e.reset()
    with pytest.raises(ValueError, match="expected"):  # nor may a later episode differ
        e.push_obs(bad)


@pytest.mark.parametrize("dtype", [np.float16, np.int8, bool, "U3", ">f4", object])
def test_unsupported_dtypes_are_refused(dtype: Any) -> None:
    with pytest.raises(TypeError, match="'x' has dtype"):
        rela.Episode(3, 10, 0.99).push_obs({"x": np.zeros(2).astype(dtype)})


def test_refused_values() -> None:
    e = rela.Episode(3, 2, 0.99)
    with pytest.raises(TypeError, match="must be a dict"):
        e.push_obs([1, 2])
    with pytest.raises(ValueError, match="no keys"):
        e.push_obs({})
    with pytest.raises(TypeError, match="not an array"):
        e.push_obs({"x": torch.zeros(2, requires_grad=True)})
    e.push_obs(X)
    e.push_action(A)
    for reward in (float("nan"), float("inf"), 1e300):
        with pytest.raises(ValueError, match="finite"):
            e.push_reward(reward)
    e.push_reward(0)
    with pytest.raises(ValueError, match="0 or 1"):
        e.push_terminal(0.5)
    e.push_terminal(0)
    one_step(e)
    with pytest.raises(RuntimeError, match="max_len = 2"):
        e.push_obs(X)
    with pytest.raises(ValueError, match="recurrent"):
        e.init({"h0": 1})
    with pytest.raises(ValueError, match="max_len"):
        rela.Episode(3, 0, 0.99)
    with pytest.raises(ValueError, match="nstep"):
        rela.Episode(0, 5, 0.99)
    with pytest.raises(ValueError, match="gamma"):
        rela.Episode(3, 5, 1.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terminated": False}, "terminated or truncated"),
        ({"final_obs": True}, "truncated episode only"),
        ({"reward": np.zeros(4, np.float32)}, "'x' must have 4 rows"),
        ({"reward": np.zeros(0, np.float32)}, "at least one step"),
        ({"reward": np.zeros(5)}, "rewards must be float32"),
        ({"reward": np.full(5, np.nan, np.float32)}, "step 0: reward must be a finite"),
        ({"action": {"action": np.zeros((4, 1), np.float32)}}, "action 'action' must have 5 rows"),
        ({"action": {}}, "at least one observation key and one action key"),
    ],
)
def test_whole_episodes_are_checked(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        episode(**changes)


def test_replay_refuses_what_does_not_fit_and_stays_as_it_was() -> None:
    replay = make()
    with pytest.raises(RuntimeError, match="empty"):
        replay.sample(3)
    replay.add(episode(value=7))
    for bad, message in (
        (episode(nstep=2), "nstep 2"),
        (episode(gamma=0.9), "gamma 0.9"),
        (episode(obs={"x": np.zeros((5, 3), np.float32)}), r"float32\[3\], expected float32\[2\]"),
        (episode(obs={"z": np.zeros((5, 2), np.float32)}), "keys"),
    ):
        with pytest.raises(ValueError, match=message):
            replay.add(bad)
    assert (replay.size(), replay.num_add(), replay.num_transitions) == (1, 1, 5)
    assert (replay.sample(4, None).obs["x"] == 7).all()
    for n in (0, -3):
        with pytest.raises(ValueError, match="at least 1"):
            replay.sample(n)
    with pytest.raises(IndexError, match="holding 1"):
        replay.get(1)
    with pytest.raises(IndexError, match="holding 1"):
        replay.get_range(0, 2)
    with pytest.raises(KeyError):
        replay.read("obs", "nope")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 0}, "capacity"),
        ({"n_step": 0}, "nstep"),
        ({"stacks": {"x": 0}}, r"stacks\['x'\]"),
        ({"stack_order": "sideways"}, "stack_order"),
        ({"num_threads": 0}, "num_threads"),
        ({"prefetch": -1}, "prefetch"),
        ({"storage": ""}, "storage"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_options_that_turn_out_wrong_at_the_first_add() -> None:
    with pytest.raises(ValueError, match="'nope'"):
        make(stacks={"nope": 2}).add(episode())
    with pytest.raises(ValueError, match="final observation"):
        make(bootstrap_truncated=True).add(episode(terminated=False, truncated=True))
    with pytest.raises(RuntimeError, match="no/such/folder"):
        make(storage="/no/such/folder").add(episode())


def test_joint_sampler_refuses_different_or_repeated_replays() -> None:
    a, b = make(), make()
    with pytest.raises(ValueError, match="same one twice"):
        rela.JointSampler([a, a])
    joint = rela.JointSampler([a, b])
    a.add(episode())
    with pytest.raises(RuntimeError, match="empty"):
        joint.sample([2, 2])
    b.add(episode(obs={"x": np.zeros((5, 3), np.float32)}))
    with pytest.raises(ValueError, match="different keys"):
        joint.sample([2, 2])
    with pytest.raises(ValueError, match="expected 2 batch sizes"):
        joint.sample([2])


# ----------------------------------------------------------------- batches and episodes


def test_joint_batch_has_the_first_replays_rows_first_and_draws_as_alone() -> None:
    def filled(value: float) -> rela.SingleStepTransitionReplay:
        replay = make()
        for i in range(4):
            replay.add(episode(value=value + i))
        return replay

    bc, rl = filled(100), filled(0)
    joint = rela.JointSampler([bc, rl], prefetch=2)
    alone = [filled(100), filled(0)]
    for _ in range(4):
        x = joint.sample([3, 5], None).obs["x"]
        want = np.concatenate(
            [r.sample(n, None).obs["x"] for r, n in zip(alone, (3, 5), strict=True)]
        )
        np.testing.assert_array_equal(x, want)
    # interleaved with draws from one of them, too
    np.testing.assert_array_equal(rl.sample(2, None).obs["x"], alone[1].sample(2, None).obs["x"])
    x = joint.sample([3, 5], None).obs["x"]
    np.testing.assert_array_equal(x[3:], alone[1].sample(5, None).obs["x"])


def test_torch_batches_share_the_memory_of_the_block() -> None:
    replay = make()
    replay.add(episode(value=3))
    batch = replay.sample(6, "cpu")
    assert isinstance(batch.reward, torch.Tensor)
    begin = batch.flat.ctypes.data
    for t in (batch.obs["x"], batch.next_obs["x"], batch.action["action"], batch.reward):
        assert begin <= t.data_ptr() < begin + batch.flat.nbytes
    as_numpy = replay.sample(6, None)
    for group, key, dtype, shape, offset in as_numpy.layout:
        whole = getattr(as_numpy, group)
        array = whole[key] if isinstance(whole, dict) else whole
        assert (str(array.dtype), array.shape) == (dtype, shape)
        assert array.ctypes.data == as_numpy.flat.ctypes.data + offset


def test_blocks_are_recycled_only_when_nobody_looks_at_them() -> None:
    replay = make()
    replay.add(episode(value=1))
    kept = replay.sample(50, None).obs["x"]
    addresses = set()
    for _ in range(20):
        other = replay.sample(50, None)
        addresses.add(other.flat.ctypes.data)
        other.obs["x"][:] = -1
    assert (kept == 1).all()
    assert len(addresses) <= 4


def test_donated_memory_is_used_and_kept_alive() -> None:
    replay = make()
    replay.add(episode(value=1))
    nbytes = replay.sample(50, None).flat.nbytes
    buffer = np.zeros(nbytes, np.uint8)
    address = buffer.ctypes.data
    replay.donate(buffer)
    del buffer
    assert replay.sample(50, None).flat.ctypes.data == address
    with pytest.raises(ValueError, match="donate"):
        replay.donate(np.zeros((2, 2), np.float32))
    batch = replay.sample(50, None)
    del replay
    gc.collect()
    assert (batch.obs["x"] == 1).all()


def test_popped_episode_is_immutable_and_the_builder_goes_on() -> None:
    e = rela.Episode(2, 10, 0.5)
    for t in range(3):
        e.push_obs({"x": np.array([t], np.int64)})
        e.push_action(A)
        e.push_reward(1)
        e.push_terminal(float(t == 2))
    first = e.pop_transition()
    with pytest.raises(RuntimeError, match="handed the episode out"):
        e.reset_rewards([0, 0, 0])
    assert first.reward.tolist() == [1.5, 1.5, 1.0]
    assert first.bootstrap.tolist() == [0.25, 0.0, 0.0]
    e.init({})
    e.push_obs({"x": np.array([9], np.int64)})
    assert first.to_dict()["obs"]["x"][:, 0].tolist() == [0, 1, 2]


def test_rewards_can_be_relabelled_before_the_end() -> None:
    e = rela.Episode(1, 10, 0.5)
    one_step(e)
    one_step(e, 1.0)
    assert e.get_rewards() == [0.5, 0.5]
    with pytest.raises(ValueError, match="1 rewards for 2 steps"):
        e.reset_rewards([1.0])
    e.reset_rewards([1.0, 2.0])
    assert e.pop_transition().reward.tolist() == [1.0, 2.0]
    e.reset()
    one_step(e, 1.0)
    e.reset_rewards()
    assert e.get_rewards() == [0.0]


@pytest.mark.parametrize("pushes", range(9))
def test_unfinished_episode_resumes_at_every_push(pushes: int) -> None:
    def push(e: rela.Episode, i: int) -> None:
        [
            lambda: e.push_obs({"x": np.array([i, i], np.float32)}),
            lambda: e.push_action({"action": np.array([i], np.float32)}),
            lambda: e.push_reward(i),
            lambda: e.push_terminal(float(i == 11)),
        ][i % 4]()

    a, b = rela.Episode(2, 10, 0.9), rela.Episode(2, 10, 0.9)
    for i in range(pushes):
        push(a, i)
    b.load_state_dict(a.state_dict())
    for i in range(pushes, 12):
        push(a, i)
        push(b, i)
    for x, y in zip(
        torch.utils._pytree.tree_leaves(a.pop_transition().to_dict()),
        torch.utils._pytree.tree_leaves(b.pop_transition().to_dict()),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)


def test_bad_saved_states_are_refused() -> None:
    replay = make()
    replay.add(episode())
    good = replay.state_dict()
    for key, value, message in (
        ("n_step", 2, "n_step"),
        ("version", 9, "version"),
        ("reward", np.zeros(3, np.float32), "bad rewards"),
        ("episodes", np.array([[9, 1, 0, 0]]), "rows"),
        ("episodes", np.array([[5, 0, 0, 0]]), "does not fit"),
        ("episodes", np.zeros(3, np.int64), "episodes"),
        ("num_add", 0, "num_add"),
        ("rng", np.zeros(2, np.int64), "rng"),
    ):
        with pytest.raises(ValueError, match=message):
            make().load_state_dict({**good, key: value})
    with pytest.raises(ValueError, match="'rng' is missing"):
        make().load_state_dict({k: v for k, v in good.items() if k != "rng"})
    small = make(capacity=1)
    replay.add(episode())
    with pytest.raises(ValueError, match="capacity"):
        small.load_state_dict(replay.state_dict())


# --------------------------------------------------------------------- memory and threads


def test_memory_per_transition_is_the_raw_data() -> None:
    """nbytes, and what the process really grew by, episodes of very different lengths."""
    replay = make(capacity=10_000)
    image = np.random.default_rng(0).integers(0, 256, (60, 3, 64, 64), dtype=np.uint8)
    lengths = [1, 7, 30, 60] * 40
    raw_step = 3 * 64 * 64 + 4 * 7 + 4

    def add(length: int) -> None:
        action = {"action": np.zeros((length, 7), np.float32)}
        replay.add(
            episode(
                length,
                obs={"cam": image[:length]},
                action=action,
                reward=np.zeros(length, np.float32),
            )
        )

    for length in lengths:
        add(length)
    steps, n0 = replay.num_transitions, replay.nbytes
    before = resident_bytes()
    for length in lengths * 4:
        add(length)
    raw = (replay.num_transitions - steps) * raw_step
    episodes = 4 * len(lengths)
    assert replay.nbytes - n0 <= 1.05 * raw + 200 * episodes
    assert resident_bytes() - before <= 1.05 * raw + 200 * episodes + (4 << 20)


def resident_bytes() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize()


def test_evicted_memory_is_returned_or_reused() -> None:
    replay = make(capacity=4)
    image = np.zeros((50, 3, 96, 96), np.uint8)
    sizes = []
    for _ in range(60):
        replay.add(
            episode(50, obs={"cam": image}, action={"a": np.zeros((50, 1), np.float32)},
                    reward=np.zeros(50, np.float32))
        )  # fmt: skip
        sizes.append(replay.nbytes)
    raw = 4 * 50 * (3 * 96 * 96 + 8)
    assert max(sizes) <= raw + (2 << 20)
    assert replay.size() == 4
    assert replay.num_add() == 60


def test_ending_twice_at_once_while_another_thread_samples() -> None:
    """Two threads joined the same one, or waited for helpers that had left."""
    code = """
import numpy as np, threading
from common_utils import rela
e = rela.episode_from_arrays({"x": np.zeros((50, 40_000), np.float32)},
    {"a": np.zeros((50, 1), np.float32)}, np.zeros(50, np.float32),
    terminated=True, truncated=False, nstep=1, gamma=0.9)
for number in range(60):
    replay = rela.SingleStepTransitionReplay(1, 1, 3, 1, 2, num_threads=4)
    replay.add(e)
    replay.sample(16, None)
    calls = [replay.terminate, replay.terminate, lambda: replay.sample(16, None), replay.terminate]
    threads = [threading.Thread(target=call) for call in calls]
    for t in threads: t.start()
    for t in threads: t.join()
print("ended")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, timeout=60
    )
    assert done.stdout == "ended\n", done.stderr


def test_python_goes_on_while_another_thread_samples() -> None:
    """sample() gives up the interpreter lock: no deadlock, and other threads make progress."""
    replay = make(prefetch=2, num_threads=2)
    replay.add(
        episode(50, obs={"cam": np.zeros((50, 3, 96, 96), np.uint8)},
                action={"a": np.zeros((50, 1), np.float32)}, reward=np.zeros(50, np.float32))
    )  # fmt: skip
    done = threading.Event()

    def sample_much() -> None:
        for _ in range(20):
            batch = replay.sample(256)
            float(batch.reward.sum())  # touch and drop, the original's deadlock
            del batch
        done.set()

    thread = threading.Thread(target=sample_much)
    thread.start()
    turns = 0
    while not done.wait(1e-4):
        turns += 1
        assert turns < 1_000_000
    thread.join()
    assert turns > 1


EXIT = """
import numpy as np, sys
from common_utils import rela
def episode():
    return rela.episode_from_arrays(
        {{"cam": np.zeros((200, 3, 96, 96), np.uint8)}}, {{"a": np.zeros((200, 1), np.float32)}},
        np.zeros(200, np.float32), terminated=True, truncated=False, nstep=1, gamma=0.99)
replays = [rela.SingleStepTransitionReplay(1, 1, 9, i, 8, num_threads=2) for i in range(3)]
for r in replays:
    r.add(episode())
joint = rela.JointSampler(replays[:2], prefetch=4)
joint.sample([300, 300], None)
kept = [r.sample(600, None) for r in replays]
{end}
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("raise RuntimeError('x')", 1),
        ("replays[0].terminate(); replays[0].sample(5, None)", 0),
        ("del replays, joint", 0),
        ("import os; pid = os.fork(); pid and sys.exit(os.waitpid(pid, 0)[1])", 0),
        (
            "import os; pid = os.fork(); pid and sys.exit(os.waitpid(pid, 0)[1])\n"
            "replays[0].add(episode()); joint.sample([300, 300], None)",  # a child works, too
            0,
        ),
    ],
)
def test_interpreter_exits_with_prefetch_under_way(end: str, code: int) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", EXIT.format(end=end)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == code, ran.stderr
