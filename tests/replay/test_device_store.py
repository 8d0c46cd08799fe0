"""A replay whose contents are on a device gives the C++ replay's batches, bit for bit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train_rl
from common_utils import run_config
from common_utils.resources import Need, ResourceError
from common_utils.run_config import ConfigError
from common_utils.specs import ArraySpec, Batch
from rl import device_store
from rl.replay import ReplayBuffer, ReplayError
from tests.replay.test_buffer import FakeTask, drive, make
from tests.runs import assert_same_run
from workspace import prepare_rl

CPU = torch.device("cpu")


def tensors(batch: Batch) -> list[torch.Tensor]:
    found = [*batch.obs.values(), *batch.next_obs.values(), batch.action, batch.reward]
    more = (batch.bootstrap, batch.bc_action, batch.next_bc_action, batch.rewards, batch.valid)
    return [*found, *(t for t in more if t is not None)]


def assert_same(a: Batch, b: Batch) -> None:
    assert a.obs.keys() == b.obs.keys() == a.next_obs.keys()
    for x, y in zip(tensors(a), tensors(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert torch.equal(x, y)


def pair(**options: Any) -> tuple[ReplayBuffer, ReplayBuffer]:
    """On the device (the CPU stands for it), and as ever."""
    return make(resident=CPU, **options), make(**options)


@pytest.mark.parametrize("bootstrap_truncated", [False, True])
@pytest.mark.parametrize("nstep", [1, 3, 40])
def test_every_batch(bootstrap_truncated: bool, nstep: int) -> None:
    """Stacks, BC actions, ends of both kinds, and rows that were dropped and overwritten."""
    a, b = pair(bootstrap_truncated=bootstrap_truncated, nstep=nstep)
    tasks = FakeTask(0), FakeTask(0)
    for _ in range(60):
        for buffer, task in zip((a, b), tasks, strict=True):
            drive(buffer, task, 7, draw=False)
        if b.size():
            assert_same(a.sample(16), b.sample(16))
        if b.size(bc=True):
            assert_same(a.sample_rl_bc(9, 5), b.sample_rl_bc(9, 5))
            assert_same(a.sample_bc(4), b.sample_bc(4))
    assert a.mark() == b.mark()  # the generators stand at the same place
    store = a._stores[a._core]
    begin, end = a._core.spans()[0]
    assert begin > 0 and end > store._obs.size  # the seam was crossed


def test_rows_cross_the_seam_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_store, "_PIECE_BYTES", 1000)  # a few frames
    a, b = pair()
    for buffer in (a, b):
        drive(buffer, FakeTask(1), 300, draw=False)  # more than it holds, before the first batch
    assert_same(a.sample(64), b.sample(64))
    for buffer in (a, b):
        drive(buffer, FakeTask(2), 100, draw=False)
    assert_same(a.sample(64), b.sample(64))


def test_longer_episodes_need_more_room() -> None:
    specs = {"state": ArraySpec((2,), "float32")}
    options: dict[str, Any] = dict(nstep=2, gamma=0.5, max_episode_length=9, replay_size=2, seed=1)
    a = ReplayBuffer(specs, 1, resident=CPU, **options)
    b = ReplayBuffer(specs, 1, **options)
    for length in (3, 50, 4, 200, 1, 2, 90):
        frames = np.random.default_rng(length).random((length, 2), np.float32)
        for buffer in (a, b):
            buffer.add_episode({"state": frames}, frames[:, :1], frames[:, 1])
        assert_same(a.sample(32), b.sample(32))


def test_resuming_is_exact_whether_on_a_device_or_not(tmp_path: Path) -> None:
    a, b = pair()
    tasks = FakeTask(0), FakeTask(0)
    for buffer, task in zip((a, b), tasks, strict=True):
        drive(buffer, task, 80, draw=False)
    assert_same(a.sample(8), b.sample(8))
    a.save(tmp_path / "state")
    again, other = pair(seed=5)
    for buffer in (again, other):
        drive(buffer, FakeTask(3), 50, draw=False)  # contents that the state replaces
        buffer.sample(8)
        buffer.load(tmp_path / "state")
    for _ in range(3):
        batch = b.sample_rl_bc(6, 3)
        assert_same(again.sample_rl_bc(6, 3), batch)
        assert_same(other.sample_rl_bc(6, 3), batch)
    third = make(resident=CPU)
    third.load_state_dict(b.state_dict())
    assert_same(third.sample(5), b.sample(5))


def test_a_batch_is_made_on_the_device_alone() -> None:
    """Tensors of torch's device "meta" have no values: reading one, or moving it back, fails."""
    meta = torch.device("meta")
    a, b = make(resident=meta), make()
    for buffer in (a, b):
        drive(buffer, FakeTask(0), 60, draw=False)
    for x, y in zip(
        tensors(a.sample_rl_bc(9, 5, meta)), tensors(b.sample_rl_bc(9, 5)), strict=True
    ):
        assert (x.device, x.dtype, x.shape) == (meta, y.dtype, y.shape)
    with pytest.raises(RuntimeError, match="meta"):
        float(a.sample(4, meta).reward[0])


def test_misuse_is_refused() -> None:
    buffer = make(resident=CPU)
    with pytest.raises(RuntimeError, match="the replay is empty"):
        buffer.sample(4)
    drive(buffer, FakeTask(0), 60, draw=False)
    with pytest.raises(ValueError, match="the batch size must be at least 1, got 0"):
        buffer.sample(0)
    with pytest.raises(ReplayError, match="this replay is on cpu: it has no batches on cuda"):
        buffer.sample(4, "cuda")


# ------------------------------------------------------------------------------ whole runs


def config(save_dir: Path, steps: int, resume: int = 0, **more: Any) -> train_rl.MainConfig:
    options = {
        "suite": "particle", "task_name": "PARTICLE_2d", "use_state": 1, "episode_length": 9,
        "num_train_step": steps, "log_per_step": 20, "num_warm_up_episode": 1,
        "num_eval_episode": 0, "batch_size": 4, "state_stack": 2, "replay_buffer_size": 2,
        "q_agent.act_method": "rl", "q_agent.state_critic.hidden_dim": 8,
        "q_agent.state_actor.hidden_dim": 8, "q_agent.device": "cpu",
        "save_dir": save_dir, "resume": resume, **more,
    }  # fmt: skip
    return run_config.parse_args(train_rl.MainConfig, [f"--{k}={v}" for k, v in options.items()])


def test_a_run_is_the_same_also_when_continued_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU stands for the GPU, which the check of the card would refuse."""
    monkeypatch.setattr(prepare_rl, "check_card", lambda cfg, needs, device: [])
    on_gpu = {"replay_storage": "cuda"}
    train_rl.run(config(tmp_path / "parts", 20, **on_gpu))
    train_rl.run(config(tmp_path / "parts", 40, resume=1, replay_storage="ram"))
    work = train_rl.run(config(tmp_path / "parts", 60, resume=1, **on_gpu))
    assert work.replay.resident == CPU and work.replay._stores
    train_rl.run(config(tmp_path / "plain", 60))
    assert_same_run(tmp_path / "parts", tmp_path / "plain")


def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    message = (
        "replay_storage: 'cuda', expected ram or a folder: the agent (q_agent.device cpu) is on "
        "the cpu"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        train_rl.run(config(tmp_path / "run", 20, replay_storage="cuda"))


def test_what_does_not_fit_the_card_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 1 << 34))
    cfg, card = config(Path("x"), 20, replay_storage="cuda"), torch.device("cuda", 0)
    needs = {"replay": Need(700 << 20, "replay_buffer_size"), "successes": Need(1 << 34)}
    lines = prepare_rl.check_card(cfg, needs, card)
    assert lines == ["memory of cuda:0: replay 875.0 MiB; 1.0 GiB available"]
    needs["demonstration replay"] = Need(100 << 20, "preload_num_data")
    with pytest.raises(ResourceError, match=r"1000.0 MiB of memory of cuda:0 .*lower replay_buff"):
        prepare_rl.check_card(cfg, needs, card)
